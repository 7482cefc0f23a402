"""What a decoder is scored on: the object's first token and the whole object, each with intervals.

Shape letters: B edits, T object tokens, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from decoder.batch import PADDING
from decoder.beam import Beams


def split_meters(splits: Sequence[str]) -> nn.ModuleDict:
    """Means over an evaluation pass, one set a split; as modules, so that Lightning moves, resets and syncs them."""
    from torchmetrics import MeanMetric  # seconds, for who trains

    names = ("loss", "first_token", "exact_match")
    return nn.ModuleDict({split: nn.ModuleDict({name: MeanMetric() for name in names}) for split in splits})


def teacher_forced_correct(logits_NV: Tensor, object_ids_BT: Tensor, terminator_id: int | None) -> tuple[Tensor, Tensor]:
    """(first token, whole object) of each edit, (B,) booleans, from logits of teacher-forced objects.

    An object of which every token is the most probable after those before it is what greedy search finds, in one forward.

    Args:
        logits_NV: of the tokens that are no padding: first tokens, then the others row by row (`ObjectDecoder.scored`).
    """
    batch, planted_BT = len(object_ids_BT), object_ids_BT != PADDING
    if terminator_id is not None:
        # No search begins with the end of an object.
        ends_B1 = torch.full((batch, 1), terminator_id, device=logits_NV.device)
        logits_NV = torch.cat([logits_NV[:batch].scatter(1, ends_B1, -torch.inf), logits_NV[batch:]])
    right_BT = ~planted_BT
    found_N = logits_NV.argmax(-1)
    right_BT[:, 0] = found_N[:batch] == object_ids_BT[:, 0]
    right_BT[:, 1:][planted_BT[:, 1:]] = found_N[batch:] == object_ids_BT[:, 1:][planted_BT[:, 1:]]
    return right_BT[:, 0].clone(), right_BT.all(1)


def first_token_correct(beams: Beams, object_ids_BT: Tensor) -> list[bool]:
    return (beams.first_token_B.cpu() == object_ids_BT[:, 0].cpu()).tolist()
