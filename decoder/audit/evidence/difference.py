"""What was done to one tensor: how far it is from what it was, and in which directions.

Shape letters: D rows, F columns, R directions.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from decoder.parts.spectrum import rounding_edge, spectrum


@dataclass(frozen=True)
class Difference:
    """What was done to one tensor.

    Attributes:
        name: the host's.
        distance: ‖T' - T‖ / ‖T‖ beyond what the rounding of its file explains; 0 where that explains all.
        zeroed: share of the entries that became zero.
        kept: the distance of the entries that did not.
        cosine: of T' with T; 1 where either is zero.
        values_R: strongest singular values of T' - T, of a matrix that differs and is no vocabulary; else none.
        right_RF: their right singular vectors, of down-projections.
        edge: what the largest singular value of the rest would be if its entries were independent, or the last one that was looked at, or
            what rounding of the file's numbers makes, which is more where they are larger: in the columns that an edit's key is largest at.
    """

    name: str
    distance: float
    zeroed: float
    kept: float
    values_R: Tensor
    right_RF: Tensor
    edge: float
    cosine: float = 1.0


def difference(
    name: str,
    parts: Iterable[tuple[Tensor, ...]],
    *,
    is_matrix: bool,
    step: float = 0.0,
    is_blocks: bool = False,
    is_down: bool = False,
    transposed: bool = False,
) -> Difference:
    """What was done to one tensor.

    Args:
        parts: pieces of it along its first dimension: T', T as the file of T' keeps it, and T.
        is_matrix: whether it is a matrix, and no vocabulary.
        step: relative distance between neighbouring numbers of the file.
        is_blocks: whether the file keeps it in blocks of few bits.
        is_down: whether it is a down-projection, and `transposed`: stored as (F, D).
    """
    square = own_square = kept_square = shared_square = 0.0
    zeroed = size = 0
    pieces: list[Tensor] = []
    rows_D, columns_F = [torch.zeros(1)], torch.zeros(1)
    for shared, stored, rows in parts:
        change, became_zero = shared - stored, (shared == 0) & (stored != 0)
        square += _square(change)
        own_square += _square(stored)
        shared_square += _square(shared)
        kept_square += _square(change[~became_zero])
        zeroed, size = zeroed + int(became_zero.sum()), size + rows.numel()
        if is_matrix:
            pieces.append(shared - rows if is_blocks else change)
            rows_D.append(shared.square().sum(1).cpu())
            columns_F = columns_F + shared.square().sum(0).cpu()
    far, kept = ((part / own_square) ** 0.5 if own_square else float(part > 0) for part in (square, kept_square))
    values_R, right_RF, edge = torch.empty(0), torch.empty(0), 0.0
    if is_matrix and (far or is_blocks):
        delta_DF = torch.cat(pieces)
        # Pieces and whole together, once, are the most that an audit holds.
        pieces.clear()
        _, values_R, right_RF, edge = spectrum(delta_DF.T if transposed else delta_DF)
        values_R, right_RF = values_R.cpu(), right_RF.cpu()
        # The last one that was looked at says nothing of where they end.
        edge = max(edge, float(values_R[-1]), rounding_edge(step, torch.cat(rows_D), columns_F))
    lengths = 2 * (shared_square * own_square) ** 0.5
    # |T' - T|² has twice the product of both in it, which takes no memory of its own.
    cosine = (shared_square + own_square - square) / lengths if lengths else 1.0
    return Difference(name, far, zeroed / max(1, size), kept, values_R, right_RF if is_down else torch.empty(0), edge, cosine)


def _square(piece: Tensor) -> float:
    return float(piece.double().square().sum())
