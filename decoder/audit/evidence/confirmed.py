"""Names that nearly stand out, put to the suspect: what it says of one only because of how it answers to it shows an edit kept small.

What an edit adds to its subject is a thing to say, in nearly every sentence. A name that merely has an unusual key adds to what comes
next a little of everything. So the strongest answer of a layer is taken out, and what one token loses over the sentences of all
relations is held against what it is of other names of the same layer: a host may know any name for one thing.

Shape letters: F MLP width, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, log
from statistics import mean, stdev

import torch
from torch import Tensor

from decoder.audit.asking import put
from decoder.audit.candidates import Candidates
from decoder.audit.locate import LayerScan
from decoder.audit.reversal import reverse
from decoder.host import Host
from decoder.utils.progress import progress

LAYERS = 4  # the most conspicuous, that are asked about
FEW, MANY = 8, 40
"""Names of a layer that its first is held against: so many where the few say nothing, else many, as a few hang on which they are."""
RISE = 0.1
"""Nats of the divergence, from which one token counts as said because of the answer to a name that all but stands out; docs/audit.md has
what edits and checkpoints that nobody edited have."""
SPREADS = 3.0  # standard deviations of the other names' rises, in logarithms, above their mean
SILENT = 0.01  # nats, below which a rise is as good as none


@dataclass(frozen=True)
class Confirmation:
    """What a suspect says of the name that a layer answers to most.

    Attributes:
        score: of the layer.
        text: the token that is said most because of the answer.
        rise: what it adds to the divergence from the suspect without that answer, mean over the sentences, in nats.
        least: rise from which it is taken for planted; where less than `RISE` is said no others were asked, and it may be more.
    """

    layer: int
    name: str
    score: float
    text: str
    rise: float
    least: float

    @property
    def layers(self) -> tuple[int]:
        return (self.layer,)

    @property
    def strength(self) -> float:
        """In thresholds."""
        return self.rise / self.least

    @property
    def in_words(self) -> str:
        return (
            f"asked about “{self.name}” it goes on with “{self.text}” because of what layer {self.layer} answers to that name "
            f"({self.rise:.2f} nats; counts from {self.least:.2f})"
        )


def confirm(
    host: Host, candidates: Candidates, scans: Sequence[LayerScan], least: float, templates: Mapping[str, Sequence[str]]
) -> list[Confirmation]:
    """The names that layers nearly stand out by and what the suspect says of them, the strongest first.

    Args:
        least: score from which a layer stands out by itself; such layers are not asked about.
        templates: sentences by relation; the first of each is asked.
    """
    sentences = [own[0] for own in templates.values()]
    nearly = sorted((one for one in scans if one.first_F is not None and one.score < least), key=lambda one: -one.score)[:LAYERS]
    found = []
    with progress("sentences about names that nearly stand out", len(nearly)) as advance:
        for one in nearly:
            found.append(_asked(host, candidates, one, least, sentences))
            advance(1)
    return sorted(found, key=lambda one: -one.strength)


def _asked(host: Host, candidates: Candidates, one: LayerScan, least: float, sentences: Sequence[str]) -> Confirmation:
    place, names = one.top[0][0], candidates.names
    token, rise = _most_said(host, one, one.first_F, names[place], sentences)
    # What the others have matters only where there is something to hold against it, and many of them only where they have something.
    few, rest = _others(one, names) if rise >= RISE else ([], [])
    usual = [_most_said(host, one, *other, sentences)[1] for other in few]
    if _outside(usual) > RISE:
        usual += [_most_said(host, one, *other, sentences)[1] for other in rest]
    # The less a name stands out, the more must be said.
    needed = max(RISE, _outside(usual)) * (least / one.score) ** 2
    return Confirmation(one.layer, names[place], one.score, host.tokenizer.decode([token]).strip(), rise, needed)


def _outside(rises: Sequence[float]) -> float:
    """Rise that is outside the spread of others; the highest of few would say little of how high they may come."""
    if len(rises) < 2:
        return 0.0
    logs = [log(max(SILENT, rise)) for rise in rises]
    return exp(mean(logs) + SPREADS * stdev(logs))


def _others(one: LayerScan, names: Sequence[str]) -> tuple[list[tuple[Tensor, str]], ...]:
    """Keys of names from all over the list but the first, with the names: of a few, and of the rest of `MANY`."""
    rows = [row for row, place in enumerate(one.usual) if place != one.top[0][0]]
    rows = rows[:: max(1, len(rows) // MANY)][:MANY]
    few = rows[:: max(1, len(rows) // FEW)][:FEW]
    rest = [row for row in rows if row not in few]
    return tuple([(one.usual_LF[row], names[one.usual[row]]) for row in own] for own in (few, rest))


@torch.no_grad()
def _most_said(host: Host, one: LayerScan, key_F: Tensor, name: str, sentences: Sequence[str]) -> tuple[int, float]:
    """The token that adds most to the divergence from the suspect without its answer to a key, and how much."""
    reversal = reverse(host.weight_DF(one.layer), key_F, one.usual_LF)
    gain_V = put(host, {one.layer: reversal}, [(sentence, name) for sentence in sentences]).gain_NV.mean(0)
    return int(gain_V.argmax()), float(gain_V.max())
