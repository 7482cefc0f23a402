"""Making a store: shard by shard beside its final place, then joined and moved there whole.

Shape letters: N edits, D hidden width, F MLP width, W either.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, concatenate_datasets, load_from_disk
from torch import Tensor

from data.store.disagreement import disagreement
from data.store.manifest import FORMAT
from data.store.matrices import PATTERN, write_matrices
from data.store.store import EditStore, features, partial_folder, remove_partial
from decoder.utils.files import refuse_file, sha256_of
from decoder.utils.json_files import write_json


def refuse_place(path: Path) -> None:
    """Raises ValueError or UserError if no store can be made at a path, as something lies there."""
    if path.is_dir() and any(path.iterdir()):
        raise ValueError(f"store={path} exists already, and nothing is written over. Give a new or an empty folder")
    refuse_file("store", path)


def refuse(path: Path, asked: Mapping[str, Any], shard_size: int) -> None:
    """Raises ValueError or UserError if a store of these settings cannot be made at a path: there, or beside it, lies something else."""
    refuse_place(path)
    partial, asked = partial_folder(path), {**asked, "shard_size": shard_size}
    # Another process that was making it may be through at any time.
    with suppress(FileNotFoundError):
        if found := disagreement(json.loads((partial / "asked.json").read_text(encoding="utf-8")), asked):
            told = f"{partial} holds shards made with {', '.join(found)}"
            raise ValueError(f"{told}. Give these settings, another store=, or remove the folder")


class StoreWriter:
    """Writes a store shard by shard beside its final place; nothing half-written is ever seen there.

    A writer that finds an earlier one's shards goes on after them. Nothing lies there before `begin`, or what it writes first.

    Raises:
        ValueError: the shards that lie there were made for something else; the settings are named.
    """

    def __init__(self, path: str | Path, asked: Mapping[str, Any], shard_size: int) -> None:
        self.path, self.asked, self.shard_size = Path(path), dict(asked), shard_size
        refuse(self.path, self.asked, shard_size)
        self.partial = partial_folder(self.path)

    def begin(self) -> None:
        """Keeps the place for these settings.

        Raises:
            ValueError: another writer has begun there meanwhile, with other settings.
        """
        self.partial.mkdir(parents=True, exist_ok=True)
        if (request := self.partial / "asked.json").exists():
            refuse(self.path, self.asked, self.shard_size)
        else:
            write_json(request, self.asked | {"shard_size": self.shard_size})

    @property
    def parts(self) -> int | None:
        """How many parts the shards were last made in, if in several."""
        file = self.partial / "parts.json"
        return json.loads(file.read_text(encoding="utf-8"))["of"] if file.exists() else None

    def note_parts(self, of: int) -> None:
        self.begin()
        write_json(self.partial / "parts.json", {"of": of})

    def has_shard(self, index: int) -> bool:
        return self._shard(index).exists()

    def write_shard(
        self, index: int, columns: Mapping[str, Any], skipped: list[list[str]], matrices: Mapping[str, Tensor] | None = None
    ) -> None:
        """Writes one shard: columns as of `features`, keys (N, F) and values (N, D) as tensors; what was skipped, why; W'_V by edit_id.

        If another process was first, its shard stays.
        """
        self.begin()
        temporary = Path(tempfile.mkdtemp(dir=self.partial, prefix=f"half-{index:05d}-"))
        if columns["edit_id"]:
            _dataset(columns).save_to_disk(str(temporary))
        if matrices:
            write_matrices(temporary, index, matrices)
        write_json(temporary / "skipped.json", skipped)
        try:
            os.replace(temporary, self._shard(index))
        except OSError:
            if not self.has_shard(index):
                raise
            shutil.rmtree(temporary)

    def skipped(self, shards: int) -> list[list[str]]:
        """(edit_id, reason) of every record that could not be edited."""
        return [entry for i in range(shards) for entry in json.loads((self._shard(i) / "skipped.json").read_text(encoding="utf-8"))]

    def finish(self, shards: int, skipped: list[list[str]]) -> EditStore:
        """Joins the shards, writes the manifest with counts and file hashes, and moves the store to its place."""
        temporary = self.partial / "joined"
        shutil.rmtree(temporary, ignore_errors=True)
        parts = [load_from_disk(str(self._shard(i))) for i in range(shards) if (self._shard(i) / "state.json").exists()]
        if not parts:
            raise ValueError(f"store {self.path}: not one edit could be made; the first was skipped because {skipped[0][1]}")
        joined = concatenate_datasets(parts)
        joined.save_to_disk(str(temporary))
        for file in (*self.partial.glob(PATTERN), *self.partial.glob(f"shard-*/{PATTERN}")):
            _link(file, temporary / file.name)
        counts = {"rows": len(joined), "success": int(sum(joined["success"])), "skipped": len(skipped)}
        files = {file.name: sha256_of(file) for file in sorted(temporary.iterdir())}
        write_json(temporary / "manifest.json", {"format": FORMAT, **self.asked, "counts": counts, "skipped": skipped, "files": files})
        if self.path.exists():
            self.path.rmdir()
        os.replace(temporary, self.path)
        remove_partial(self.path)
        return EditStore(self.path)

    def _shard(self, index: int) -> Path:
        return self.partial / f"shard-{index:05d}"


def _link(file: Path, to: Path) -> None:
    """The file under a second name: moved, it would be lost to the next try if this one is killed."""
    try:
        os.link(file, to)
    except OSError:
        shutil.copyfile(file, to)


def _dataset(columns: Mapping[str, Any]) -> Dataset:
    vectors = {name: values for name, values in columns.items() if isinstance(values, Tensor)}
    arrays = {name: values for name, values in columns.items() if name not in vectors}
    for name, vectors_NW in vectors.items():
        arrays[name] = pa.FixedSizeListArray.from_arrays(pa.array(vectors_NW.float().numpy().ravel()), vectors_NW.shape[1])
    schema = features({name: vectors_NW.shape[1] for name, vectors_NW in vectors.items()}, "facts" in columns, columns.keys())
    if "facts" in columns:
        arrays["facts"] = pa.array(columns["facts"], schema.arrow_schema.field("facts").type)
    return Dataset(pa.table({name: arrays[name] for name in schema})).cast(schema)
