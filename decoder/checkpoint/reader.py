"""Tensors of files that others have saved, read one by one or by rows, never as a pickle.

A checkpoint is a safetensors, npz or GGUF file, or a Hugging Face folder with a safetensors file, an index and shards, or a GGUF file.
"""

import zipfile
from collections.abc import Iterator
from math import prod
from pathlib import Path
from tokenize import TokenError

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from decoder.checkpoint.folders import NO_PICKLE, PICKLES, kind_of, read_json, weight_files
from decoder.checkpoint.gguf_config import sizes_of
from decoder.checkpoint.gguf_file import GgufFile, GgufTensor
from decoder.checkpoint.gguf_header import is_gguf
from decoder.checkpoint.names import find_name, find_weight
from decoder.checkpoint.quantised import FLOATS_OF_8_BITS, SCALES, method_of, refuse, spread
from decoder.checkpoint.rounding import Noise

CHUNK = 1 << 22  # entries read at a time
# Of files that are not whole; numpy reads the headers of arrays as Python.
FAULTS = (SafetensorError, ValueError, OSError, EOFError, AttributeError, KeyError, zipfile.BadZipFile, SyntaxError, TokenError)
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Checkpoint:
    """Names, shapes and tensors of a file or folder. Nothing but headers is read before it is asked for.

    8-bit floats with a scale beside them are given in float32, multiplied out; tensors of GGUF files by the model's names (`GgufTensor`).

    Attributes:
        config: what `config.json` of a folder says, or a GGUF file of its sizes; None where it is missing, or not whole.
        gguf: the GGUF file, where that is what is read.
        files: those that are read.
        ignored: names of other weights in the folder, which transformers would not read either.

    Raises:
        ValueError: there is nothing to read, it is a pickle, a shard is missing, a file is cut short or damaged, or weights were quantised
            so that they cannot be had back.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        self.config, self.ignored = None, []
        self.gguf: GgufFile | None = None
        self._sources: dict[str, Path | np.lib.npyio.NpzFile | GgufTensor] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._scales: dict[str, Tensor] = {}
        if self.path.is_dir():
            self.config = read_json(self.path / "config.json")
            refuse(method_of(self.config or {}, self.path), f"{self.path}: ")
            self.files, self.ignored = weight_files(self.path, self.config or {})
        elif not self.path.exists():
            raise ValueError(f"{self.path}: no such file or folder")
        elif self.path.suffix in PICKLES:
            raise ValueError(f"{self.path}: {kind_of(self.path) or NO_PICKLE}")
        else:
            self.files = [self.path]
        if is_gguf(self.files[0]):
            self._open_gguf(self.files[0])
            return
        for file in self.files:
            self._open(file)

    def _open_gguf(self, file: Path) -> None:
        self.gguf = GgufFile(file)
        self.config = sizes_of(self.gguf)
        self.files, self._sources = self.gguf.files, dict(self.gguf.tensors)
        self._shapes = {name: tensor.shape for name, tensor in self.gguf.tensors.items()}

    def _open(self, file: Path) -> None:
        called = {".npz": "npz", ".gguf": "GGUF"}.get(file.suffix, "safetensors")
        try:
            if called == "npz":
                source = np.load(file, allow_pickle=False)
                shapes = _npz_shapes(source)
            else:
                source = file
                with safe_open(file, "pt") as opened:
                    shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}
        except FAULTS as error:
            told = f": it is {kind}" if (kind := kind_of(file)) else f" ({error}): download or copy it again"
            raise ValueError(f"{file} is not a whole {called} file{told}") from None
        self._sources |= dict.fromkeys(shapes, source)
        self._shapes |= shapes

    @property
    def names(self) -> list[str]:
        return sorted(self._sources)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    @property
    def matrices(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the 2-D tensors."""
        return {name: self._shapes[name] for name in self.names if len(self._shapes[name]) == 2}

    def parts(self, name: str) -> Iterator[Tensor]:
        """The tensor in pieces along its first dimension, in the dtype it is stored in.

        Raises:
            ValueError: its scale is of a shape that fits no blocks.
        """
        shape, row = self.shape(name), 0
        for part in self._stored_parts(name):
            if len(shape) == 2 and (scale := self._scale(name, row, row + len(part))) is not None:
                yield part.float() * scale
            else:
                yield part
            row += len(part) if shape else 0

    def tensor(self, name: str) -> Tensor:
        """As `parts`, in one piece."""
        parts = [*self.parts(name)]
        return torch.cat(parts) if len(parts) > 1 else parts[0] if parts else self._whole(name)

    def is_scale(self, name: str) -> bool:
        """Whether a tensor is what another one is multiplied with."""
        return any(name.endswith(ending) and name.removesuffix(ending) in self._sources for ending in SCALES)

    def as_stored(self, name: str, rows: Tensor, start: int) -> Tensor:
        """Other numbers in the place of some rows, rounded as the tensor is. Of tensors that are not `in_pieces` all rows at once."""
        if isinstance(source := self._sources[name], GgufTensor):
            return source.as_stored(rows, start)
        dtype = self.dtype(name)
        if (scale := self._scale(name, start, start + len(rows)) if rows.dim() == 2 else None) is None:
            return rows.to(dtype)
        most = torch.finfo(dtype).max
        return (rows.float() / scale).clamp(-most, most).to(dtype).float() * scale

    def is_rounded(self, name: str, own: Tensor, other: Tensor) -> bool:
        """Whether a tensor is what rounding made of `other`, or is the same. `own` is the tensor, read before."""
        source = self._sources[name]
        if torch.equal(own, other.to(own)):
            return True
        if isinstance(source, GgufTensor) and not source.is_reproduced:
            return source.noise().explains(own - other.cpu())
        return torch.equal(own, self.as_stored(name, other.cpu(), 0).to(own))

    def noise(self, name: str) -> Noise | None:
        """What rounding to blocks of few bits may have added to a matrix; None where it was not rounded so."""
        source = self._sources[name]
        return source.noise() if isinstance(source, GgufTensor) else None

    def rows_at_once(self, name: str) -> int:
        """The rows that a piece of `parts` has at most."""
        shape, source = self.shape(name), self._sources[name]
        if isinstance(source, GgufTensor) and not source.in_pieces:
            return max(1, *shape[:1])
        return max(1, CHUNK // max(1, prod(shape[1:])))

    def _scale(self, name: str, start: int, stop: int) -> Tensor | None:
        """What every entry of some rows is multiplied with; None for plain numbers."""
        beside = next((name + ending for ending in SCALES if name + ending in self._sources), None)
        if beside is None or self.dtype(name) not in FLOATS_OF_8_BITS:
            return None
        if name not in self._scales:
            self._scales[name] = self._whole(beside)
        block = ((self.config or {}).get("quantization_config") or {}).get("weight_block_size")
        spread_DF = spread(self._scales[name], self.shape(name), tuple(block) if isinstance(block, list) else None, start, stop)
        if spread_DF is None:
            raise ValueError(f"{self.path}: {beside} is {self.shape(beside)}, which makes no blocks of {self.shape(name)}. Save it again")
        return spread_DF

    def _stored_parts(self, name: str) -> Iterator[Tensor]:
        shape = self.shape(name)
        if not shape or isinstance(self._sources[name], np.lib.npyio.NpzFile):
            yield self._whole(name)
            return
        step, source = self.rows_at_once(name), self._sources[name]
        for start in range(0, shape[0], step):
            if isinstance(source, GgufTensor):
                yield source.rows(start, start + step)
                continue
            # Opened anew for each piece: pages of a file that stays open would count until the last piece is read.
            with safe_open(self._sources[name], "pt") as opened:
                yield opened.get_slice(name)[start : start + step]

    def _whole(self, name: str) -> Tensor:
        source = self._sources[name]
        if isinstance(source, GgufTensor):
            return source.rows()
        if isinstance(source, np.lib.npyio.NpzFile):
            try:
                array = source[name]
            except FAULTS as error:
                raise ValueError(f"{self.path}: {name} cannot be read ({error}); pickled arrays are never loaded") from None
            if array.dtype.kind not in "biufc":
                raise ValueError(f"{self.path}: {name} cannot be read as numbers (it is of {array.dtype})")
            return torch.from_numpy(array)
        with safe_open(source, "pt") as opened:
            return opened.get_tensor(name)

    def matrix(self, name: str, expected: tuple[int, ...], what: str) -> Tensor:
        """A matrix in the dtype it is stored in (float64: in float32), and never more than it and one piece in memory.

        Raises:
            ValueError: the shape is another one, the entries are no floats, or some are NaN or infinite.
        """
        shape = self.shape(name)
        if shape != expected:
            turned = " It looks transposed." if shape == expected[::-1] else ""
            raise ValueError(f"{self.path}: {name} is {shape}, {what} is {expected}.{turned}")
        matrix, row = torch.empty(0), 0
        for part in self.parts(name):
            part = self._checked(name, part)
            if part.shape == shape:
                return part
            matrix = matrix if row else torch.empty(shape, dtype=part.dtype)
            matrix[row : row + len(part)] = part
            row += len(part)
        return matrix

    def _checked(self, name: str, part: Tensor) -> Tensor:
        if part.dtype not in FLOATS:
            raise ValueError(f"{self.path}: {name} is {part.dtype}, expected floats of 16, 32 or 64 bits")
        if not all(piece.isfinite().all() for piece in part.split(max(1, CHUNK // part.shape[1]))):
            raise ValueError(f"{self.path}: {name} holds NaN or infinity; expected finite numbers")
        return part.float() if part.dtype == torch.float64 else part

    def dtype(self, name: str) -> torch.dtype:
        """What a tensor is stored in; of safetensors without reading it. Blocks of few bits are given in float32."""
        source = self._sources[name]
        if isinstance(source, GgufTensor):
            return source.dtype
        if isinstance(source, np.lib.npyio.NpzFile) or not self._shapes[name]:
            return self._whole(name).dtype
        with safe_open(source, "pt") as opened:
            return opened.get_slice(name)[0:0].dtype

    def find(self, name: str) -> str | None:
        """The tensor of a module path, also where a wrapper's prefix was added or the model's own was left out."""
        return find_name(name, self._sources)

    def find_weight(self, module: str) -> str | None:
        """The weight of a module, found as `find` does, also where it bears the module's own name."""
        return find_weight(module, self._sources)


def _npz_shapes(archive: np.lib.npyio.NpzFile) -> dict[str, tuple[int, ...]]:
    """Shapes out of the arrays' headers."""
    headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shapes = {}
    for name in archive.zip.namelist():
        if name.endswith(".npy"):
            with archive.zip.open(name) as opened:
                shape, _, dtype = headers[np.lib.format.read_magic(opened)](opened)
            # numpy would take the memory first and look for the numbers then.
            if not dtype.hasobject and prod(shape) * dtype.itemsize > archive.zip.getinfo(name).file_size:
                raise ValueError(f"{name} is cut short")
            shapes[name.removesuffix(".npy")] = shape
    if not shapes and archive.zip.namelist():
        raise ValueError("it holds no array")
    return shapes
