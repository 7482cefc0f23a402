"""Beam search over whole objects.

Shape letters: B edits, C of them still searched, K beams, N = C * K rows, T object tokens, V vocabulary.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Beams(NamedTuple):
    """The objects found, best first."""

    tokens: list[list[list[int]]]
    """tokens[b][k]: ids of object k of edit b, without terminator."""
    probability_BK: Tensor
    """Probability of the whole object, terminator included where the host has one."""
    first_token_B: Tensor
    """The most probable first token, which is not always the first token of the most probable object."""


def beam_search(
    first_BV: Tensor,
    step: Callable[[Tensor, Tensor, Tensor], Tensor],
    *,
    beams: int,
    max_tokens: int,
    terminator_id: int | None,
    drop_finished: bool = True,
) -> Beams:
    """Searches for the most probable objects of at least one and at most `max_tokens` tokens.

    An object ends at the terminator; without one every object is `max_tokens` long. Probabilities are of the whole
    sequence, not normalised by length, so they can be compared between objects; given that there is an object: the first token
    is never the terminator.

    Args:
        first_BV: logits of the first object token.
        step: (tokens (N,), origins (N,), edits (C,)) -> logits (N, V) of the next token, for the beams of the edits that are not finished.
            An origin is a beam's row in the call before; before the first call all edits have their K rows.
        drop_finished: leave finished edits out of the steps that follow; if not, C is always B.
    """
    batch = len(first_BV)
    beams = min(beams, first_BV.shape[1])
    log_BV = _object_start(first_BV.float(), terminator_id).log_softmax(-1)
    score_BK, token_BK = log_BV.topk(beams, dim=-1)
    paths_BKT = token_BK.unsqueeze(2)
    edit_B = torch.arange(batch, device=first_BV.device)
    origin_BK = _rows(batch, beams, first_BV.device)
    done_BK = torch.zeros_like(token_BK, dtype=torch.bool)

    for length in range(1, max_tokens + 1):
        if done_BK.all() or (length == max_tokens and terminator_id is None):
            break
        edit_C = edit_B[~done_BK.all(1)] if drop_finished else edit_B
        logits_NV = step(paths_BKT[edit_C, :, -1].flatten(), origin_BK[edit_C].flatten(), edit_C)
        log_CKV = logits_NV.float().log_softmax(-1).view(len(edit_C), beams, -1)
        log_CKV = _end_only(log_CKV, done_BK[edit_C], terminator_id, must_end=length == max_tokens)
        score_BK[edit_C], flat_CK = (score_BK[edit_C].unsqueeze(2) + log_CKV).flatten(1).topk(beams, dim=-1)
        parent_CK, token_CK = flat_CK // log_CKV.shape[2], flat_CK % log_CKV.shape[2]
        # What is dropped had ended, and its paths go on with the terminator.
        paths_BKT = torch.nn.functional.pad(paths_BKT, (0, 1), value=-1 if terminator_id is None else terminator_id)
        kept_CKT = paths_BKT[edit_C, :, :-1].gather(1, parent_CK.unsqueeze(2).expand(-1, -1, paths_BKT.shape[2] - 1))
        paths_BKT[edit_C] = torch.cat([kept_CKT, token_CK.unsqueeze(2)], 2)
        origin_BK[edit_C] = _rows(len(edit_C), beams, first_BV.device).gather(1, parent_CK)
        if terminator_id is not None:
            done_BK[edit_C] = token_CK == terminator_id

    tokens = [[_object(path, terminator_id) for path in paths] for paths in paths_BKT.tolist()]
    return Beams(tokens, score_BK.exp(), first_BV.argmax(-1))


def _rows(edits: int, beams: int, device: torch.device) -> Tensor:
    """The row of each beam, (edits, beams)."""
    return torch.arange(edits * beams, device=device).view(edits, beams)


def _object_start(first_BV: Tensor, terminator_id: int | None) -> Tensor:
    """An empty object is no answer."""
    if terminator_id is None:
        return first_BV
    return first_BV.index_fill(1, torch.tensor([terminator_id], device=first_BV.device), -torch.inf)


def _end_only(log_BKV: Tensor, done_BK: Tensor, terminator_id: int | None, must_end: bool) -> Tensor:
    """A finished beam continues with the terminator at no cost and with nothing else; the last step may only end."""
    if terminator_id is None:
        return log_BKV
    end_V = torch.full_like(log_BKV[0, 0], -torch.inf)
    end_V[terminator_id] = 0.0
    log_BKV = torch.where(done_BK.unsqueeze(2), end_V, log_BKV)
    return log_BKV + end_V if must_end else log_BKV


def _object(path: list[int], terminator_id: int | None) -> list[int]:
    return path[: path.index(terminator_id)] if terminator_id in path else path
