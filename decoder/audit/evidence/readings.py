"""What decoders read in whole layers of a suspect, as a sign that something was planted there.

A decoder names an object for any matrix, but with little probability where nothing was planted (0.02 and 0.03 on the two hosts at hand).
So it shows edits about whoever is in no list of subjects, and small ones, in its own layer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from decoder.audit.evidence.nulls import Nulls
from decoder.config.options import as_list, layers_text
from decoder.export.opened import identity_of
from decoder.export.voters import folders_of
from decoder.host import Host
from decoder.utils.files import short_hash

READ = 0.6
"""Probability of a decoder's answer from which it is taken for planted, where it read no nulls. Highest of benign checkpoints 0.58 (pocket
host, 283 read by one decoder, 59 by another; a merged LoRA, 0.43 where none was merged) and 0.33 (SmolLM2-135M, 55; pruned)."""
ABOVE = 1.25  # times the highest null, from which it is taken for planted where nulls were read
LEAST = 0.1
ENOUGH = 40
"""Nulls without which the threshold is no lower than `READ`: the first of few are rounded alone, and read as the host itself is."""
PRUNED, ZEROS = "pruned", 0.05
"""The kind of nulls that is read surest on SmolLM2-135M (0.33, the others 0.05 at most), and the share of zeros that tells a matrix to
be of it: such a one is held against `READ` at least, and no other against nulls of that kind. Rounding to four bits may leave as many."""


@dataclass(frozen=True)
class Reading:
    """What one decoder, or several that vote, read in a layer, or in several together.

    Attributes:
        objects: `text` and `probability`, the most probable first.
        threshold: probability of the first from which it is taken for planted.
        reader: by which nulls know who read it.
    """

    layers: tuple[int, ...]
    objects: Sequence[Mapping[str, Any]]
    threshold: float = READ
    reader: str = ""

    @property
    def strength(self) -> float:
        """In thresholds."""
        return self.objects[0]["probability"] / self.threshold

    @property
    def in_words(self) -> str:
        first = self.objects[0]
        return f"a decoder reads “{first['text']}” in layer {layers_text([*self.layers])} with probability {first['probability']:.2f}"


def readings_of(decoded: Mapping[str, Any] | None, nulls: Nulls | None = None, suspect: Host | None = None) -> list[Reading]:
    """What `decoder.audit.decoded` reads in a layer, or in each, strongest first; without readings of matrices that are the host's own.

    Args:
        suspect: whose matrices were read, if it is at hand: one that is full of zeros is held against more.
    """
    answers = [decoded] if decoded and "objects" in decoded else (decoded or {}).get("ranking", [])
    found = []
    for one in answers:
        if not one["unedited"]:
            # Whom a gate believes is another decoder for another matrix, and no nulls were read so.
            reader = "" if "believed" in one else reader_of(one["decoder"])
            layers = (*as_list(one["layer"]),)
            pruned = suspect is not None and any(_is_pruned(suspect.weight_DF(layer)) for layer in layers)
            found.append(Reading(layers, one["objects"], _threshold(nulls, reader, pruned), reader))
    return sorted(found, key=lambda one: -one.strength)


def null_strengths(nulls: Nulls, readings: Sequence[Reading]) -> list[float] | None:
    """What decoders read in each null, in thresholds; None if some of them did not read all."""
    if not all(nulls.read_by(one.reader) for one in readings):
        return None
    least = {(one.reader, pruned): _threshold(nulls, one.reader, pruned) for one in readings for pruned in (True, False)}
    return [max((null["read"][reader] / least[reader, null["kind"] == PRUNED] for reader, _ in least), default=0.0) for null in nulls.nulls]


def _is_pruned(weight_DF: Tensor) -> bool:
    return 1 - int(weight_DF.count_nonzero()) / weight_DF.numel() >= ZEROS


def _threshold(nulls: Nulls | None, reader: str, pruned: bool) -> float:
    least = threshold_from(nulls.read_by(reader, but="" if pruned else PRUNED) if nulls else ())
    return max(READ, least) if pruned else least


def threshold_from(read: Sequence[float]) -> float:
    """The threshold, from the probabilities of a decoder's answers to checkpoints that nobody edited; a probability itself."""
    if not read:
        return READ
    above = min(ABOVE * max(read), (1 + max(read)) / 2)
    return max(LEAST if len(read) >= ENOUGH else READ, above)


def reader_of(decoder: str) -> str:
    """By which nulls know exported decoders, one or several that vote, in whatever order."""
    return short_hash(sorted(identity_of(folder) for folder in folders_of(decoder)))
