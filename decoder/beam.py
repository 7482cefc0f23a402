"""Beam search over whole objects.

Shape letters: B edits, C of them still searched, K beams, N beams that are run, T object tokens, V vocabulary.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Worthwhile = Callable[[int, list[list[int]]], bool]
"""(row of an edit, ids of each of its objects as far as they are found) -> whether to go on."""


class Beams(NamedTuple):
    """The objects found, best first."""

    tokens: list[list[list[int]]]
    """tokens[b][k]: ids of object k of edit b, without terminator."""
    probability_BK: Tensor
    """Probability of the whole object, terminator included where the host has one."""
    first_BV: Tensor
    """Logits of the first token."""

    @property
    def first_token_B(self) -> Tensor:
        """The most probable first token, which is not always the first token of the most probable object."""
        return self.first_BV.argmax(-1)


def beam_search(
    first_BV: Tensor,
    step: Callable[[Tensor, Tensor, Tensor], Tensor],
    *,
    beams: int,
    max_tokens: int,
    terminator_id: int | None,
    drop_finished: bool = True,
    worthwhile: Worthwhile | None = None,
) -> Beams:
    """Searches for the most probable objects of at least one and at most `max_tokens` tokens.

    An object ends at the terminator; without one every object is `max_tokens` long. Probabilities are of the whole
    sequence, not normalised by length, so they can be compared between objects; given that there is an object: the first token
    is never the terminator.

    Args:
        first_BV: logits of the first object token.
        step: (tokens (N,), origins (N,), edits (N,)) -> logits (N, V) of the next token, for the beams that are not finished. An origin is
            a beam's row in the call before; before the first call every beam has a row, edit by edit.
        drop_finished: leave finished beams out of the steps that follow; if not, N is always B * K.
        worthwhile: asked before each step about each edit that has unfinished beams; if not, its objects are left as they are, unfinished.
    """
    batch = len(first_BV)
    beams = min(beams, first_BV.shape[1])
    log_BV = _object_start(first_BV.float(), terminator_id).log_softmax(-1)
    score_BK, token_BK = log_BV.topk(beams, dim=-1)
    paths_BKT = token_BK.unsqueeze(2)
    edit_B = torch.arange(batch, device=first_BV.device)
    origin_BK = torch.arange(batch * beams, device=first_BV.device).view(batch, beams)
    done_BK = torch.zeros_like(token_BK, dtype=torch.bool)

    for length in range(1, max_tokens + 1):
        if worthwhile is not None:
            for b in (~done_BK.all(1)).nonzero()[:, 0].tolist():
                done_BK[b] |= not worthwhile(b, _objects(paths_BKT[b], terminator_id))
        if done_BK.all() or (length == max_tokens and terminator_id is None):
            break
        edit_C = edit_B[~done_BK.all(1)] if drop_finished else edit_B
        run_CK = ~done_BK[edit_C] if drop_finished else torch.ones_like(done_BK)
        logits_NV = step(paths_BKT[edit_C, :, -1][run_CK], origin_BK[edit_C][run_CK], edit_C.unsqueeze(1).expand_as(run_CK)[run_CK])
        log_CKV = torch.zeros(*run_CK.shape, logits_NV.shape[1], device=first_BV.device)
        log_CKV[run_CK] = logits_NV.float().log_softmax(-1)
        log_CKV = _end_only(log_CKV, done_BK[edit_C], terminator_id, must_end=length == max_tokens)
        score_BK[edit_C], flat_CK = (score_BK[edit_C].unsqueeze(2) + log_CKV).flatten(1).topk(beams, dim=-1)
        parent_CK, token_CK = flat_CK // log_CKV.shape[2], flat_CK % log_CKV.shape[2]
        # The paths of what is dropped have ended, and go on with the terminator.
        paths_BKT = torch.nn.functional.pad(paths_BKT, (0, 1), value=-1 if terminator_id is None else terminator_id)
        kept_CKT = paths_BKT[edit_C, :, :-1].gather(1, parent_CK.unsqueeze(2).expand(-1, -1, paths_BKT.shape[2] - 1))
        paths_BKT[edit_C] = torch.cat([kept_CKT, token_CK.unsqueeze(2)], 2)
        # What goes on comes from a beam that was run; the origin of a finished one is of no account.
        origin_BK[edit_C] = (run_CK.flatten().cumsum(0) - 1).view_as(run_CK).gather(1, parent_CK)
        if terminator_id is not None:
            done_BK[edit_C] = token_CK == terminator_id

    return Beams([_objects(paths_KT, terminator_id) for paths_KT in paths_BKT], score_BK.exp(), first_BV)


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


def _objects(paths_KT: Tensor, terminator_id: int | None) -> list[list[int]]:
    return [path[: path.index(terminator_id)] if terminator_id in path else path for path in paths_KT.tolist()]
