"""Tensors of files that others have saved, read one by one or by rows, never as a pickle.

A checkpoint is a safetensors or npz file, or a Hugging Face folder with one safetensors file or an index and its shards.
"""

import json
import zipfile
from collections.abc import Iterator
from math import prod
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from decoder.checkpoint.names import find_name, find_weight

INDEX, WHOLE = "model.safetensors.index.json", "model.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
CHUNK = 1 << 22  # entries read at a time
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
NO_PICKLE = "pickles are never loaded: save it again as safetensors (save_pretrained does)"


class Checkpoint:
    """Names, shapes and tensors of a file or folder. Nothing is read before it is asked for.

    Raises:
        ValueError: there is nothing to read, it is a pickle, a shard is missing, or a file is cut short or damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        self._sources: dict[str, Path | np.lib.npyio.NpzFile] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        if self.path.is_dir():
            for file in _files(self.path):
                self._open(file)
        elif not self.path.exists():
            raise ValueError(f"{self.path}: no such file or folder")
        elif self.path.suffix in PICKLES:
            raise ValueError(f"{self.path}: {NO_PICKLE}")
        else:
            self._open(self.path)

    def _open(self, file: Path) -> None:
        if file.suffix == ".npz":
            try:
                archive = np.load(file, allow_pickle=False)
                shapes = _npz_shapes(archive)
            except (ValueError, OSError, EOFError, AttributeError, KeyError, zipfile.BadZipFile) as error:
                raise ValueError(f"{file} is not a whole npz file ({error})") from None
            self._sources |= dict.fromkeys(shapes, archive)
            self._shapes |= shapes
            return
        try:
            with safe_open(str(file), "pt") as opened:
                self._sources |= dict.fromkeys(opened.keys(), file)
                self._shapes |= {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"{file} is not a whole safetensors file ({error}). Pickles and .pt files are never loaded: convert it"
            ) from None

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
        """The tensor in pieces along its first dimension, in the dtype it is stored in."""
        shape = self.shape(name)
        if not shape or isinstance(self._sources[name], np.lib.npyio.NpzFile):
            yield self._whole(name)
            return
        step = max(1, CHUNK // max(1, prod(shape[1:])))
        for start in range(0, shape[0], step):
            # Opened anew for each piece: pages of a file that stays open would count until the last piece is read.
            with safe_open(self._sources[name], "pt") as opened:
                yield opened.get_slice(name)[start : start + step]

    def _whole(self, name: str) -> Tensor:
        source = self._sources[name]
        if isinstance(source, np.lib.npyio.NpzFile):
            array = self._array(name)
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
        if isinstance(self._sources[name], np.lib.npyio.NpzFile):
            return self._checked(name, self._whole(name))
        matrix, row = torch.empty(0), 0
        for part in self.parts(name):
            part = self._checked(name, part)
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
        """What a tensor is stored in; of safetensors without reading it."""
        source = self._sources[name]
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

    def _array(self, name: str) -> np.ndarray:
        try:
            return self._sources[name][name]
        except (ValueError, zipfile.BadZipFile, OSError, EOFError) as error:
            raise ValueError(f"{self.path}: {name} cannot be read ({error}); pickled arrays are never loaded") from None


def is_checkpoint_folder(path: Path) -> bool:
    """Whether a folder is one checkpoint, and not a folder of them."""
    return any((path / name).exists() for name in (INDEX, WHOLE, "config.json")) or any(
        file.suffix in PICKLES for file in path.glob("pytorch_model*")
    )


def _npz_shapes(archive: np.lib.npyio.NpzFile) -> dict[str, tuple[int, ...]]:
    """Shapes out of the arrays' headers."""
    headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shapes = {}
    for name in archive.zip.namelist():
        if name.endswith(".npy"):
            with archive.zip.open(name) as opened:
                shapes[name.removesuffix(".npy")] = headers[np.lib.format.read_magic(opened)](opened)[0]
    return shapes


def _files(folder: Path) -> list[Path]:
    if (folder / INDEX).exists():
        try:
            shards = sorted(set(map(Path, json.loads((folder / INDEX).read_text())["weight_map"].values())))
        except (json.JSONDecodeError, KeyError, AttributeError, UnicodeDecodeError, TypeError):
            raise ValueError(f"{folder / INDEX} is no index of shards (weight_map). Save the checkpoint again") from None
        for shard in shards:
            if shard.name != str(shard):
                raise ValueError(f"{folder / INDEX} names {str(shard)!r}, which is outside its folder. Save the checkpoint again")
            if not (folder / shard).exists():
                raise ValueError(f"{folder}: shard {shard} is missing. Download or copy it again")
        return [folder / shard for shard in shards]
    files = [folder / WHOLE] if (folder / WHOLE).exists() else sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        return files
    if files:
        raise ValueError(f"{folder}: {len(files)} safetensors files and no {INDEX}. Copy the index too, or give one file")
    if pickled := [file.name for file in sorted(folder.iterdir()) if file.suffix in PICKLES]:
        raise ValueError(f"{folder} holds {pickled[0]}; {NO_PICKLE}")
    raise ValueError(f"{folder}: no safetensors file there")
