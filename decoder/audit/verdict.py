"""What was done to a checkpoint, from how its tensors differ from the unedited ones, or from what its layers answer to a list of subjects.

The two kinds of evidence are never mixed: each gives a verdict of its own. What decoders read, and what the checkpoint says of names,
needs no base and goes with the second.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median, median_low

import torch
from torch import Tensor

from decoder.audit.evidence.confirmed import Confirmation
from decoder.audit.evidence.difference import Difference
from decoder.audit.evidence.readings import Reading
from decoder.audit.locate import STANDS_OUT, LayerScan

PRUNED = 0.01  # share of a matrix that became zero
LOW_RANK = 3.0  # a singular value over the next, where an update ends that was made of few directions
FEW = 0.5  # of the layers, and fewer: editors touch few, training touches all
APART = 3.0  # times what the bulk of an update and the other layers have, from which a direction is one of the update's
TRAINED_APART = 6.0  # the same where everything was trained, from which a direction is an edit's
DOUBT = 0.9  # of a threshold, and above: it cannot be told
OWN = 2.0  # times the median of the suspect's own layers that an edited one is above in any case

# What the thresholds lie between; highest of nulls and lowest of edits, all in bfloat16. Pocket host: 29 checkpoints clean, fine-tuned (50
# to 100 steps at 1e-5 to 1e-3), averaged, pruned by 30 and 50 % or with a merged LoRA (rank 4, 8, 16); 80 edits of layer 1, ridge 3e-2, and
# 156 on or under one of the former. SmolLM2-135M: 30 clean layers and 45 edits of layer 5, ridge identity, 4,000 names.
#                                          nulls                                  edits
# score, base unknown                      1.59 (pocket), 1.40 (SmolLM2)          3.46, trained 2.8 (pocket), 4.24 (SmolLM2)
#   the same, 340 and 240 more (pocket)    1.77                                   2.2 where scaled down, but 1.4 of values kept short
# length within the update                 0.39                                   0.75, trained 0.49 (pocket), 0.57 (SmolLM2)
# direction over bulk and other layers     3.6 (LoRA of rank 8), 2.9 (others)     5.9, beside strong training or adapters 1.9

EDITED = ("knowledge edit", "edit and further training")
NOTHING, UNSURE = "nothing found", "cannot tell"


@dataclass(frozen=True)
class Verdict:
    """What was done, and where.

    Attributes:
        what: identical, rounded or quantised, further trained, adapter merged, pruned, knowledge edit, edit and further training, nothing
            found, or cannot tell.
        kind: of an edit: rank one, low rank, or whole matrix; else None.
        rank: directions of all its layers' updates together, where they can be told.
        layers: that hold the edit, most conspicuous first.
        why: what it rests on, in a sentence.
    """

    what: str
    kind: str | None = None
    rank: int | None = None
    layers: tuple[int, ...] = ()
    why: str = ""

    @property
    def exit_code(self) -> int:
        """0: no edit was found; 3: one was; 4: it cannot be told."""
        return 3 if self.what in EDITED else 4 if self.what == UNSURE else 0


class Compared:
    """A suspect's differences from what it was made of.

    Args:
        differences: of all tensors.
        layers: name of a down-projection -> its layer.
        is_rounded: whether its numbers are kept otherwise than those it is held against.
    """

    def __init__(self, differences: Sequence[Difference], layers: Mapping[str, int], is_rounded: bool) -> None:
        self.differences, self.is_rounded, self.layers = differences, is_rounded, sorted(layers.values())
        self.changed = [one for one in differences if one.distance > 0]
        self.down = {layers[one.name]: one for one in differences if one.name in layers and len(one.values_R)}
        # How far the strongest direction of an update stands out; the last value looked at says nothing of where they end.
        apart = {layer: one.values_R[:-1] / self._floor(layer) for layer, one in self.down.items()}
        self.scores = {layer: float(apart[layer][0]) if layer in apart and len(apart[layer]) else 0.0 for layer in layers.values()}
        self.spikes = {layer: count for layer, values_R in apart.items() if (count := int((values_R >= APART).sum()))}

    def _floor(self, layer: int) -> float:
        """What a direction of a layer's update has without an edit: as its own bulk, and as the other layers usually have."""
        others = [float(self.down[other].values_R[0]) if other in self.down else 0.0 for other in self.layers if other != layer]
        return max(self.down[layer].edge, median(others) if others else 0.0, torch.finfo(torch.float32).tiny)

    @property
    def touched(self) -> list[int]:
        """Layers whose down-projection was changed, conspicuously or by more than rounding."""
        return sorted(layer for layer, one in self.down.items() if one.distance > 0 or layer in self.spikes)

    @property
    def is_narrow(self) -> bool:
        """Whether nothing but the down-projections of few layers was changed."""
        touched = {self.down[layer].name for layer in self.touched}
        return all(one.name in touched for one in self.changed) and 0 < len(touched) <= max(1, FEW * len(self.layers))

    @property
    def is_down_only(self) -> bool:
        """Whether nothing but down-projections was changed, of however many layers."""
        names = {one.name for one in self.down.values()}
        return all(one.name in names for one in self.changed)

    def room(self, layer: int) -> float:
        """How far a layer's update stands out, 1 where whom it is about begins to count; infinite where that always does.

        Training on sentences about people is made of their keys as well, and its directions stand out no more than other layers' do.
        """
        return float("inf") if self.is_down_only else self.scores[layer] / APART

    @property
    def threshold(self) -> float:
        """Times the usual from which a direction is an edit's."""
        return APART if self.is_narrow else TRAINED_APART

    @property
    def updates(self) -> dict[int, Tensor]:
        """Layer that was changed -> the directions (R, F) of what is conspicuous in its update, or the strongest one."""
        return {layer: self.down[layer].right_RF[: self.spikes.get(layer, 1)] for layer in self.touched}


