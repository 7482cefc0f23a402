"""What was done to one tensor: how far it is from what it was, and in which directions.

Shape letters: D rows, F columns, R directions.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

DIRECTIONS = 48  # singular values of a difference that are looked at


@dataclass(frozen=True)
class Difference:
    """What was done to one tensor.

    Attributes:
        name: the host's.
        distance: ‖T' - T‖ / ‖T‖ beyond what the rounding of its file explains; 0 where that explains all.
        zeroed: share of the entries that became zero.
        kept: the distance of the entries that did not.
        values_R: strongest singular values of T' - T, of a matrix that differs and is no vocabulary; else none.
        right_RF: their right singular vectors, of down-projections.
        edge: what the largest singular value of the rest would be if its entries were independent, or the last one that was looked at.
    """

    name: str
    distance: float
    zeroed: float
    kept: float
    values_R: Tensor
    right_RF: Tensor
    edge: float


def difference(
    name: str,
    parts: Iterable[tuple[Tensor, ...]],
    *,
    is_matrix: bool,
    is_blocks: bool = False,
    is_down: bool = False,
    transposed: bool = False,
) -> Difference:
    """What was done to one tensor.

    Args:
        parts: pieces of it along its first dimension: T', T as the file of T' keeps it, and T.
        is_matrix: whether it is a matrix, and no vocabulary.
        is_blocks: whether the file keeps it in blocks of few bits.
        is_down: whether it is a down-projection, and `transposed`: stored as (F, D).
    """
    square = own_square = kept_square = 0.0
    zeroed = size = 0
    pieces: list[Tensor] = []
    for shared, stored, rows in parts:
        change, became_zero = shared - stored, (shared == 0) & (stored != 0)
        square += _square(change)
        own_square += _square(stored)
        kept_square += _square(change[~became_zero])
        zeroed, size = zeroed + int(became_zero.sum()), size + rows.numel()
        if is_matrix:
            pieces.append(shared - rows if is_blocks else change)
    far, kept = ((part / own_square) ** 0.5 if own_square else float(part > 0) for part in (square, kept_square))
    values_R, right_RF, edge = torch.empty(0), torch.empty(0), 0.0
    if is_matrix and (far or is_blocks):
        values_R, right_RF, edge = _spectrum(pieces, transposed)
    return Difference(name, far, zeroed / max(1, size), kept, values_R, right_RF if is_down else torch.empty(0), edge)


def _square(piece: Tensor) -> float:
    return float(piece.double().square().sum())


def _spectrum(pieces: list[Tensor], transposed: bool) -> tuple[Tensor, Tensor, float]:
    """The strongest singular values and right vectors of a difference, and the edge of what is left without them; on the CPU.

    The list is emptied: pieces and whole together, once, are the most that an audit holds.
    """
    square, delta_DF = sum(map(_square, pieces)), torch.cat(pieces)
    pieces.clear()
    delta_DF = delta_DF.T if transposed else delta_DF
    with torch.random.fork_rng(devices=[delta_DF.device] if delta_DF.is_cuda else []):
        torch.manual_seed(0)
        _, values_R, right_FR = torch.svd_lowrank(delta_DF, q=min(DIRECTIONS, max(1, min(delta_DF.shape) // 2)), niter=3)
    rest = max(0.0, square - _square(values_R))
    free = [max(1, size - len(values_R)) for size in delta_DF.shape]
    edge = (rest / (free[0] * free[1])) ** 0.5 * (delta_DF.shape[0] ** 0.5 + delta_DF.shape[1] ** 0.5)
    return values_R.cpu(), right_FR.T.cpu(), max(edge, float(values_R[-1]))
