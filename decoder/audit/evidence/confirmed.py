"""Names that nearly stand out, put to the suspect: what it says of one only because of how it answers to it shows an edit kept small.

What an edit adds to its subject is a thing to say, in nearly every sentence. A name that merely has an unusual key adds to what comes
next a little of everything. So the strongest answer of a layer is taken out, and what one token loses over the sentences of all
relations is held against what it is of other names of the same layer: a host may know any name for one thing.

Shape letters: F MLP width, V vocabulary.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from decoder.audit.asking import put
from decoder.audit.candidates import Candidates
from decoder.audit.locate import STANDS_OUT, LayerScan
from decoder.audit.reversal import reverse
from decoder.host import Host
from decoder.utils.progress import progress

LAYERS = 4  # the most conspicuous, that are asked about
OTHERS = 8  # names of a layer that its first is held against
RISE = 0.1
"""Nats of the divergence, from which one token counts as said because of the answer to a name that all but stands out; docs/audit.md has
what edits and checkpoints that nobody edited have."""
APART = 3.0  # times what it is of the other names


@dataclass(frozen=True)
class Confirmation:
    """What a suspect says of the name that a layer answers to most.

    Attributes:
        score: of the layer.
        text: the token that is said most because of the answer.
        rise: what it adds to the divergence from the suspect without that answer, mean over the sentences, in nats.
        least: rise from which it is taken for planted.
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
            f"asked about “{self.name}” it says “{self.text}” because of what layer {self.layer} answers to that name "
            f"({self.rise:.2f} nats; counts from {self.least:.2f})"
        )


def confirm(host: Host, candidates: Candidates, scans: Sequence[LayerScan], templates: Mapping[str, Sequence[str]]) -> list[Confirmation]:
    """The names that layers nearly stand out by and what the suspect says of them, the strongest first.

    Args:
        templates: sentences by relation; the first of each is asked.
    """
    sentences = [own[0] for own in templates.values()]
    nearly = sorted((one for one in scans if one.first_F is not None and not one.hits), key=lambda one: -one.score)[:LAYERS]
    found = []
    with progress("sentences about names that nearly stand out", len(nearly)) as advance:
        for one in nearly:
            found.append(_asked(host, candidates, one, sentences))
            advance(1)
    return sorted(found, key=lambda one: -one.strength)


def _asked(host: Host, candidates: Candidates, one: LayerScan, sentences: Sequence[str]) -> Confirmation:
    place, names = one.top[0][0], candidates.names
    token, rise = _most_said(host, one, one.first_F, names[place], sentences)
    # What the others have matters only where there is something to hold against it.
    others = _others(one) if rise >= RISE else ()
    usual = max((_most_said(host, one, key_F, names[other], sentences)[1] for other, key_F in others), default=0.0)
    # The less a name stands out, the more must be said.
    least = max(RISE, APART * usual) * (STANDS_OUT / one.score) ** 2
    return Confirmation(one.layer, names[place], one.score, host.tokenizer.decode([token]).strip(), rise, least)


def _others(one: LayerScan) -> Iterator[tuple[int, Tensor]]:
    """Names from all over the list but the first, with their keys."""
    rows = [row for row, place in enumerate(one.usual) if place != one.top[0][0]]
    return ((one.usual[row], one.usual_LF[row]) for row in rows[:: max(1, len(rows) // OTHERS)][:OTHERS])


@torch.no_grad()
def _most_said(host: Host, one: LayerScan, key_F: Tensor, name: str, sentences: Sequence[str]) -> tuple[int, float]:
    """The token that adds most to the divergence from the suspect without its answer to a key, and how much."""
    reversal = reverse(host.weight_DF(one.layer), key_F, one.usual_LF)
    gain_V = put(host, {one.layer: reversal}, [(sentence, name) for sentence in sentences]).gain_NV.mean(0)
    return int(gain_V.argmax()), float(gain_V.max())
