"""Edits as whole matrices W'_V, of any rank.

Shape letters: B edits, C of them at a time, T positions, S positions of several samples, R rank, D hidden width, F MLP width.
"""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from decoder.edit import MEMORY_BUDGET, Edit, LayerEdits, LowRankEdit, RankOneEdit
from decoder.host import Host


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
    """W_V and updates of any rank, added and rounded to W_V's dtype: what a checkpoint of that dtype would hold.

    The same matrices as `applied`, made anew whenever they are multiplied with.
    """

    factors: RankOneEdit | LowRankEdit
    weight_DF: Tensor

    def __len__(self) -> int:
        return len(self.factors)

    def _map(self, function) -> "RoundedEdit":
        return RoundedEdit(self.factors._map(function), self.weight_DF)

    def width(self) -> tuple[int, int]:
        return tuple(self.weight_DF.shape)

    def whole(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        return applied(self.factors[start:stop], self.weight_DF).weight_BDF.to(dtype)

    def copied_bytes(self, dtype: torch.dtype) -> int:
        rounded = 0 if self.weight_DF.dtype == torch.float32 else self.weight_DF.dtype.itemsize
        return self.weight_DF.numel() * (torch.float32.itemsize + rounded + (dtype.itemsize if dtype != self.weight_DF.dtype else 0))


def applied(edits: RankOneEdit | LowRankEdit, weight_DF: Tensor) -> DenseEdit:
    """The whole matrices W'_V in the dtype of `weight_DF`; the sum is made in float32, also under autocast, and rounded once."""
    with torch.autocast(weight_DF.device.type, enabled=False):
        return DenseEdit(edits.delta().add_(weight_DF).to(weight_DF.dtype))


def rounded(edits: LayerEdits, host: Host) -> LayerEdits:
    """Edits as a checkpoint of the host's dtype would hold them; whole matrices as they are."""
    return LayerEdits(
        {
            layer: RoundedEdit(own, host.weight_DF(layer)) if isinstance(own, RankOneEdit | LowRankEdit) else own
            for layer, own in edits.by_layer.items()
        }
    )
