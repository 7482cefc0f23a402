"""An edit of one down-projection, as a type with its algebra.

Shape letters: B edits, C of them at a time, T positions, S positions of several samples, R rank, D hidden width, F MLP width. An edit
always carries the B of a whole batch: one edit is B = 1.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
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
        """Frobenius norm (B,) of each W'_V - W_V, `weight_DF` being W_V."""


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

    def applied_to(self, weight_DF: Tensor) -> "DenseEdit":
        """The whole matrices W'_V in the dtype of `weight_DF`; the sum is made in float32 and rounded once."""
        return DenseEdit(_sum(weight_DF, self.key_BF, self.value_BD))

    def rounded_to(self, weight_DF: Tensor) -> "RoundedEdit":
        """The same matrices as `applied_to`, made anew whenever they are multiplied with."""
        return RoundedEdit(self.key_BF, self.value_BD, weight_DF)


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

    def applied_to(self, weight_DF: Tensor) -> "DenseEdit":
        """As `RankOneEdit.applied_to`."""
        delta_BDF = self.value_BRD.float().transpose(1, 2) @ self.key_BRF.float()
        return DenseEdit((weight_DF.float() + delta_BDF).to(weight_DF.dtype))

    rounded_to = applied_to


class WholeEdit(Edit):
    """Whole matrices W'_V. No more of them are copied at a time than a budget allows, forward or backward."""

    @abstractmethod
    def whole(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """Matrices (C, D, F) of edits `start` to `stop`, in a dtype."""

    @abstractmethod
    def copied_bytes(self, dtype: torch.dtype) -> int:
        """What `whole` takes for each matrix; 0 if it copies nothing."""

    def repeat_interleave(self, times: int) -> "RepeatedEdit":
        return RepeatedEdit(self, times)

    def chunks(self, dtype: torch.dtype, memory_budget: int) -> Iterator[tuple[slice, Tensor]]:
        """All matrices, as many at a time as the budget allows, and at least one."""
        copied = self.copied_bytes(dtype)
        step = max(1, min(len(self), memory_budget // copied)) if copied else len(self)
        for start in range(0, len(self), step):
            yield slice(start, start + step), self.whole(start, min(start + step, len(self)), dtype)

    def output(self, x_BTF: Tensor, y_BTD: Tensor, bias_D: Tensor | None, memory_budget: int = MEMORY_BUDGET) -> Tensor:
        out_BTD = _ChunkedProduct.apply(x_BTF.to(y_BTD.dtype), self, memory_budget)
        return out_BTD if bias_D is None else out_BTD + bias_D.to(out_BTD.dtype)

    def delta_norm(self, weight_DF: Tensor) -> Tensor:
        one_at_a_time = self.chunks(torch.float32, 0)
        return torch.cat([(weight_CDF - weight_DF.float()).flatten(1).norm(dim=1) for _, weight_CDF in one_at_a_time])


@dataclass(frozen=True)
class RepeatedEdit(Edit):
    """Each of some edits `times` in a row, none of them copied: samples of one edit are taken as more positions of one sample."""

    edits: Edit
    times: int

    def __len__(self) -> int:
        return len(self.edits) * self.times

    def _map(self, function) -> "RepeatedEdit":
        return RepeatedEdit(self.edits._map(function), self.times)

    def width(self) -> tuple[int, int]:
        return self.edits.width()

    def output(self, x_BTF: Tensor, y_BTD: Tensor, bias_D: Tensor | None, memory_budget: int = MEMORY_BUDGET) -> Tensor:
        if len(x_BTF) == 1:
            return self.edits.output(x_BTF, y_BTD, bias_D, memory_budget).repeat_interleave(self.times, dim=0)
        x_CSF, y_CSD = (tensor.reshape(len(self.edits), -1, tensor.shape[2]) for tensor in (x_BTF, y_BTD))
        return self.edits.output(x_CSF, y_CSD, bias_D, memory_budget).view(y_BTD.shape)

    def delta_norm(self, weight_DF: Tensor) -> Tensor:
        return self.edits.delta_norm(weight_DF).repeat_interleave(self.times)


class _ChunkedProduct(torch.autograd.Function):
    """x W'ᵀ for every W'. Backward the matrices are taken anew, so that the graph holds none of them."""

    @staticmethod
    def forward(ctx, x_BTF: Tensor, edits: WholeEdit, memory_budget: int) -> Tensor:
        ctx.edits, ctx.memory_budget, ctx.shape = edits, memory_budget, x_BTF.shape
        out_BTD = x_BTF.new_empty(len(edits), x_BTF.shape[1], edits.width()[0])
        for rows, weight_CDF in edits.chunks(x_BTF.dtype, memory_budget):
            torch.matmul(x_BTF if len(x_BTF) == 1 else x_BTF[rows], weight_CDF.transpose(1, 2), out=out_BTD[rows])
            del weight_CDF  # before the next chunk takes memory
        return out_BTD

    @staticmethod
    def backward(ctx, grad_BTD: Tensor) -> tuple[Tensor, None, None]:
        grad_BTF = grad_BTD.new_zeros(ctx.shape)
        for rows, weight_CDF in ctx.edits.chunks(grad_BTD.dtype, ctx.memory_budget):
            grad_CTF = grad_BTD[rows] @ weight_CDF
            if len(grad_BTF) == 1:
                grad_BTF += grad_CTF.sum(0, keepdim=True)
            else:
                grad_BTF[rows] = grad_CTF
            del weight_CDF
        return grad_BTF, None, None


@dataclass(frozen=True)
class DenseEdit(WholeEdit):
    """Whole matrices of unknown rank, in memory, canonical orientation."""

    weight_BDF: Tensor

    def width(self) -> tuple[int, int]:
        return tuple(self.weight_BDF.shape[1:])

    def whole(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        return self.weight_BDF[start:stop].to(dtype)

    def copied_bytes(self, dtype: torch.dtype) -> int:
        return 0 if self.weight_BDF.dtype == dtype else self.weight_BDF[0].numel() * dtype.itemsize


@dataclass(frozen=True)
class RoundedEdit(WholeEdit):
    """W_V + value ⊗ key, rounded to W_V's dtype: what a checkpoint of that dtype would hold."""

    key_BF: Tensor
    value_BD: Tensor
    weight_DF: Tensor

    def _map(self, function) -> "RoundedEdit":
        return RoundedEdit(function(self.key_BF), function(self.value_BD), self.weight_DF)

    def width(self) -> tuple[int, int]:
        return tuple(self.weight_DF.shape)

    def whole(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        return _sum(self.weight_DF, self.key_BF[start:stop], self.value_BD[start:stop]).to(dtype)

    def copied_bytes(self, dtype: torch.dtype) -> int:
        rounded = 0 if self.weight_DF.dtype == torch.float32 else self.weight_DF.dtype.itemsize
        return self.weight_DF.numel() * (torch.float32.itemsize + rounded + (dtype.itemsize if dtype != self.weight_DF.dtype else 0))


def _sum(weight_DF: Tensor, key_BF: Tensor, value_BD: Tensor) -> Tensor:
    """The sum is made in float32 and rounded once."""
    return torch.einsum("bd,bf->bdf", value_BD.float(), key_BF.float()).add_(weight_DF).to(weight_DF.dtype)
