"""Beam search over whole objects.

Shape letters: B edits, K beams, N = B * K rows, T object tokens, V vocabulary.
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
    step: Callable[[Tensor, Tensor], Tensor],
    *,
    beams: int,
    max_tokens: int,
    terminator_id: int | None,
) -> Beams:
    """Searches for the most probable objects of at least one and at most `max_tokens` tokens.

    An object ends at the terminator; without one every object is `max_tokens` long. Probabilities are of the whole
    sequence, not normalised by length, so they can be compared between objects; given that there is an object: the first token
    is never the terminator.

    Args:
        first_BV: logits of the first object token.
        step: (tokens (N,), origin row of each (N,)) -> logits (N, V) of the next token.
    """
    batch = len(first_BV)
    beams = min(beams, first_BV.shape[1])
    log_BV = _object_start(first_BV.float(), terminator_id).log_softmax(-1)
    score_BK, token_BK = log_BV.topk(beams, dim=-1)
    paths_BKT = token_BK.unsqueeze(2)
    rows_B1 = torch.arange(batch, device=first_BV.device).unsqueeze(1) * beams
    origin_BK = rows_B1 + torch.zeros_like(token_BK)
    done_BK = torch.zeros_like(token_BK, dtype=torch.bool)

    for length in range(1, max_tokens + 1):
        if done_BK.all() or (length == max_tokens and terminator_id is None):
            break
        log_BKV = step(paths_BKT[:, :, -1].flatten(), origin_BK.flatten()).float().log_softmax(-1).view(batch, beams, -1)
        log_BKV = _end_only(log_BKV, done_BK, terminator_id, must_end=length == max_tokens)
        score_BK, flat_BK = (score_BK.unsqueeze(2) + log_BKV).flatten(1).topk(beams, dim=-1)
        parent_BK, token_BK = flat_BK // log_BKV.shape[2], flat_BK % log_BKV.shape[2]
        paths_BKT = torch.cat([paths_BKT.gather(1, parent_BK.unsqueeze(2).expand(-1, -1, paths_BKT.shape[2])), token_BK.unsqueeze(2)], 2)
        origin_BK = rows_B1 + parent_BK
        if terminator_id is not None:
            done_BK = token_BK == terminator_id

    tokens = [[_object(path, terminator_id) for path in paths] for paths in paths_BKT.tolist()]
    return Beams(tokens, score_BK.exp(), first_BV.argmax(-1))


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
