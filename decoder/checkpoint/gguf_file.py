"""Tensors of GGUF files under the model's own names and in its own layout, dequantised one by one or by rows.

Shape letters: R rows, C columns of a matrix as the file has it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from torch import Tensor

from decoder.checkpoint.gguf_header import AGAIN, Place, parts, read_parts
from decoder.checkpoint.rounding import Noise, noise_of_steps
from decoder.families import FAMILIES, Family

PLAIN = {
    Kind.F32: torch.float32,
    Kind.F16: torch.float16,
    Kind.BF16: torch.bfloat16,
    Kind.F64: torch.float64,
    **{Kind[f"I{bits}"]: getattr(torch, f"int{bits}") for bits in (8, 16, 32, 64)},
}
REPRODUCED = {Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1}  # `gguf.quantize` rounds to them bit by bit as llama.cpp does
IN_BLOCK = re.compile(r"blk\.(?P<number>\d+)\.(?P<name>.+)")
FEWEST_LEVELS = 16  # entries that share a scale in every type of blocks


@dataclass(frozen=True)
class GgufTensor:
    """One tensor; given as the model has it, whatever the file's layout.

    Attributes:
        heads: of how many heads the rows' halves stand in turns; 0: they do not.
        transposed: whether the model has it the other way round.
        shift: what the file's numbers have more than the model's.
        weighted: whether entries were weighed when it was quantised, so that nobody can round again as that did.
    """

    place: Place
    heads: int = 0
    transposed: bool = False
    shift: float = 0.0
    weighted: bool = False

    @property
    def kind(self) -> Kind:
        return Kind(self.place.kind)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.place.shape[::-1] if self.transposed else self.place.shape

    @property
    def dtype(self) -> torch.dtype:
        """Of what is given: blocks become float32."""
        return PLAIN.get(self.kind, torch.float32)

    @property
    def rounding(self) -> str:
        """What its numbers are kept in: a dtype of torch, or a ggml type as Q4_1."""
        return str(self.dtype).removeprefix("torch.") if self.kind in PLAIN else self.kind.name

    @property
    def in_pieces(self) -> bool:
        """Whether some rows can be had without the others."""
        return len(self.shape) > 1 and not (self.heads or self.transposed)

    def rows(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows of the model's tensor; all of them unless it is `in_pieces`."""
        shape = self.place.shape
        if not self.in_pieces:
            return self._ours(_numbers(self._raw(0, prod(shape)), self.kind, shape))
        stop, width = min(shape[0], shape[0] if stop is None else stop), prod(shape[1:])
        return self._ours(_numbers(self._raw(start * width, (stop - start) * width), self.kind, (stop - start, *shape[1:])))

    def as_stored(self, rows: Tensor, start: int) -> Tensor:
        """Other numbers in the place of some rows, rounded as these are; where nobody can tell how, these if rounding may be why."""
        theirs = self._theirs(rows.float() if rows.is_floating_point() else rows)
        if self.kind in PLAIN:
            return self._ours(theirs.to(self.dtype))
        if self.is_reproduced:
            rounded = gguf.quantize(np.ascontiguousarray(theirs.numpy()), self.kind)
            return self._ours(_numbers(rounded.reshape(-1), self.kind, tuple(theirs.shape)))
        stored = self._theirs(self.rows(start, start + len(rows)))
        return self._ours(torch.where((theirs - stored).abs() <= _steps(stored, self.kind), stored, theirs))

    def explains(self, rows: Tensor, start: int) -> Tensor:
        """Which of other numbers in the place of some rows may have become these when they were rounded."""
        theirs, stored = self._theirs(rows.float()), self._theirs(self.rows(start, start + len(rows)))
        is_near = theirs.to(self.dtype) == stored if self.kind in PLAIN else (theirs - stored).abs() <= _steps(stored, self.kind)
        return self._ours(is_near.float()) > 0.5

    @property
    def is_reproduced(self) -> bool:
        """Whether the rounding of other numbers to the type can be told exactly."""
        return self.kind in PLAIN or (self.kind in REPRODUCED and not self.weighted)

    def noise(self) -> Noise | None:
        """What rounding to blocks may have added to a matrix; None for plain numbers."""
        if self.kind in PLAIN:
            return None
        return noise_of_steps(self.rounding, _steps(self._theirs(self.rows()), self.kind))

    def _raw(self, entries: int, count: int) -> np.ndarray:
        size, width = gguf.GGML_QUANT_SIZES[self.kind]
        found = np.fromfile(self.place.file, np.uint8, count // size * width, offset=self.place.start + entries // size * width)
        if len(found) < count // size * width:
            raise ValueError(f"{self.place.file} is cut short. {AGAIN}")
        return found

    def _ours(self, theirs: Tensor) -> Tensor:
        ours = theirs - self.shift if self.shift else theirs
        if self.heads:
            ours = ours.unflatten(0, (self.heads, -1, 2)).transpose(1, 2).flatten(0, 2)
        return ours.T if self.transposed else ours

    def _theirs(self, ours: Tensor) -> Tensor:
        theirs = ours.T if self.transposed else ours
        if self.heads:
            theirs = theirs.unflatten(0, (self.heads, 2, -1)).transpose(1, 2).flatten(0, 2)
        return theirs + self.shift if self.shift else theirs


class GgufFile:
    """A GGUF file, with all its parts.

    Attributes:
        files: the file, or all of its parts.
        metadata: of the first part.
        family: the first of `FAMILIES` that has its architecture.
        model_type: what the family is called.
        tensors: by the model's names; what the model has no place for keeps its own.

    Raises:
        ValueError: it is none, cut short or damaged, a part is missing or of another file, or its architecture
            or the type of a tensor is not known.
    """

    def __init__(self, file: Path) -> None:
        self.file, self.files = file, parts(file)
        self.metadata, places = read_parts(self.files)
        self.tensors: dict[str, GgufTensor] = {}
        self.model_type, self.family = self._family()
        weighted = any(key.startswith("quantize.imatrix.") for key in self.metadata)
        for name, place in places.items():
            _check(name, place)
            ours = self._name(name)
            self.tensors[ours] = GgufTensor(place, weighted=weighted, **self._layout(ours, place))

    def of(self, key: str, default: Any = None) -> Any:
        """A value of the architecture's own."""
        return self.metadata.get(f"{self.family.gguf.architecture}.{key}", default)

    @property
    def rounded_to(self) -> list[str]:
        """The types of blocks that tensors are kept in."""
        return list(dict.fromkeys(tensor.rounding for tensor in self.tensors.values() if tensor.kind not in PLAIN))

    @property
    def vocabulary(self) -> tuple[dict[str, int], set[str]] | None:
        """Tokens with their numbers, and those that are no words; None where the file has none."""
        tokens = self.metadata.get("tokenizer.ggml.tokens")
        if not isinstance(tokens, list):
            return None
        kinds = self.metadata.get("tokenizer.ggml.token_type") or [gguf.TokenType.NORMAL] * len(tokens)
        words = (gguf.TokenType.NORMAL, gguf.TokenType.UNKNOWN, gguf.TokenType.BYTE)
        added = {token for token, kind in zip(tokens, kinds, strict=False) if kind not in words}
        return {token: number for number, token in enumerate(tokens)}, added

    def _family(self) -> tuple[str, Family]:
        architecture = self.metadata.get("general.architecture")
        known = {}
        for model_type, family in FAMILIES.items():
            if family.gguf:
                known.setdefault(family.gguf.architecture, (model_type, family))
        if architecture not in known:
            raise ValueError(
                f"{self.file}: GGUF files of architecture {architecture!r} are not read, those of {', '.join(known)} are. "
                "Give the safetensors checkpoint that it was made from"
            )
        return known[architecture]

    def _name(self, theirs: str) -> str:
        module, _, ending = theirs.rpartition(".")
        layout = self.family.gguf
        if (found := IN_BLOCK.fullmatch(module)) and found["name"] in layout.blocks:
            return f"{self.family.blocks}.{found['number']}.{layout.blocks[found['name']]}.{ending}"
        return f"{layout.top[module]}.{ending}" if module in layout.top else theirs

    def _layout(self, ours: str, place: Place) -> Mapping[str, Any]:
        layout, module = self.family.gguf, ours.rpartition(".")[0]
        if module.endswith(layout.interleaved) and layout.interleaved:
            heads = self.of("attention.head_count_kv") if module.endswith("k_proj") else None
            heads = self.of("attention.head_count") if heads is None else heads
            if not isinstance(heads, int) or heads < 1 or place.shape[0] % (2 * heads):
                raise ValueError(f"{self.file}: {ours} is {place.shape}, which makes no {heads} heads. {AGAIN}")
            return {"heads": heads}
        if ours.endswith("norm.weight") and layout.norm_shift:
            return {"shift": layout.norm_shift}
        return {"transposed": len(place.shape) == 2 and module.endswith(layout.transposed) and bool(layout.transposed)}


def _check(name: str, place: Place) -> None:
    """Raises ValueError if the type of a tensor is not known, or its bytes are not all there."""
    known = place.kind in set(Kind) and (Kind(place.kind) in PLAIN or _is_dequantised(Kind(place.kind)))
    if not known:
        kind = Kind(place.kind).name if place.kind in set(Kind) else place.kind
        raise ValueError(f"{place.file}: {name} is of ggml type {kind}, which the package gguf cannot undo. Give safetensors")
    size, width = gguf.GGML_QUANT_SIZES[Kind(place.kind)]
    if place.shape and place.shape[-1] % size:
        raise ValueError(f"{place.file}: {name} is {place.shape}, which makes no blocks of {size}. {AGAIN}")
    if place.start + prod(place.shape) // size * width > place.file.stat().st_size:
        raise ValueError(f"{place.file} is not a whole GGUF file: {name} is cut short. {AGAIN}")


def _is_dequantised(kind: Kind) -> bool:
    try:
        gguf.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


def _numbers(raw: np.ndarray, kind: Kind, shape: tuple[int, ...]) -> Tensor:
    if kind in PLAIN:
        return torch.from_numpy(raw).view(PLAIN[kind]).reshape(shape)
    size, width = gguf.GGML_QUANT_SIZES[kind]
    rows = raw.reshape(*shape[:-1], shape[-1] // size * width) if shape else raw
    # Scales that a damaged file makes infinite are told where the numbers are checked.
    with np.errstate(all="ignore"):
        return torch.from_numpy(gguf.dequantize(rows, kind))


def _steps(stored_RC: Tensor, kind: Kind) -> Tensor:
    """The distance of neighbouring levels at each entry: the least between two entries that share a scale, 0 where all are one."""
    group = 32 if gguf.GGML_QUANT_SIZES[kind][0] == 32 else FEWEST_LEVELS
    gaps = stored_RC.reshape(-1, group).sort(dim=-1).values.diff()
    least = gaps.masked_fill(gaps == 0, torch.inf).amin(dim=-1, keepdim=True)
    return least.masked_fill(least.isinf(), 0.0).expand(-1, group).reshape(stored_RC.shape)