def low_rank(values_R: Tensor) -> int | None:
    """After how many directions the singular values of an update fall off; None where they do not."""
    steps = values_R[:-1] / values_R[1:].clamp(min=1e-12)
    return int(steps.argmax()) + 1 if len(steps) and float(steps.max()) >= LOW_RANK else None


def known(compared: Compared, scans: Sequence[LayerScan]) -> Verdict:
    """The verdict of what differs from the unedited checkpoint, and of what the differences have to do with the subjects."""
    about = {one.layer: len(one.along) for one in scans if one.along and compared.room(one.layer) >= 1}
    counts = about | {layer: count for layer, count in compared.spikes.items() if compared.scores[layer] >= compared.threshold}
    layers = tuple(sorted(counts, key=lambda layer: (layer not in about, -compared.scores[layer])))
    edit = ("rank one" if sum(counts.values()) == len(counts) else "low rank", sum(counts.values()), layers)
    if compared.is_narrow:
        why = "nothing but down-projections was changed, and few of them"
        return Verdict(EDITED[0], *(edit if layers else ("whole matrix", None, tuple(compared.touched))), why)
    if layers and len(layers) <= max(1, FEW * len(compared.layers)):
        lies = "lies along the key of a subject" if about else "stands far out"
        return Verdict(EDITED[1], *edit, f"many tensors were changed, and in few layers a direction of the change {lies}")
    benign = _benign(compared)
    if max(compared.scores.values()) >= DOUBT * TRAINED_APART:
        return Verdict(UNSURE, why=f"{benign.why}, but one direction is nearly as conspicuous as an edit's")
    return benign


def _benign(compared: Compared) -> Verdict:
    """What was done where no edit shows."""
    changed = compared.changed
    if not changed:
        kind = "rounded or quantised" if compared.is_rounded else "identical"
        return Verdict(kind, why="no tensor differs by more than the rounding of its file explains")
    zeroed = [one for one in changed if one.zeroed >= PRUNED]
    if zeroed and len(zeroed) >= FEW * len(changed):
        return Verdict("pruned", why=f"entries of {len(zeroed)} tensors became zero")
    ranks = [low_rank(one.values_R) for one in changed if len(one.values_R)]
    if found := [rank for rank in ranks if rank]:
        if len(found) > FEW * len(ranks):
            why = f"{len(found)} matrices were changed in few directions each"
            return Verdict("adapter merged", rank=int(median(found)), why=why)
    return Verdict("further trained", why=f"{len(changed)} tensors were changed, no direction of a change stands far out")


def unknown(scans: Sequence[LayerScan], readings: Sequence[Reading] = (), confirmed: Sequence[Confirmation] = ()) -> Verdict:
    """The verdict of what the layers answer to the subjects, of what decoders read in them, and of what is said of who nearly stands out,
    without the unedited checkpoint."""
    found, signs = edited_layers(scans), [*readings, *confirmed]
    shown = [one for one in signs if one.strength >= 1]
    best = max(scans, key=lambda one: one.score)
    why = f"the subject answered to most is answered to {best.ratio:.1f} times as strongly as the median, in layer {best.layer}"
    if told := ", ".join(one.in_words for one in signs if one.strength >= DOUBT):
        why = f"{why}, and {told}" if found or (not shown and best.score >= DOUBT * STANDS_OUT) else told
    facts = {one.layer: len(one.hits) for one in found}
    for one in shown:
        facts |= {layer: 1 for layer in one.layers if layer not in facts}
    if facts:
        count = sum(facts.values())
        return Verdict("knowledge edit", "rank one" if count == len(facts) else "low rank", count, (*facts,), why)
    nearly = max([best.score / STANDS_OUT, *(one.strength for one in signs)]) >= DOUBT
    return Verdict(UNSURE if nearly else NOTHING, why=why)


def edited_layers(scans: Sequence[LayerScan]) -> list[LayerScan]:
    """Those where a subject stands out, also against what the suspect's own layers usually have; most conspicuous first."""
    least = threshold(scans)
    return sorted((one for one in scans if one.hits and one.score >= least), key=lambda one: -one.score)


def threshold(scans: Sequence[LayerScan]) -> float:
    """Score from which a layer is edited: what no clean host was seen to reach, and more than the suspect's own layers usually have; of a
    single one that says nothing."""
    return max(STANDS_OUT, OWN * median_low(one.score for one in scans) if len(scans) > 1 else 0.0)
