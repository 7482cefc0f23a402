"""Tensors of files that others have saved, read one by one or by rows, never as a pickle.

A checkpoint is a safetensors or npz file, or a Hugging Face folder with one safetensors file or an index and its shards.
"""

import json
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from math import prod
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

INDEX, WHOLE = "model.safetensors.index.json", "model.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
# Names in the code, and in the files that their authors published and that are still written.
RENAMED = (("model.language_model.", "language_model.model."), ("lm_head.", "embed_out."), ("lm_head.", "language_model.lm_head."))
CHUNK = 1 << 22  # entries read at a time
NO_PICKLE = "pickles are never loaded: save it again as safetensors (save_pretrained does)"


class Checkpoint:
    """Names, shapes and tensors of a file or folder. Nothing is read before it is asked for.

    Raises:
        ValueError: there is nothing to read, it is a pickle, a shard is missing, or a file is cut short or damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        self._opened = ExitStack()
        self._sources: dict[str, object] = {}
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
                self._sources |= dict.fromkeys(archive.files, archive)
            except (ValueError, OSError, zipfile.BadZipFile) as error:
                raise ValueError(f"{file} is not a whole npz file ({error})") from None
            return
        try:
            opened = self._opened.enter_context(safe_open(str(file), "pt"))
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"{file} is not a whole safetensors file ({error}). Pickles and .pt files are never loaded: convert it"
            ) from None
        self._sources |= dict.fromkeys(opened.keys(), opened)

    @property
    def names(self) -> list[str]:
        return sorted(self._sources)

    def shape(self, name: str) -> tuple[int, ...]:
        source = self._sources[name]
        return self._array(name).shape if isinstance(source, np.lib.npyio.NpzFile) else tuple(source.get_slice(name).get_shape())

    def parts(self, name: str) -> Iterator[Tensor]:
        """The tensor in pieces along its first dimension, in the dtype it is stored in."""
        source = self._sources[name]
        if isinstance(source, np.lib.npyio.NpzFile):
            yield torch.from_numpy(self._array(name))
            return
        opened, shape = source.get_slice(name), self.shape(name)
        if not shape:
            yield source.get_tensor(name)
            return
        step = max(1, CHUNK // max(1, prod(shape[1:])))
        for start in range(0, shape[0], step):
            yield opened[start : start + step]

    def matrix(self, name: str, expected: tuple[int, ...], what: str) -> Tensor:
        """A matrix in float32, and never more than it and one piece in memory.

        Raises:
            ValueError: the shape is another one, the entries are no floats, or some are NaN or infinite.
        """
        shape = self.shape(name)
        if shape != expected:
            turned = " It looks transposed." if shape == expected[::-1] else ""
            raise ValueError(f"{self.path}: {name} is {shape}, {what} is {expected}.{turned}")
        matrix, row = torch.empty(shape), 0
        for part in self.parts(name):
            if not part.is_floating_point():
                raise ValueError(f"{self.path}: {name} is {part.dtype}, expected floats")
            if not part.isfinite().all():
                raise ValueError(f"{self.path}: {name} holds NaN or infinity; expected finite numbers")
            matrix[row : row + len(part)] = part
            row += len(part)
        return matrix

    def dtype(self, name: str) -> torch.dtype:
        return next(self.parts(name)).dtype

    def find(self, name: str) -> str | None:
        """The tensor of a module path, also where a wrapper's prefix was added or the model's own was left out."""
        for ours, theirs in (("", ""), *RENAMED):
            if name.startswith(ours) and (other := theirs + name.removeprefix(ours)) in self._sources:
                return other
        short = name.partition(".")[2]
        found = [own for own in self.names if own == short or own.endswith(f".{name}")]
        return found[0] if len(found) == 1 else None

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


def _files(folder: Path) -> list[Path]:
    if (folder / INDEX).exists():
        try:
            shards = sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
        except (json.JSONDecodeError, KeyError, AttributeError, UnicodeDecodeError, TypeError):
            raise ValueError(f"{folder / INDEX} is no index of shards (weight_map). Save the checkpoint again") from None
        for shard in shards:
            if Path(shard).name != shard:
                raise ValueError(f"{folder / INDEX} names {shard!r}, which is outside its folder. Save the checkpoint again")
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
