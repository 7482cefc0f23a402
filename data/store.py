"""The store of edits: a Hugging Face dataset on disk, one row an edit, with `manifest.json` beside it.

A row holds a key and a value. In a store of rank R (the manifest's `rank`) it holds R of each, one after the other, and edits that no
factors explain have their whole matrices in `matrices-*.safetensors`, under their edit_id.

Shape letters: N edits, B of them, R rank, D hidden width, F MLP width.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from datasets import Dataset, Features, List, Value, concatenate_datasets, load_from_disk
from torch import Tensor

from data.matrices import PATTERN, matrices_of
from data.vectors import VectorColumn
from decoder.edit import DenseEdit, LowRankEdit, RankOneEdit
from decoder.paths import cache_root, short_hash

FORMAT = 1
IMPORTED = "imported"  # the editor of edits that other tools made
TEXT_COLUMNS = ("edit_id", "fact_id", "subject", "relation", "relation_name", "kind", "prompt", "object_true", "object")
SCORE_COLUMNS = (
    "efficacy", "paraphrase", "specificity", "es", "ps", "ns",
    "efficacy_probability", "paraphrase_probability", "specificity_probability", "delta_norm_ratio",
)  # fmt: skip


def features(hidden_size: int, mlp_size: int) -> Features:
    """The columns of a store; the lengths of key and value are part of their type, so that a wrong one is refused."""
    return Features(
        {name: Value("string") for name in TEXT_COLUMNS}
        | {"object_ids": List(Value("int32"))}
        | {"key": List(Value("float32"), length=mlp_size), "value": List(Value("float32"), length=hidden_size)}
        | {name: Value("float32") for name in SCORE_COLUMNS}
        | {"success": Value("bool")}
    )


class EditStore:
    """Finished edits, memory-mapped.

    Raises:
        ValueError: the folder is no store, or a file is missing, cut short or changed; the file is named.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.manifest = read_manifest(self.path)
        _check_files(self.path, self.manifest["files"])
        self.dataset = load_from_disk(str(self.path))
        self._table = self.dataset.data.table
        self._keys, self._values = VectorColumn(self._table["key"]), VectorColumn(self._table["value"])
        self.object_ids: list[list[int]] = self._table["object_ids"].to_pylist()
        files = [self.path / name for name in self.manifest["files"] if Path(name).match(PATTERN)]
        self.matrix_of = matrices_of(files, self._table["edit_id"].to_pylist()) if files else {}

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def is_dense(self) -> bool:
        """Whether some edits are whole matrices: all of them are read as such then, by `whole_edits`."""
        return bool(self.matrix_of)

    def edits(self, rows: Tensor) -> RankOneEdit | LowRankEdit:
        """The factors of the edits in `rows`, nothing else is read; of an edit that they do not explain, those that explain most of it."""
        key_BF, value_BD = self._keys.rows(rows), self._values.rows(rows)
        if (rank := self.manifest.get("rank", 1)) == 1:
            return RankOneEdit(key_BF, value_BD)
        return LowRankEdit(key_BF.unflatten(1, (rank, -1)), value_BD.unflatten(1, (rank, -1)))

    def whole_edits(self, rows: Tensor, weight_DF: Tensor) -> DenseEdit:
        """W'_V of the edits in `rows`, in the dtype of `weight_DF`, the W_V they were made on."""
        edits = self.edits(rows).applied_to(weight_DF)
        for b, row in enumerate(rows.tolist()):
            if row in self.matrix_of:
                edits.weight_BDF[b] = self.matrix_of[row].read()
        return edits

    @property
    def key_NF(self) -> Tensor:
        """All keys; in memory, unlike what `edits` reads."""
        return self._keys.whole()

    @property
    def value_ND(self) -> Tensor:
        return self._values.whole()

    def table(self) -> pd.DataFrame:
        """All columns but the vectors, in store order."""
        return self._table.select([*TEXT_COLUMNS, *SCORE_COLUMNS, "success"]).to_pandas()

    @property
    def fingerprint(self) -> str:
        return fingerprint_of(self.manifest["files"])

    def check(self, asked: Mapping[str, Any]) -> None:
        """Raises ValueError, naming the field, if the manifest differs from what is asked."""
        check_manifest(self.path, self.manifest, asked)


