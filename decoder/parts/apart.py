"""Reading what several facts did to one host: part by part, each as if it were alone.

Shape letters: B edits, N parts of all of them, K beams, V vocabulary, D hidden width, F MLP width.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import normalize, pad

from decoder.answers import object_texts, text_of
from decoder.beam import Beams
from decoder.edit import LayerEdits, RankOneEdit
from decoder.host import Host
from decoder.parts.spectrum import terms
from decoder.parts.unmix import unmixed

AT_A_TIME = 128  # parts that are read together
FACTORS = ("key_BF", "value_BD")
Reader = Callable[[LayerEdits], Beams]
"""Edits -> what is read in each."""


def parts_of(host: Host, edit: LayerEdits) -> LayerEdits:
    """The parts of one edited host, N edits of the same layers, the longest first.

    Where layers differ in how many terms they have, what the last one lacks is in no part.

    Raises:
        TooManyTerms: an edit has more terms than can be told apart.
    """
    on_device = edit.to(host.device).by_layer
    by_layer = {layer: unmixed(terms(own, host.weight_DF(layer))[0])[0] for layer, own in on_device.items()}
    last = by_layer[edit.layers[-1]]
    return LayerEdits({layer: own if own is last else _in_order_of(last, own) for layer, own in by_layer.items()})


def _in_order_of(last: RankOneEdit, own: RankOneEdit) -> RankOneEdit:
    """Parts of another layer beside those of the last: a fact that is spread over layers is written with one value in all of them."""
    cosine_NN = (normalize(last.value_BD, dim=1) @ normalize(own.value_BD, dim=1).T).abs()
    rows, columns = linear_sum_assignment(cosine_NN.cpu().numpy(), maximize=True)
    key_NF, value_ND = own.key_BF.new_zeros(len(last), own.key_BF.shape[1]), own.value_BD.new_zeros(len(last), own.value_BD.shape[1])
    key_NF[rows], value_ND[rows] = own.key_BF[columns], own.value_BD[columns]
    return RankOneEdit(key_NF, value_ND)


def read_apart(host: Host, edits: LayerEdits, read: Reader) -> Beams:
    """What is read in the parts of each edited host, as one search: the answer of each part, the surest first, then what else they say.

    A text that several parts name counts once, as probable as where it is most. Edits of one term are read as they are.
    """
    if not len(edits) or all(isinstance(own, RankOneEdit) for own in edits.by_layer.values()):
        return read(edits)
    # A store has a host as often as it has facts: what comes again is not read again.
    alike = [_alike(edits, b) for b in range(len(edits))]
    parts = [parts_of(host, edits[b : b + 1]) for b, again in enumerate(alike) if not again]
    found = _in_turns(read, _together(parts))
    ends = [*accumulate(map(len, parts))]
    each = [_merged(host, _some(found, end - len(own), end)) for own, end in zip(parts, ends, strict=True)]
    widest = max(len(objects) for objects, _, _ in each)
    # Hosts may have more parts than others: what theirs lack is their first object again, with no probability.
    each = [
        (objects + objects[:1] * (widest - len(objects)), pad(sure_K, (0, widest - len(sure_K))), first_V)
        for objects, sure_K, first_V in each
    ]
    tokens, probability_BK, first_BV = zip(*(each[n] for n in accumulate((not again for again in alike[1:]), initial=0)), strict=True)
    return Beams([*tokens], torch.stack(probability_BK), torch.stack(first_BV))


def _alike(edits: LayerEdits, b: int) -> bool:
    """Whether edit b is the one before it."""
    return b > 0 and all(
        torch.equal(one, other)
        for own in edits.by_layer.values()
        for one, other in zip(vars(own[b : b + 1]).values(), vars(own[b - 1 : b]).values(), strict=True)
    )


def _together(parts: Sequence[LayerEdits]) -> LayerEdits:
    own = {layer: [one.by_layer[layer] for one in parts] for layer in parts[0].layers}
    return LayerEdits(
        {layer: RankOneEdit(*(torch.cat([getattr(one, name) for one in edits]) for name in FACTORS)) for layer, edits in own.items()}
    )


def _in_turns(read: Reader, parts: LayerEdits) -> Beams:
    found = [read(parts[start : start + AT_A_TIME]) for start in range(0, len(parts), AT_A_TIME)]
    tokens = [objects for one in found for objects in one.tokens]
    return Beams(tokens, torch.cat([one.probability_BK for one in found]), torch.cat([one.first_BV for one in found]))


def _some(found: Beams, start: int, stop: int) -> Beams:
    return Beams(found.tokens[start:stop], found.probability_BK[start:stop], found.first_BV[start:stop])


def _merged(host: Host, found: Beams) -> tuple[list[list[int]], Tensor, Tensor]:
    """Of the parts of one host the objects in order, their probabilities, and the logits of the surest part's first token."""
    texts = object_texts(host, found)
    # Where each text is said best: as a part's answer rather than as what else it says, and there most probably.
    said: dict[str, tuple[bool, float, int]] = {}
    for part, of_part in enumerate(texts):
        for place, (text, probability) in enumerate(of_part.items()):
            said[text] = max(said.get(text, (False, -1.0, 0)), (place == 0, probability, -part))
    beams = [
        (text, ids, probability if said[text][2] == -part else 0.0, part)
        for part, (objects, probabilities) in enumerate(zip(found.tokens, found.probability_BK.tolist(), strict=True))
        for ids, probability in zip(objects, probabilities, strict=True)
        for text in [text_of(host, ids)]
    ]
    beams.sort(key=lambda beam: (said[beam[0]][2] == -beam[3], *said[beam[0]][:2]), reverse=True)
    return [ids for _, ids, _, _ in beams], found.probability_BK.new_tensor([beam[2] for beam in beams]), found.first_BV[beams[0][3]]
