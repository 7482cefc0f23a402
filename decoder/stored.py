"""Whole matrices that stay in the files other tools wrote, and are read piece by piece whenever they act.

Shape letters: B edits, C of them at a time, D hidden width, F MLP width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from decoder.checkpoint.reader import Checkpoint
from decoder.dense import WholeEdit
from decoder.host import Host


@dataclass(frozen=True)
class StoredEdit(WholeEdit):
    """Matrices in safetensors or npz files. Their dtype is the file's until they are multiplied with.

    Attributes:
        sources: file and tensor name of each matrix.
        shape_DF: its canonical shape.
        transposed: whether the files hold (F, D).
    """

    sources: tuple[tuple[Checkpoint, str], ...]
    shape_DF: tuple[int, int]
    transposed: bool
    device: torch.device

    def __getitem__(self, index: int | slice | Tensor) -> "StoredEdit":
        if isinstance(index, int):
            index = [index]
        chosen = self.sources[index] if isinstance(index, slice) else tuple(self.sources[i] for i in index)
        return replace(self, sources=tuple(chosen))

    def to(self, device: str | torch.device) -> "StoredEdit":
        return replace(self, device=torch.device(device))

    def width(self) -> tuple[int, int]:
        return self.shape_DF

    def whole(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """Raises ValueError if a matrix holds NaN or infinity."""
        shape = self.shape_DF[::-1] if self.transposed else self.shape_DF
        found = torch.empty(stop - start, *shape, dtype=dtype, device=self.device)
        for matrix, (checkpoint, name) in zip(found, self.sources[start:stop], strict=True):
            row = 0
            for part in checkpoint.parts(name):
                if not part.isfinite().all():
                    raise ValueError(f"{checkpoint.path}: {name} holds NaN or infinity; expected finite numbers")
                matrix[row : row + len(part)] = part
                row += len(part)
        return found.transpose(1, 2) if self.transposed else found

    def copied_bytes(self, dtype: torch.dtype) -> int:
        return self.shape_DF[0] * self.shape_DF[1] * dtype.itemsize


def stored_edits(paths: Sequence[str | Path], host: Host, layer: int, *, canonical: bool = False) -> StoredEdit:
    """The matrices of some files or checkpoint folders as one batch, in the order given; nothing is read but their headers.

    A file that has a tensor under the host's own name for W_V of `layer` holds one edit; any other holds one in each of its matrices, in
    the order of their names.

    Args:
        canonical: whether files hold (D, F) whatever the host's layout is, as those beside imported edits do.

    Raises:
        ValueError: a file is none of the kinds read (pickles never are), or it holds no matrix, one of another shape or not of floats.
    """
    shape_DF = tuple(host.weight_DF(layer).shape)
    transposed = host.stored_transposed(layer) and not canonical
    expected = shape_DF[::-1] if transposed else shape_DF
    sources = []
    for path in paths:
        checkpoint = Checkpoint(path)
        own = checkpoint.find(f"{host.module_path(layer)}.weight")
        names = [own] if own else [name for name in checkpoint.names if len(checkpoint.shape(name)) == 2]
        if not names:
            raise ValueError(f"{path} holds no matrix; expected one of shape {expected} for each edit")
        for name in names:
            if checkpoint.shape(name) != expected:
                raise ValueError(f"{path}: {name} is {checkpoint.shape(name)}, {host.module_path(layer)} of {host.name} is {expected}")
            if not checkpoint.dtype(name).is_floating_point:
                raise ValueError(f"{path}: {name} is {checkpoint.dtype(name)}, expected floats")
        sources += [(checkpoint, name) for name in names]
    return StoredEdit(tuple(sources), shape_DF, transposed, host.device)
