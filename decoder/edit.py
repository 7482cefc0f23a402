"""An edit of one down-projection, as a type with its algebra.

Shape letters: B edits, T positions, D hidden width, F MLP width. An edit always carries the B of a whole batch: one edit is B = 1.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Edit(ABC):
    """What acts on a down-projection instead of, or on top of, the host's W_V. Every field is a tensor with B first."""

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))

    def _map(self, function) -> "Edit":
        return type(self)(*(function(getattr(self, f.name)) for f in fields(self)))

    def __getitem__(self, index) -> "Edit":
        """The edits of an integer, slice or index tensor; an integer keeps B = 1."""
        index = slice(index, index + 1 or None) if isinstance(index, int) else index
        return self._map(lambda tensor: tensor[index])

    def to(self, *args, **kwargs) -> "Edit":
        return self._map(lambda tensor: tensor.to(*args, **kwargs))

    def pin_memory(self) -> "Edit":
        """Page-locked copies, as a loader makes them for a GPU."""
        return self._map(Tensor.pin_memory)

    def repeat_interleave(self, times: int) -> "Edit":
        """Each edit `times` times in a row, as beams need it."""
        return self._map(lambda tensor: tensor.repeat_interleave(times, dim=0))

    @abstractmethod
    def width(self) -> tuple[int, int]:
        """(D, F) of the matrix the edits are for."""

    @abstractmethod
    def output(self, x_BTF: Tensor, y_BTD: Tensor, bias_D: Tensor | None) -> Tensor:
        """Output (B, T, D) of the edited projection.

        Args:
            x_BTF: input of the projection; its batch is B, or 1 where all samples are still the same.
            y_BTD: what the host's own W_V made of it.
            bias_D: the projection's bias, if it has one.
        """


@dataclass(frozen=True)
class RankOneEdit(Edit):
    """W'_V = W_V + value ⊗ key (Meng et al. 2022, eq. 2)."""

    key_BF: Tensor
    value_BD: Tensor

    def width(self) -> tuple[int, int]:
        return self.value_BD.shape[1], self.key_BF.shape[1]

    def output(self, x_BTF: Tensor, y_BTD: Tensor, bias_D: Tensor | None) -> Tensor:
        gain_BT1 = x_BTF @ self.key_BF.to(x_BTF.dtype).unsqueeze(2)
        return y_BTD + gain_BT1 * self.value_BD.to(x_BTF.dtype).unsqueeze(1)

    def norm(self) -> Tensor:
        """Frobenius norm of each update, (B,)."""
        return self.key_BF.norm(dim=1) * self.value_BD.norm(dim=1)

    def applied_to(self, weight_DF: Tensor) -> "DenseEdit":
        """The whole matrices W'_V in the dtype of `weight_DF`; the sum is made in float32 and rounded once."""
        delta_BDF = torch.einsum("bd,bf->bdf", self.value_BD.float(), self.key_BF.float())
        return DenseEdit((weight_DF.float() + delta_BDF).to(weight_DF.dtype))


@dataclass(frozen=True)
class DenseEdit(Edit):
    """Whole matrices W'_V of unknown rank, canonical orientation."""

    weight_BDF: Tensor

    def width(self) -> tuple[int, int]:
        return tuple(self.weight_BDF.shape[1:])

    def output(self, x_BTF: Tensor, y_BTD: Tensor, bias_D: Tensor | None) -> Tensor:
        out_BTD = x_BTF @ self.weight_BDF.to(x_BTF.dtype).transpose(1, 2)
        return out_BTD if bias_D is None else out_BTD + bias_D


PADDING = -100
"""Marks positions of `object_ids_BT` behind the end of an object; what torch's cross-entropy ignores."""


class EditBatch(NamedTuple):
    """What a loader yields."""

    edits: Edit
    """B edits."""
    object_ids_BT: Tensor
    """Tokens of each planted object and its terminator, then `PADDING`."""
    row_B: Tensor
    """Row of each edit in its store."""

    def on(self, device: torch.device) -> "EditBatch":
        """The batch on a device; copies from page-locked memory are not waited for."""
        return EditBatch(*(part.to(device, non_blocking=True) for part in self))
