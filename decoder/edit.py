"""An edit of one down-projection, as a type with its algebra; and edited hosts, which have an edit in each of some layers.

Shape letters: B edits, C of them at a time, T positions, S positions of several samples, R rank, D hidden width, F MLP width, L layers.
An edit always carries the B of a whole batch: one edit is B = 1.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

MEMORY_BUDGET = 1 << 30
"""Bytes that copies of whole matrices may take at a time, unless told otherwise."""


class Rows(ABC):
    """A batch B that is cut, moved and repeated as one."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def _map(self, function: Callable[[Tensor], Tensor]) -> "Rows":
        """What a function makes of every tensor, each of which has B first."""

    def __getitem__(self, index: int | slice | Tensor) -> "Rows":
        """The rows of an integer, slice or index tensor; an integer keeps B = 1."""
        index = slice(index, index + 1 or None) if isinstance(index, int) else index
        return self._map(lambda tensor: tensor[index])

    def to(self, *args, **kwargs) -> "Rows":
        return self._map(lambda tensor: tensor.to(*args, **kwargs))

    def pin_memory(self) -> "Rows":
        """Page-locked copies, as a loader makes them for a GPU."""
        return self._map(Tensor.pin_memory)

    def repeat_interleave(self, times: int) -> "Rows":
        """Each row `times` times in a row, as beams need it."""
        return self._map(lambda tensor: tensor.repeat_interleave(times, dim=0))


@dataclass(frozen=True)
class Edit(Rows):
    """What acts on a down-projection instead of, or on top of, the host's W_V. Every field is a tensor with B first."""

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))

    def _map(self, function: Callable[[Tensor], Tensor]) -> "Edit":
        return type(self)(*(function(getattr(self, f.name)) for f in fields(self)))

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


@dataclass(frozen=True)
class LayerEdits(Rows):
    """Hosts that are edited in the same layers: edit b of every layer is of host b. Kinds and ranks of the layers may differ.

    Raises:
        ValueError: there is no layer, their order is not theirs in the host, or they have different numbers of edits.
    """

    by_layer: Mapping[int, Edit]

    def __post_init__(self) -> None:
        if not self.by_layer or self.layers != sorted(self.layers):
            raise ValueError(f"edits of layers {self.layers}: expected one at least, the lowest first")
        if len(set((counts := {layer: len(edits) for layer, edits in self.by_layer.items()}).values())) > 1:
            raise ValueError(f"edits by layer: {counts}; expected as many in each, edit b being of host b")

    @classmethod
    def of(cls, edits: "Edit | LayerEdits", layers: Sequence[int]) -> "LayerEdits":
        """Edits of hosts that are edited in these layers; where it is one layer they may come as they are.

        Raises:
            ValueError: they are of other layers.
        """
        found = cls({layers[0]: edits}) if isinstance(edits, Edit) and len(layers) == 1 else edits
        if isinstance(found, Edit) or found.layers != list(layers):
            came = "one layer" if isinstance(found, Edit) else f"layers {found.layers}"
            raise ValueError(
                f"edits are of {came}, expected layers {list(layers)}. Edits can only be read with the layers they were made in"
            )
        return found

    @property
    def layers(self) -> list[int]:
        return list(self.by_layer)

    @property
    def unwrapped(self) -> "Edit | LayerEdits":
        """The edits as they are where it is one layer."""
        return self if len(self.by_layer) > 1 else self.last

    @property
    def last(self) -> Edit:
        """Those of the highest layer, where values are searched for."""
        return self.by_layer[self.layers[-1]]

    @property
    def key_BF(self) -> Tensor:
        """The last layer's, for baselines that look at one matrix."""
        return self.last.key_BF

    @property
    def value_BD(self) -> Tensor:
        return self.last.value_BD

    def __len__(self) -> int:
        return len(self.last)

    def _map(self, function: Callable[[Tensor], Tensor]) -> "LayerEdits":
        return self._each(lambda edits: edits._map(function))

    def repeat_interleave(self, times: int) -> "LayerEdits":
        return self._each(lambda edits: edits.repeat_interleave(times))

    def _each(self, function: Callable[[Edit], Edit]) -> "LayerEdits":
        return LayerEdits({layer: function(edits) for layer, edits in self.by_layer.items()})

    def delta_norm(self, weights: Mapping[int, Tensor]) -> Tensor:
        """Frobenius norm (B,) of all W'_V - W_V of each host together, `weights` being W_V of each layer."""
        norms_LB = torch.stack([edits.delta_norm(weights[layer]) for layer, edits in self.by_layer.items()])
        return norms_LB.norm(dim=0)


Edits = Edit | LayerEdits
"""Edited hosts: those of one layer as they are."""
