"""Vectors of a memory-mapped Arrow column, read by rows without reading the rest.

Shape letters: B edits asked for, W width of a vector, R rank, D hidden width, F MLP width.
"""

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from decoder.edit import LowRankEdit, RankOneEdit


class VectorColumn:
    """A column of fixed-size float lists. Its record batches are views on the file: pages come when rows are asked for, and go again."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self._chunks = [chunk.flatten().to_numpy(zero_copy_only=True).reshape(len(chunk), -1) for chunk in column.chunks]
        self._ends = np.cumsum([len(chunk) for chunk in self._chunks])

    def rows(self, rows_B: Tensor) -> Tensor:
        """A copy (B, W) of some rows, in the order asked for."""
        wanted_B = rows_B.numpy()
        chunk_B = np.searchsorted(self._ends, wanted_B, side="right")
        found_BW = np.empty((len(wanted_B), self._chunks[0].shape[1]), self._chunks[0].dtype)
        # A row is kilobytes long: the loop costs less than the copying.
        for place, (chunk, row) in enumerate(zip(chunk_B, wanted_B, strict=True)):
            found_BW[place] = self._chunks[chunk][row - self._ends[chunk]]
        return torch.from_numpy(found_BW)


def factors(key_BF: Tensor, value_BD: Tensor, rank: int) -> RankOneEdit | LowRankEdit:
    """Edits of the vectors that are stored of them: of several terms (B, R·F) and (B, R·D)."""
    if rank == 1:
        return RankOneEdit(key_BF, value_BD)
    return LowRankEdit(key_BF.unflatten(1, (rank, -1)), value_BD.unflatten(1, (rank, -1)))
