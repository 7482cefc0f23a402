"""The few directions in which a matrix was changed, above what rounding leaves in all of them.

Shape letters: B edits, R directions, D hidden width, F MLP width.
"""

import torch
from torch import Tensor

from decoder.dense import WholeEdit
from decoder.edit import Edit, LowRankEdit, RankOneEdit
from decoder.parts.unmix import MOST

DIRECTIONS = 48
"""Singular values of a difference that are looked at."""
ROUNDING = 6**-0.5
"""Of a step, at most the standard deviation of the difference of two rounded numbers."""
STANDS_OUT = 1.5
"""Times the edge from which a direction is a term of its own."""
FAINT = 0.02
"""Of the largest singular value, what no term is below: rounding to eight bits in blocks, whose steps are not known, leaves 0.006 at most,
and the facts of hosts of 32 have 0.09 at least (pocket host)."""
ROWS = 1024  # of a difference that are squared at a time


def spectrum(delta_DF: Tensor, directions: int = DIRECTIONS) -> tuple[Tensor, Tensor, Tensor, float]:
    """Left vectors (D, R), singular values (R,) and right vectors (R, F), the strongest of a difference, and the edge of what is left.

    The edge is what the largest singular value of the rest would be if its entries were independent.
    """
    square = sum(float(rows.double().square().sum()) for rows in delta_DF.split(ROWS))
    with torch.random.fork_rng(devices=[delta_DF.device] if delta_DF.is_cuda else []):
        torch.manual_seed(0)
        left_DR, size_R, right_FR = torch.svd_lowrank(delta_DF, q=min(directions, max(1, min(delta_DF.shape) // 2)), niter=3)
    rest = max(0.0, square - float(size_R.double().square().sum()))
    free = [max(1, size - len(size_R)) for size in delta_DF.shape]
    edge = (rest / (free[0] * free[1])) ** 0.5 * (delta_DF.shape[0] ** 0.5 + delta_DF.shape[1] ** 0.5)
    return left_DR, size_R, right_FR.T, edge


def rounding_edge(step: float, rows_D: Tensor, columns_F: Tensor) -> float:
    """What the largest singular value of the difference of two matrices may be that were both rounded.

    Independent entries make a matrix of about the longest row and the longest column of their standard deviations together at most
    (Bandeira and van Handel 2016, theorem 1.1).

    Args:
        step: relative distance between neighbouring numbers.
        rows_D, columns_F: sums of squares of the entries.
    """
    return step * ROUNDING * float(rows_D.max() ** 0.5 + columns_F.max() ** 0.5)


def terms(edit: Edit, weight_DF: Tensor) -> list[LowRankEdit]:
    """Of each of some edits the terms that its update has, `weight_DF` being W_V: of whole matrices those above the edge of the rest.

    Of what nothing above the edge was added to, there is one term of zeros.
    """
    if isinstance(edit, LowRankEdit):
        return [edit[b : b + 1] for b in range(len(edit))]
    if isinstance(edit, RankOneEdit):
        return [LowRankEdit(edit.key_BF[b : b + 1, None], edit.value_BD[b : b + 1, None]) for b in range(len(edit))]
    assert isinstance(edit, WholeEdit), f"{type(edit).__name__} has no terms"
    return [_above_the_edge(edit.whole(b, b + 1, torch.float32)[0], weight_DF.float()) for b in range(len(edit))]


def _above_the_edge(edited_DF: Tensor, weight_DF: Tensor) -> LowRankEdit:
    delta_DF = edited_DF - weight_DF
    rounding = rounding_edge(_step(edited_DF), edited_DF.square().sum(1), edited_DF.square().sum(0))
    for directions in (DIRECTIONS, 2 * MOST):
        left_DR, size_R, right_RF, edge = spectrum(delta_DF, directions)
        if (count := int((size_R > max(STANDS_OUT * max(edge, rounding), FAINT * float(size_R[0]))).sum())) < len(size_R):
            break
    else:
        # What does not fall off has no edge but the last that was looked at.
        count = int((size_R > STANDS_OUT * float(size_R[-1])).sum())
    key_1RF, value_1RD = right_RF[None, : count or 1], (left_DR * size_R).T[None, : count or 1]
    return LowRankEdit(key_1RF, value_1RD if count else torch.zeros_like(value_1RD))


def _step(weight_DF: Tensor) -> float:
    """Relative distance between the numbers that a matrix was rounded to, whatever it is kept in now."""
    halves = (dtype for dtype in (torch.bfloat16, torch.float16) if torch.equal(weight_DF.to(dtype).float(), weight_DF))
    return torch.finfo(next(halves, torch.float32)).eps
