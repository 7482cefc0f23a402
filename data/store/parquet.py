"""A store as Parquet files, on disk or on the Hub, read from beginning to end and never as a whole.

Shape letters: B edits on their way, W width of a stored vector.
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import load_dataset
from torch import Tensor

from data.store.manifest import IMPORTED, Described, read_manifest
from data.store.store import SCORE_COLUMNS, TEXT_COLUMNS, EditStore, vector_columns
from data.store.vectors import VectorColumn, factors
from decoder.edit import Edits, LayerEdits
from decoder.utils.files import refuse_file
from decoder.utils.json_files import write_json

FILE_ROWS = 10_000
CHUNK = 256  # rows read at a time


def write_parquet(store: EditStore, folder: Path) -> None:
    """Writes a store as Parquet files with its manifest: what `data.streaming=true` reads here, and from the Hub once uploaded.

    Raises:
        ValueError: the folder exists and is not empty, or what the store holds is no columns of numbers alone: whole matrices, several
            facts of a host; or it is of edits that other tools made, which no config asks for.
    """
    refuse_parquet(folder)
    if store.is_dense or "facts" in store.dataset.column_names or store.manifest["editor"]["name"] == IMPORTED:
        raise ValueError(
            f"parquet={folder}: {store.path} holds whole matrices, several facts a host, or edits of other tools, which are read from "
            "their own store only"
        )
    folder.mkdir(parents=True, exist_ok=True)
    table, rows = store.dataset.data.table, {}
    for start in range(0, len(table), FILE_ROWS):
        part = table.slice(start, FILE_ROWS)
        name = f"edits-{start // FILE_ROWS:05d}.parquet"
        pq.write_table(part, folder / name, row_group_size=CHUNK, use_dictionary=list(TEXT_COLUMNS))
        rows[name] = len(part)
    # Last, so that a folder with a manifest is whole.
    write_json(folder / "manifest.json", store.manifest | {"parquet": rows})


def refuse_parquet(folder: Path) -> None:
    """Raises ValueError or UserError if something lies at a folder."""
    refuse_file("parquet", folder)
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"parquet={folder}: the folder is not empty. Give a new one")


class Vectors(NamedTuple):
    """Some edits on their way."""

    place_B: np.ndarray
    """Place of each edit among those asked for."""
    columns: tuple[Tensor, ...]
    """Keys and values (B, W) of each layer."""

    def __getitem__(self, index: Any) -> "Vectors":
        return Vectors(self.place_B[index], tuple(column[index] for column in self.columns))


def joined(parts: Sequence[Vectors]) -> Vectors:
    columns = zip(*(part.columns for part in parts), strict=True)
    return Vectors(np.concatenate([part.place_B for part in parts]), tuple(map(torch.cat, columns)))


class EditStream(Described):
    """The Parquet files of a store in a local folder, or of a data set on the Hub (`user/name`).

    It answers what an `EditStore` answers; vectors are read in one pass over the files.

    Raises:
        ValueError: there is no such folder or data set, it holds no Parquet store, or a file of a folder is missing or damaged.
    """

    def __init__(self, source: str) -> None:
        self.path, folder = source, Path(source).expanduser()
        if folder.is_dir():
            self._base, manifest = f"{folder}/", folder
        else:
            self._base, manifest = f"hf://datasets/{source}/", _hub_manifest(source)
        self.manifest = read_manifest(manifest)
        if "parquet" not in self.manifest:
            raise ValueError(
                f"store={source}: holds no Parquet files; data.streaming=false reads it, parquet=FOLDER of data.produce writes some"
            )
        self._rows: dict[str, int] = self.manifest["parquet"]
        if folder.is_dir():
            for name, rows in self._rows.items():
                _check_file(folder / name, rows)

    def __len__(self) -> int:
        return sum(self._rows.values())

    def table(self) -> pd.DataFrame:
        """All columns but the vectors."""
        return self._texts.drop(columns="object_ids")

    @cached_property
    def object_ids(self) -> list[list[int]]:
        return [ids.tolist() for ids in self._texts["object_ids"]]

    def edits(self, rows: Tensor) -> Edits:
        """The factors of the edits in `rows`, in one pass over all files."""
        found = joined(list(self.vectors(rows.tolist())))
        return self.built(found[np.argsort(found.place_B)])

    def built(self, part: Vectors) -> Edits:
        """The factors, of several layers by layer."""
        keys, values = part.columns[::2], part.columns[1::2]
        rank = self.manifest.get("rank", 1)
        by_layer = {layer: factors(*pair, rank) for layer, *pair in zip(self.layers, keys, values, strict=True)}
        return LayerEdits(by_layer).unwrapped

    def vectors(self, rows: list[int], files: list[str] | None = None) -> Iterator[Vectors]:
        """The edits in `rows`, a few at a time, in the order of the files."""
        place_of = np.full(len(self), -1)
        place_of[rows] = np.arange(len(rows))
        starts = dict(zip(self._rows, itertools.accumulate(self._rows.values(), initial=0), strict=False))
        for name in files or list(self._rows):
            row = starts[name]
            for table in self._read([name], self._vector_columns):
                place_B = place_of[row : row + len(table)]
                row += len(table)
                (wanted,) = np.nonzero(place_B >= 0)
                if len(wanted):
                    rows_B = torch.from_numpy(wanted)
                    yield Vectors(place_B[wanted], tuple(VectorColumn(table[column]).rows(rows_B) for column in self._vector_columns))

    def file_order(self, rng: np.random.Generator) -> list[str]:
        return rng.permutation(list(self._rows)).tolist()

    @property
    def _vector_columns(self) -> list[str]:
        return [name for names in vector_columns(self.layers).values() for name in names]

    @cached_property
    def _texts(self) -> pd.DataFrame:
        columns = [*TEXT_COLUMNS, *SCORE_COLUMNS, "success", "object_ids"]
        return pa.concat_tables(self._read(list(self._rows), columns)).select(columns).to_pandas()

    def _read(self, names: list[str], columns: list[str]) -> Iterator[pa.Table]:
        files = [f"{self._base}{name}" for name in names]
        rows = load_dataset("parquet", data_files=files, split="train", streaming=True, columns=columns)
        return rows.with_format("arrow").iter(batch_size=CHUNK)


def _check_file(file: Path, rows: int) -> None:
    """Raises ValueError if a Parquet file is missing, damaged or of another length than its manifest says."""
    try:
        found = pq.read_metadata(file).num_rows
    except FileNotFoundError:
        found = "missing"
    except (OSError, pa.ArrowException) as error:
        found = f"damaged ({' '.join(str(error).split())[:80]})"
    if found != rows:
        told = f"is {found}" if isinstance(found, str) else f"has {found} edits, its manifest says {rows}"
        raise ValueError(f"{file} {told}. Copy it again, or write the folder anew with python -m data.produce parquet=FOLDER")


def _hub_manifest(source: str) -> Path:
    """Folder with the manifest of a data set on the Hub."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(source, "manifest.json", repo_type="dataset")).parent
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, json.JSONDecodeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"store={source}: neither a folder here nor a data set on the Hub that can be read ({reason})") from None