def find_store(cache_dir: str | None, fingerprint: str) -> EditStore:
    """The store in the cache that has a fingerprint.

    Raises:
        ValueError: there is none.
    """
    stores = cache_root(cache_dir) / "stores"
    for file in sorted(stores.glob("*/manifest.json")):
        try:
            files = read_manifest(file.parent)["files"]
        except ValueError:
            continue  # another store's damage is not this decoder's
        if fingerprint_of(files) == fingerprint:
            return EditStore(file.parent)
    raise ValueError(f"no store with fingerprint {fingerprint} in {stores}. Give the store of this decoder's edits with store=FOLDER")


def fingerprint_of(files: Mapping[str, str]) -> str:
    """12 hex digits over the hashes of a store's data files."""
    return short_hash({name: digest for name, digest in files.items() if name.endswith(".arrow")})


class StoreWriter:
    """Writes a store shard by shard beside its final place; nothing half-written is ever seen there.

    A writer that finds an earlier one's shards goes on after them.

    Raises:
        ValueError: the shards that lie there were made for something else; the field is named.
    """

    def __init__(self, path: str | Path, asked: Mapping[str, Any], shard_size: int) -> None:
        self.path, self.asked = Path(path), dict(asked)
        if self.path.exists() and not (self.path.is_dir() and not any(self.path.iterdir())):
            raise ValueError(f"store={self.path} exists and is no store of edits. Give a new or an empty folder")
        self.partial = partial_folder(self.path)
        self.partial.mkdir(parents=True, exist_ok=True)
        request = self.partial / "asked.json"
        if request.exists():
            found = json.loads(request.read_text())
            for field, value in {**self.asked, "shard_size": shard_size}.items():
                if found.get(field) != value:
                    old, new = _first_difference(found.get(field), value)
                    raise ValueError(
                        f"{self.partial} holds shards with {field}={old}, asked for {new}. Remove the folder or give another store="
                    )
        else:
            write_json(request, {**self.asked, "shard_size": shard_size})

    @property
    def parts(self) -> int | None:
        """How many parts the shards were last made in, if in several."""
        file = self.partial / "parts.json"
        return json.loads(file.read_text())["of"] if file.exists() else None

    def note_parts(self, of: int) -> None:
        write_json(self.partial / "parts.json", {"of": of})

    def has_shard(self, index: int) -> bool:
        return self._shard(index).exists()

    def write_shard(self, index: int, columns: Mapping[str, Any], skipped: list[list[str]]) -> None:
        """Writes one shard: columns as of `features`, `key` (N, F) and `value` (N, D) as tensors; and what was skipped, why.

        If another process was first, its shard stays.
        """
        temporary = Path(tempfile.mkdtemp(dir=self.partial, prefix=f"half-{index:05d}-"))
        if columns["edit_id"]:
            _dataset(columns).save_to_disk(str(temporary))
        write_json(temporary / "skipped.json", skipped)
        try:
            os.replace(temporary, self._shard(index))
        except OSError:
            if not self.has_shard(index):
                raise
            shutil.rmtree(temporary)

    def skipped(self, shards: int) -> list[list[str]]:
        """(edit_id, reason) of every record that could not be edited."""
        return [entry for i in range(shards) for entry in json.loads((self._shard(i) / "skipped.json").read_text())]

    def finish(self, shards: int, skipped: list[list[str]]) -> EditStore:
        """Joins the shards, writes the manifest with counts and file hashes, and moves the store to its place."""
        temporary = self.partial / "joined"
        shutil.rmtree(temporary, ignore_errors=True)
        parts = [load_from_disk(str(self._shard(i))) for i in range(shards) if (self._shard(i) / "state.json").exists()]
        if not parts:
            raise ValueError(f"store {self.path}: not one edit could be made; the first was skipped because {skipped[0][1]}")
        joined = concatenate_datasets(parts)
        joined.save_to_disk(str(temporary))
        for file in self.partial.glob(PATTERN):
            _link(file, temporary / file.name)
        counts = {"rows": len(joined), "success": int(sum(joined["success"])), "skipped": len(skipped)}
        files = {file.name: _sha256(file) for file in sorted(temporary.iterdir())}
        write_json(temporary / "manifest.json", {"format": FORMAT, **self.asked, "counts": counts, "skipped": skipped, "files": files})
        if self.path.exists():
            self.path.rmdir()
        os.replace(temporary, self.path)
        remove_partial(self.path)
        return EditStore(self.path)

    def _shard(self, index: int) -> Path:
        return self.partial / f"shard-{index:05d}"


