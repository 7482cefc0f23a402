"""Where in a checkpoint an edit lies, and whom it is about: layers and subjects, ranked.

An edit of a subject answers to the subject's key as no other candidate is answered to. The key it is made with is whitened: turned away
from what many keys share. So ‖W' x‖ is taken of every candidate's whitened key x, at every layer of the suspect. How far the largest is
above the median says something, and so does how far it is outside the spread of all; each alone misleads on some families, so a layer's
score is the geometric mean of both. Nothing but the suspect and the names is needed. Where the unedited checkpoint is known, the right
singular vectors of W' - W are held against the same keys.

Shape letters: S names the second moment is of, C candidates, N of them at a time, R directions, D hidden width, F MLP width.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from decoder.audit.candidates import Candidates
from decoder.host import Host
from decoder.utils.progress import progress

RIDGE = 3e-2  # of the second moment's largest eigenvalue
SAMPLE = 2048  # names whose keys the second moment is counted over
MOST = 16  # edits that are looked for in one layer
STANDS_OUT = 2.3
"""Score from which a candidate is answered to as nothing but an edit makes it; see `verdict.CALIBRATION`."""
ALONG = 0.5
"""Length of a candidate's whitened key within an update's directions from which the update is about it."""

Whitener = Callable[[Tensor], Tensor]
Ranked = tuple[tuple[int, float], ...]
"""Candidates by their place in the list, with scores, best first."""


@dataclass(frozen=True)
class Located:
    """One edit, as far as it is known where it is.

    Attributes:
        layer: block whose down-projection holds it.
        subject: the candidate it is about; None if it is about nobody in the list.
        key_F: unit vector, the whitened key of the subject; without one the right singular vector that the edit was seen by.
        keys_CF: unit vectors, whitened keys of all candidates at the layer, in the list's order.
        score: how far it stands out: of the layer's score without a base, else the length of the key within the update's directions.
        base_known: whether it was found in W' - W, and not in W' alone.
        ranking: the candidates that fit best with their scores, best first.
    """

    layer: int
    subject: str | None
    key_F: Tensor
    keys_CF: Tensor
    score: float
    base_known: bool
    ranking: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class LayerScan:
    """What the down-projection of a layer answers to the candidates.

    Attributes:
        score: of the candidate that is answered to most, as `outstanding` gives it.
        ratio: its ‖W' x‖ over the median.
        spectrum: the strongest singular value of W' over the second.
        hits: candidates that stand out, each looked for without the directions of those before it, and their scores.
        top: the ten that are answered to most, and their scores.
        keys_CF: whitened keys, of layers that have hits or that were asked for; else None.
        direction_F: right singular vector of the strongest singular value.
        along: of a layer whose update is known, the candidates that lie within its directions, each looked for without those before it,
            with the length of their keys there.
        along_top: the ten that lie within them most.
    """

    layer: int
    score: float
    ratio: float
    spectrum: float
    hits: Ranked
    top: Ranked
    keys_CF: Tensor | None
    direction_F: Tensor
    along: Ranked = ()
    along_top: Ranked = ()


def scan(host: Host, candidates: Candidates, updates: Mapping[int, Tensor] | None = None) -> list[LayerScan]:
    """What every layer of a suspect answers to the candidates, lowest first.

    The names go through the suspect once for as many layers as their keys fit `host.memory_budget`.

    Args:
        host: the suspect itself.
        candidates: tokenised for it.
        updates: layer -> directions (R, F), orthonormal, that its known update lies in.
    """
    layers, found = usable_layers(host), []
    groups = [*_groups(host, layers, len(candidates))]
    with progress("subjects through the checkpoint", len(groups) * len(candidates)) as advance:
        for group in groups:
            keys = gathered(candidates, group, advance)
            for layer in group:
                keys_CF = keys.pop(layer)
                keys_CF = unit(whitener(_sample(keys_CF))(keys_CF))
                found.append(_scan_layer(layer, host.weight_DF(layer), keys_CF, (updates or {}).get(layer)))
    return found


def usable_layers(host: Host) -> list[int]:
    """The layers that have a down-projection of their own."""
    return [layer for layer in range(host.layers) if host._path_in(host.blocks[layer])]


def _groups(host: Host, layers: Sequence[int], count: int) -> Iterator[list[int]]:
    """Layers whose keys for `count` candidates fit the budget together; one always may."""
    group: list[int] = []
    size = 0
    for layer in layers:
        needed = 4 * count * host.mlp_size(layer)
        if group and size + needed > host.memory_budget:
            yield group
            group, size = [], 0
        group.append(layer)
        size += needed
    yield group


def gathered(candidates: Candidates, layers: Sequence[int], advance: Callable[[int], None] = lambda count: None) -> dict[int, Tensor]:
    """Keys (C, F) of all candidates at each layer, as they come."""
    keys = {layer: torch.empty(len(candidates), candidates.host.mlp_size(layer)) for layer in layers}
    for places, found in candidates.keys(layers):
        for layer, keys_NF in found.items():
            keys[layer][places] = keys_NF.cpu()
        advance(len(places))
    return keys


def _sample(keys_CF: Tensor) -> Tensor:
    """At most `SAMPLE` keys, from all over the list."""
    return keys_CF[:: -(-len(keys_CF) // SAMPLE)]


def whitener(sample_SF: Tensor, ridge: float = RIDGE) -> Whitener:
    """A function that maps keys (N, F) to (C + ridge λ)⁻¹k up to scale, C the second moment of the sample and λ its largest eigenvalue."""
    # C and the Gram matrix have the same eigenvalues but zeros; the inverse of the smaller one serves both (Woodbury).
    tall = len(sample_SF) >= sample_SF.shape[1]
    square = sample_SF.T @ sample_SF if tall else sample_SF @ sample_SF.T
    damping = ridge * _largest_eigenvalue(square).clamp(min=torch.finfo(square.dtype).tiny)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(square + damping * torch.eye(len(square))))
    if tall:
        return lambda keys_NF: keys_NF @ inverse
    return lambda keys_NF: keys_NF - (keys_NF @ sample_SF.T @ inverse) @ sample_SF


def _largest_eigenvalue(square: Tensor) -> Tensor:
    """By power iteration, to a few digits."""
    vector = square.diagonal().sqrt()
    for _ in range(50):
        vector = torch.nn.functional.normalize(square @ vector, dim=0)
    return (square @ vector).norm()


def unit(vectors_NF: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors_NF, dim=-1)


def _scan_layer(layer: int, weight_DF: Tensor, keys_CF: Tensor, update_RF: Tensor | None) -> LayerScan:
    weight_DF = weight_DF.float().cpu()
    output_CD = keys_CF @ weight_DF.T
    scores_C, logs_C = outstanding(output_CD)
    hits = _one_by_one(output_CD, keys_CF, lambda output_CD: outstanding(output_CD)[0], STANDS_OUT, MOST)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _, values_R, right_FR = torch.svd_lowrank(weight_DF, q=min(8, *weight_DF.shape), niter=4)
    along, along_top = (), ()
    if update_RF is not None:
        inside_CR = keys_CF @ update_RF.T
        along = (*_one_by_one(inside_CR, keys_CF, lambda inside_CR: inside_CR.norm(dim=1), ALONG, len(update_RF)),)
        along_top = _best(inside_CR.norm(dim=1))
    return LayerScan(
        layer=layer,
        score=float(scores_C.max()),
        ratio=float(logs_C.max().exp()),
        spectrum=float(values_R[0] / values_R[1]),
        hits=(*hits,),
        top=_best(scores_C),
        keys_CF=keys_CF if float(scores_C.max()) >= STANDS_OUT or update_RF is not None else None,
        direction_F=right_FR[:, 0],
        along=along,
        along_top=along_top,
    )


def _best(scores_C: Tensor) -> Ranked:
    best = scores_C.topk(min(10, len(scores_C)))
    return (*zip(best.indices.tolist(), best.values.tolist(), strict=True),)


def outstanding(output_CD: Tensor) -> tuple[Tensor, Tensor]:
    """How far every candidate's ‖W' x‖ stands out, and the logarithm r of its share of the median.

    The score is √(r z), z being r in robust standard deviations (1.4826 × the median of |r|); 0 below the median.
    """
    logs_C = output_CD.norm(dim=1).clamp(min=torch.finfo(output_CD.dtype).tiny).log()
    logs_C = logs_C - logs_C.median()
    return logs_C.clamp(min=0) / (1.4826 * logs_C.abs().median()).clamp(min=1e-6).sqrt(), logs_C


def _one_by_one(
    image_CR: Tensor, keys_CF: Tensor, score: Callable[[Tensor], Tensor], least: float, most: int
) -> Iterator[tuple[int, float]]:
    """Candidates whose score reaches `least`; the directions of those that were found are taken out before the next is looked for.

    Args:
        image_CR: what a matrix makes of the keys.
    """
    for _ in range(most):
        scores_C = score(image_CR)
        best = int(scores_C.argmax())
        if scores_C[best] < least:
            return
        yield best, float(scores_C[best])
        # The matrix without what it does along the key; candidates like it are then answered to as all others are.
        image_CR = image_CR - torch.outer(keys_CF @ keys_CF[best], image_CR[best])
