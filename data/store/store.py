"""The store of edits: a Hugging Face dataset on disk, one row an edit, with `manifest.json` beside it.

A row is an edited host: it holds a key and a value. In a store of rank R (the manifest's `rank`) it holds R of each, one after the other,
and edits that no factors explain have their whole matrices in `matrices-*.safetensors`. Hosts that are edited in several layers (the
manifest's `layers`) have columns for each: `key_0`, `value_0`, `key_1`, ...

Shape letters: B edits, R rank, D hidden width, F MLP width.
"""

import glob
import json
import shutil
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
from datasets import Features, List, Value, load_from_disk
from torch import Tensor

from data.store.disagreement import disagreement
from data.store.manifest import Described, check_files, fingerprint_of, read_manifest
from data.store.matrices import PATTERN, read_matrix, stored_matrices
from data.store.vectors import VectorColumn, factors
from decoder.dense import DenseEdit, applied
from decoder.edit import LayerEdits, LowRankEdit, RankOneEdit
from decoder.utils.files import cache_root

PARTIAL = ".partial"
TEXT_COLUMNS = ("edit_id", "fact_id", "subject", "relation", "relation_name", "kind", "prompt", "object_true", "object")
SCORE_COLUMNS = (
    "efficacy", "paraphrase", "specificity", "es", "ps", "ns",
    "efficacy_probability", "paraphrase_probability", "specificity_probability", "delta_norm_ratio",
)  # fmt: skip

FURTHER_COLUMNS = dict.fromkeys(
    ("fluency", "portability", "portability_probability", "portability_tokens", "seconds", "peak_memory", "perplexity"), "float32"
) | {"broken": "bool"}
"""Scores that a store has if they were asked for; the last two by `edits.broken_from`."""

FACT_SCORES = ("efficacy", "paraphrase", "specificity")
"""What is kept of each of several facts of a host; the columns are their means."""


def vector_columns(layers: Sequence[int]) -> dict[int, tuple[str, str]]:
    """Layer -> names of the columns of its keys and values."""
    return {layer: ("key", "value") if len(layers) == 1 else (f"key_{layer}", f"value_{layer}") for layer in layers}


def features(lengths: Mapping[str, int], several: bool = False, further: Collection[str] = ()) -> Features:
    """The columns of a store; the lengths of keys and values are part of their type, so that a wrong one is refused.

    Args:
        lengths: of each column of keys or values.
        several: whether some hosts have several facts planted, which `facts` lists then.
        further: those of `FURTHER_COLUMNS` that are there.
    """
    of_a_fact = {name: Value("string") for name in TEXT_COLUMNS} | {"object_ids": List(Value("int32"))}
    of_a_fact |= {name: Value("float32") for name in FACT_SCORES}
    return Features(
        {name: Value("string") for name in TEXT_COLUMNS}
        | {"object_ids": List(Value("int32"))}
        | {name: List(Value("float32"), length=length) for name, length in lengths.items()}
        | {name: Value("float32") for name in SCORE_COLUMNS}
        | {"success": Value("bool")}
        | {name: Value(kind) for name, kind in FURTHER_COLUMNS.items() if name in further}
        | ({"facts": List(of_a_fact)} if several else {})
    )


class EditStore(Described):
    """Finished edits, memory-mapped.

    Raises:
        ValueError: the folder is no store, or a file is missing, cut short or changed; the file is named.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.manifest = read_manifest(self.path)
        check_files(self.path, self.manifest["files"])
        self.dataset = load_from_disk(str(self.path))
        self._table = self.dataset.data.table
        columns = vector_columns(self.layers)
        self._vectors = {layer: tuple(VectorColumn(self._table[name]) for name in names) for layer, names in columns.items()}
        self.object_ids: list[list[int]] = self._table["object_ids"].to_pylist()
        files = [self.path / name for name in self.manifest["files"] if Path(name).match(PATTERN)]
        self.matrix_of = stored_matrices(files, self._table["edit_id"].to_pylist(), self.layers) if files else {}

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def is_dense(self) -> bool:
        """Whether some edits are whole matrices: all of them are read as such then, by `whole_edits`."""
        return bool(self.matrix_of)

    def edits(self, rows: Tensor) -> RankOneEdit | LowRankEdit | LayerEdits:
        """The factors of the edits in `rows`, nothing else is read; of an edit that they do not explain, those that explain most of it."""
        return LayerEdits({layer: self._factors(layer, rows) for layer in self.layers}).unwrapped

    def _factors(self, layer: int, rows: Tensor) -> RankOneEdit | LowRankEdit:
        key_BF, value_BD = (column.rows(rows) for column in self._vectors[layer])
        return factors(key_BF, value_BD, self.manifest.get("rank", 1))

    def facts(self, row: int) -> list[dict[str, Any]]:
        """All that is planted in the edited host of a row, with its scores; a store of one fact a host has no list of them."""
        if "facts" in self._table.column_names:
            return self._table["facts"][row].as_py()
        names = [*TEXT_COLUMNS, "object_ids", *FACT_SCORES]
        return [{name: self._table[name][row].as_py() for name in names}]

    def whole_edits(self, rows: Tensor, weight_DF: Tensor | Mapping[int, Tensor]) -> DenseEdit | LayerEdits:
        """W'_V of the edits in `rows`, in the dtype of `weight_DF`, the W_V they were made on: of several layers, {layer: W_V}."""
        if isinstance(weight_DF, Mapping):
            return LayerEdits({layer: self._whole(layer, rows, own_DF) for layer, own_DF in weight_DF.items()})
        return self._whole(self.layers[0], rows, weight_DF)

    def _whole(self, layer: int, rows: Tensor, weight_DF: Tensor) -> DenseEdit:
        edits = applied(self._factors(layer, rows), weight_DF)
        for b, row in enumerate(rows.tolist()):
            if (row, layer) in self.matrix_of:
                edits.weight_BDF[b] = read_matrix(self.matrix_of[row, layer])
        return edits

    def table(self) -> pd.DataFrame:
        """All columns but the vectors, in store order."""
        further = [name for name in FURTHER_COLUMNS if name in self._table.column_names]
        return self._table.select([*TEXT_COLUMNS, *SCORE_COLUMNS, "success", *further]).to_pandas()


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


def made_before(place: Path, asked: Mapping[str, Any]) -> Path:
    """`place`, or a store beside it, or the shards of one, that was made for the same and lies there under another hash."""
    if place.exists() or partial_folder(place).exists():
        return place
    like = glob.escape(place.name.rpartition("-")[0])
    for name, pattern in (("manifest.json", f"{like}-*"), ("asked.json", partial_folder(Path(f"{like}-*")).name)):
        for file in sorted(place.parent.glob(f"{pattern}/{name}")):
            # One that is damaged is no store of anything.
            with suppress(OSError, ValueError, KeyError, AttributeError, TypeError):
                if not disagreement(json.loads(file.read_text(encoding="utf-8")), asked):
                    return file.parent.with_name(file.parent.name.removesuffix(PARTIAL))
    return place


def partial_folder(path: Path) -> Path:
    """Where the shards of a store lie until it is whole."""
    return path.with_name(path.name + PARTIAL)


def remove_partial(path: Path) -> None:
    """Removes what was left of a store's making; killed halfway, it leaves no shard without its `asked.json`."""
    for shard in partial_folder(path).glob("shard-*"):
        shutil.rmtree(shard, ignore_errors=True)
    shutil.rmtree(partial_folder(path), ignore_errors=True)