def partial_folder(path: Path) -> Path:
    """Where the shards of a store lie until it is whole."""
    return path.with_name(path.name + ".partial")


def remove_partial(path: Path) -> None:
    """Removes what was left of a store's making; killed halfway, it leaves no shard without its `asked.json`."""
    for shard in partial_folder(path).glob("shard-*"):
        shutil.rmtree(shard, ignore_errors=True)
    shutil.rmtree(partial_folder(path), ignore_errors=True)


def _link(file: Path, to: Path) -> None:
    """The file under a second name: moved, it would be lost to the next try if this one is killed."""
    try:
        os.link(file, to)
    except OSError:
        shutil.copyfile(file, to)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON so that a reader sees the old file or the whole new one."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
    os.replace(temporary, path)


def _dataset(columns: Mapping[str, Any]) -> Dataset:
    arrays = {name: values for name, values in columns.items() if name not in ("key", "value")}
    for name in ("key", "value"):
        flat = pa.array(columns[name].float().numpy().ravel())
        arrays[name] = pa.FixedSizeListArray.from_arrays(flat, columns[name].shape[1])
    schema = features(columns["value"].shape[1], columns["key"].shape[1])
    return Dataset(pa.table({name: arrays[name] for name in schema})).cast(schema)


def check_manifest(path: str | Path, manifest: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Raises ValueError, naming the field, if a store's manifest differs from what is asked."""
    for field, value in asked.items():
        if manifest.get(field) != value:
            found, wanted = _first_difference(manifest.get(field), value)
            raise ValueError(f"store {path}: {field} is {found}, asked for {wanted}. Give another store= or make it anew")


def read_manifest(path: Path) -> dict[str, Any]:
    file = path / "manifest.json"
    if not file.exists():
        raise ValueError(f"{path} is no store of edits: there is no manifest.json. Give a folder made by `python -m data.produce`")
    try:
        manifest = json.loads(file.read_text())
    except json.JSONDecodeError:
        raise ValueError(f"{file} is not whole JSON. Make the store anew") from None
    if manifest.get("format") != FORMAT:
        raise ValueError(f"{file}: format {manifest.get('format')}, this version reads {FORMAT}")
    return manifest


def _check_files(path: Path, files: Mapping[str, str]) -> None:
    for name, expected in files.items():
        if not (path / name).exists():
            raise ValueError(f"store {path}: {name} is missing. The other files are as they were; make the store anew to complete it")
        if _sha256(path / name) != expected:
            raise ValueError(f"store {path}: {name} is cut short or changed (its sha256 is not the manifest's). Make the store anew")


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _first_difference(found: Any, wanted: Any) -> tuple[str, str]:
    """The first differing entry of two settings, as text."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for name in sorted({*found, *wanted}):
            if found.get(name) != wanted.get(name):
                inner = _first_difference(found.get(name), wanted.get(name))
                return f"{name}: {inner[0]}", f"{name}: {inner[1]}"
    return repr(found), repr(wanted)
