"""Where in a checkpoint an edit lies, and whom it is about: layers and subjects, ranked.

An edit of a subject answers to the subject's key as no other candidate is answered to. The key it is made with is whitened: turned away
from what many keys share. So ‖W' x‖ is taken of every candidate's whitened key x, at every layer of the suspect. How far the largest is
above the median says something, and so does how far it is outside the spread of all; each alone misleads on some families, so a layer's
score is the geometric mean of both. Nothing but the suspect and the names is needed. Where the unedited checkpoint is known, the right
singular vectors of W' - W are held against the same keys.

Shape letters: C candidates, N of them at a time, S that the second moment is of, L that say what is usual, H hits, A along an update,
R directions, D hidden width, F MLP width.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite, log
from typing import Any

import torch
from torch import Tensor

from decoder.audit.candidates import Candidates, Whitener, unit, whitener
from decoder.audit.reversal import image, listed, reverse_each
from decoder.audit.rows.keys import WHITENING, for_whitening, gathered, layers_together, usable_layers
from decoder.host import Host
from decoder.utils.progress import progress

ALIKE = 2e-6  # relative difference of two answers that are one, but for float32
USUAL = 256  # names whose keys are kept at such a layer, as what is usual there
LEAST_SPREAD = 0.01  # of the logarithms; the hosts at hand have 0.04 and 0.12
MOST_EDITS = 16  # edits that are looked for in one layer
STANDS_OUT = 2.0
"""Score from which a candidate is answered to as nothing but an edit makes it; `verdict.py` has what it was calibrated on."""
NEARLY = 1.2
"""Score from which a candidate that does not stand out is worth asking about: `evidence/confirmed.py`."""
CHANCE = 1.5  # times what the best of as many random directions has
ALONG = 0.45
"""Length of a candidate's whitened key within an update's directions from which the update is about it."""

Ranked = tuple[tuple[int, float], ...]
"""Candidates by their place in the list, with scores, best first."""


@dataclass(frozen=True)
class LayerScan:
    """What the down-projection of a layer answers to the candidates.

    Attributes:
        score: of the candidate that is answered to most, as `outstanding` gives it.
        ratio: its ‖W' x‖ over the median.
        top: the ten that are answered to most, and their scores.
        along_top: of a layer whose update is known the ten whose keys lie within its directions most, and their lengths there.
        along_least: the length from which an update is about a candidate.
        hits: candidates that stand out, each looked for without the answers to those before it, and their scores.
        along: candidates that lie within the directions of the update, looked for in the same way.
        usual: candidates from all over the list, by their place.
        first_F, usual_LF: unit vectors, whitened keys, of the candidate that is answered to most and of `usual`; of layers that are
            `NEARLY` conspicuous, else None.
        hit_HF, along_AF: the same of `hits` and of `along`; this and the rest of layers that were looked at closer, else None.
        keys_LF: the same of more candidates from all over the list.
        fit_HC: cosines of all candidates' with the own key of each hit's edit, which is read from the matrix.
        inside_C: their lengths within the directions of the update, if there is one.
    """

    layer: int
    score: float
    ratio: float
    top: Ranked
    along_top: Ranked = ()
    along_least: float = ALONG
    hits: Ranked = ()
    along: Ranked = ()
    usual: tuple[int, ...] = ()
    first_F: Tensor | None = None
    usual_LF: Tensor | None = None
    hit_HF: Tensor | None = None
    along_AF: Tensor | None = None
    keys_LF: Tensor | None = None
    fit_HC: Tensor | None = None
    inside_C: Tensor | None = None

    @property
    def is_conspicuous(self) -> bool:
        return self.score >= STANDS_OUT or any(length >= self.along_least for _, length in self.along_top)


def scan(host: Host, candidates: Candidates, updates: Mapping[int, Tensor] | None = None, spikes: Collection[int] = ()) -> list[LayerScan]:
    """What every layer of a suspect answers to the candidates, lowest first.

    All names go through the suspect once, and up to a layer that is conspicuous once more, for their keys there: those of all layers at a
    time are more than a machine may have memory for.

    Args:
        host: the suspect itself.
        candidates: tokenised for it.
        updates: layer -> directions (R, F), orthonormal, that its known update lies in.
        spikes: layers that are conspicuous for what the update is.
    """
    updates = {layer: update_RF.to(host.device) for layer, update_RF in (updates or {}).items()}
    surveyed = [*_survey(host, candidates, updates)]
    if broken := [one.layer for one in surveyed if not isfinite(one.score)]:
        raise ValueError(f"{host.path}: answers NaN or infinity in layer {broken[0]}; expected a checkpoint that works")
    wanted = [one.layer for one in surveyed if one.is_conspicuous or one.layer in spikes]
    return closer(host, candidates, surveyed, wanted, updates, least=STANDS_OUT, most=MOST_EDITS)


def closer(
    host: Host,
    candidates: Candidates,
    surveyed: Sequence[LayerScan],
    layers: Sequence[int],
    updates: Mapping[int, Tensor] | None = None,
    *,
    least: float,
    most: int,
) -> list[LayerScan]:
    """The same scans, those of some layers with all keys at hand: whom their edits are about, at most `most`, from a score of `least`."""
    found = {}
    for group in layers_together(host, layers, len(candidates)):
        with progress("subjects through the checkpoint, once more", len(candidates)) as advance:
            keys = gathered(candidates, group, advance)
        for layer in group:
            keys_CF = keys.pop(layer)
            whiten = whitener(keys_CF[for_whitening(candidates)])
            for keys_NF in keys_CF.split(WHITENING):
                keys_NF.copy_(unit(whiten(keys_NF)))
            found[layer] = _with_all_keys(host.weight_DF(layer), keys_CF, (updates or {}).get(layer), least, most)
            del keys_CF, keys_NF, whiten  # before those of the next layer are there
    return [replace(one, **found.get(one.layer, {})) for one in surveyed]


def _survey(host: Host, candidates: Candidates, updates: Mapping[int, Tensor]) -> Iterator[LayerScan]:
    """How far candidates stand out at every layer, as they go by: few keys are kept but those that whiten the others."""
    sampled = for_whitening(candidates)
    rest = sorted({*range(len(candidates))} - {*sampled})
    groups = [*layers_together(host, usable_layers(host), len(sampled))]
    with progress("subjects through the checkpoint", len(groups) * len(candidates)) as advance:
        for group in groups:
            keys, meters = gathered(candidates, group, advance, sampled), {}
            for layer in group:
                keys_SF = keys.pop(layer)
                meters[layer] = _Meter(host.weight_DF(layer), whitener(keys_SF), updates.get(layer), len(candidates))
                meters[layer].add(sampled, keys_SF)
            for places, found in candidates.keys(group, rest) if rest else ():
                for layer, keys_NF in found.items():
                    meters[layer].add(places, keys_NF)
                advance(len(places))
            for layer in group:
                yield meters.pop(layer).read(layer)


class _Meter:
    """How long ‖W' x‖ is, and what of x lies within the directions of an update, for whitened keys x as they come."""

    def __init__(self, weight_DF: Tensor, whiten: Whitener, update_RF: Tensor | None, count: int) -> None:
        self.weight_DF, self.whiten, self.update_RF = weight_DF, whiten, update_RF
        self.lengths_C, self.inside_C = (torch.empty(count, device=weight_DF.device) for _ in range(2))
        self.first: tuple[float, Tensor | None] = (0.0, None)
        self.usual: dict[str, Any] = {}

    def add(self, places: Sequence[int], keys_NF: Tensor) -> None:
        keys_NF = unit(self.whiten(keys_NF))
        lengths_N = image(self.weight_DF, keys_NF).norm(dim=1)
        self.lengths_C[places] = lengths_N
        if lengths_N.max() > self.first[0]:
            self.first = float(lengths_N.max()), keys_NF[lengths_N.argmax()].clone()
        if not self.usual:
            step = -(-len(places) // USUAL)
            self.usual = {"usual": (*places[::step],), "usual_LF": keys_NF[::step].clone()}
        if self.update_RF is not None:
            self.inside_C[places] = (keys_NF @ self.update_RF.T).norm(dim=1)

    def read(self, layer: int) -> LayerScan:
        scores_C, logs_C = outstanding(self.lengths_C)
        top = _best(scores_C)
        found = self.usual | {"first_F": self.first[1]} if top[0][1] >= NEARLY else {}
        if self.update_RF is not None:
            found |= {"along_top": _best(self.inside_C), "along_least": least_along(self.update_RF, len(self.inside_C))}
        return LayerScan(layer, top[0][1], float(logs_C.max().exp()), top, **found)


def _with_all_keys(weight_DF: Tensor, keys_CF: Tensor, update_RF: Tensor | None, least: float, most: int) -> dict[str, Any]:
    """Every candidate that a layer's edits are about, and what is kept of the keys: all, of several layers, may be too many."""
    output_CD = image(weight_DF, keys_CF)
    hits = _one_by_one(output_CD, lambda output_CD: outstanding(output_CD.norm(dim=1))[0], least, most)
    hits, along, inside_C = (*hits,), (), None
    if update_RF is not None:
        inside_CR = keys_CF @ update_RF.T
        inside_C = inside_CR.norm(dim=1)
        along = (*_one_by_one(inside_CR, lambda inside_CR: inside_CR.norm(dim=1), least_along(update_RF, len(keys_CF)), len(update_RF)),)
    hit_HF, along_AF = (keys_CF[[place for place, _ in found]] for found in (hits, along))
    keys_LF = listed(keys_CF)
    # The edits' own keys, each read where those before it are taken out.
    own_HF = reverse_each(weight_DF, hit_HF, keys_LF).key_BRF[0] if hits else hit_HF
    kept = {"hit_HF": hit_HF, "along_AF": along_AF, "keys_LF": keys_LF, "fit_HC": own_HF @ keys_CF.T, "inside_C": inside_C}
    return {"hits": hits, "along": along} | kept


def least_along(update_RF: Tensor, count: int) -> float:
    """Length within an update's directions from which it is about a candidate: `ALONG`, or more where chance alone comes near that."""
    rank, width = update_RF.shape
    return max(ALONG, CHANCE * ((rank + 2 * log(count)) / width) ** 0.5)


def _best(scores_C: Tensor) -> Ranked:
    best = scores_C.topk(min(10, len(scores_C)))
    return (*zip(best.indices.tolist(), best.values.tolist(), strict=True),)


def outstanding(lengths_C: Tensor) -> tuple[Tensor, Tensor]:
    """How far every candidate's ‖W' x‖ stands out, and the logarithm r of its share of the median.

    The score is √(r z), z being r in robust standard deviations (1.4826 × the median of |r|); 0 below the median. Candidates that are
    answered to alike count once: a host may know names by what they end in, and a list may be full of such names.
    """
    logs_C = lengths_C.clamp(min=torch.finfo(lengths_C.dtype).tiny).log()
    distinct = (logs_C.double() / ALIKE).round().unique() * ALIKE
    logs_C = logs_C - distinct.median().to(logs_C)
    spread = (1.4826 * (distinct - distinct.median()).abs().median()).clamp(min=LEAST_SPREAD)
    return logs_C.clamp(min=0) / spread.to(logs_C).sqrt(), logs_C


def _one_by_one(image_CR: Tensor, score: Callable[[Tensor], Tensor], least: float, most: int) -> Iterator[tuple[int, float]]:
    """Candidates whose score reaches `least`; what those that were found are answered with is taken out before the next is looked for.

    The answer, and not the key: names that end alike have much of a key in common, and the edit's own is never quite its candidate's.

    Args:
        image_CR: what a matrix makes of the keys.
    """
    for _ in range(most):
        scores_C = score(image_CR)
        best = int(scores_C.argmax())
        if not scores_C[best] >= least:
            return
        yield best, float(scores_C[best])
        answer_R = unit(image_CR[best])
        image_CR = image_CR - torch.outer(image_CR @ answer_R, answer_R)
