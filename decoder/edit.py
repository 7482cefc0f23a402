"""An edit of one down-projection, as a type with its algebra.

Shape letters: B edits, C of them at a time, T positions, S positions of several samples, R rank, D hidden width, F MLP width. An edit
always carries the B of a whole batch: one edit is B = 1.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields

import torch
from torch import Tensor

MEMORY_BUDGET = 1 << 30
"""Bytes that copies of whole matrices may take at a time, unless told otherwise."""


@dataclass(frozen=True)
class Edit(ABC):
    """What acts on a down-projection instead of, or on top of, the host's W_V. Every field is a tensor with B first."""

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))

    def _map(self, function) -> "Edit":
        return type(self)(*(function(getattr(self, f.name)) for f in fields(self)))

    def __getitem__(self, index: int | slice | Tensor) -> "Edit":
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
    def output(self, x_BTF: Tensor, y_BTD: Tensor, bias_D: Tensor | None, memory_budget: int = MEMORY_BUDGET) -> Tensor:
        """Output (B, T, D) of the edited projection.

        Args:
            x_BTF: input of the projection; its batch is B, or 1 where all samples are still the same.
            y_BTD: what the host's own W_V made of it.
            bias_D: the projection's bias, if it has one.
            memory_budget: bytes that copies of whole matrices may take at a time; one matrix always may.
        """

    @abstractmethod
    def delta_norm(self, weight_DF: Tensor) -> Tensor:
        """Frobenius norm (B,) of each W'_V - W_V, `weight_DF` being W_V: absolute, where columns of that name are shares of W_V's norm."""


@dataclass(frozen=True)
class RankOneEdit(Edit):
    """W'_V = W_V + value ⊗ key (Meng et al. 2022, eq. 2)."""

    key_BF: Tensor
    value_BD: Tensor

    def width(self) -> tuple[int, int]:
        return self.value_BD.shape[1], self.key_BF.shape[1]

    def output(self, x_BTF: Tensor, y_BTD: Tensor, bias_D: Tensor | None, memory_budget: int = MEMORY_BUDGET) -> Tensor:
        key_BF, value_BD = self.key_BF.to(x_BTF.dtype), self.value_BD.to(x_BTF.dtype)
        # Where all samples are the same one product of two matrices will do: x is not repeated, nor is its gradient.
        gain_BT1 = ((x_BTF[0] @ key_BF.T).T if len(x_BTF) == 1 else (x_BTF @ key_BF.unsqueeze(2)).squeeze(2)).unsqueeze(2)
        return y_BTD + gain_BT1 * value_BD.unsqueeze(1)

    def norm(self) -> Tensor:
        """Frobenius norm of each update, (B,)."""
        return self.key_BF.norm(dim=1) * self.value_BD.norm(dim=1)

    def delta_norm(self, weight_DF: Tensor) -> Tensor:
        return self.norm()

    def delta(self) -> Tensor:
        """Each W'_V - W_V as a matrix (B, D, F), in float32."""
        return torch.einsum("bd,bf->bdf", self.value_BD.float(), self.key_BF.float())


@dataclass(frozen=True)
class LowRankEdit(Edit):
    """W'_V = W_V + Σ_r value_r ⊗ key_r, strongest first; edits of lower rank than R end in zeros."""

    key_BRF: Tensor
    value_BRD: Tensor

    @property
    def key_BF(self) -> Tensor:
        """The strongest term's, for baselines that look at one direction."""
        return self.key_BRF[:, 0]

    @property
    def value_BD(self) -> Tensor:
        return self.value_BRD[:, 0]

    def width(self) -> tuple[int, int]:
        return self.value_BRD.shape[2], self.key_BRF.shape[2]

    def output(self, x_BTF: Tensor, y_BTD: Tensor, bias_D: Tensor | None, memory_budget: int = MEMORY_BUDGET) -> Tensor:
        gain_BTR = x_BTF @ self.key_BRF.to(x_BTF.dtype).transpose(1, 2)
        return y_BTD + gain_BTR @ self.value_BRD.to(x_BTF.dtype)

    def delta_norm(self, weight_DF: Tensor) -> Tensor:
        # |Σ v_r ⊗ k_r|² = Σ_rs (v_r·v_s)(k_r·k_s), without the matrix.
        gram_BRR = (self.value_BRD @ self.value_BRD.transpose(1, 2)) * (self.key_BRF @ self.key_BRF.transpose(1, 2))
        return gram_BRR.sum(dim=(1, 2)).clamp(min=0).sqrt()

    def delta(self) -> Tensor:
        """As `RankOneEdit.delta`."""
        return self.value_BRD.float().transpose(1, 2) @ self.key_BRF.float()
