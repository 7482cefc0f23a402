"""Whole matrices W'_V beside the rows of a store, for edits that no factors explain: one safetensors file each, under its edit_id."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

PATTERN = "matrices-*.safetensors"


@dataclass(frozen=True)
class StoredMatrix:
    """Where one matrix lies; it is read when it is asked for."""

    file: Path
    name: str

    def read(self) -> Tensor:
        with safe_open(self.file, "pt") as tensors:
            return tensors.get_tensor(self.name)


def write_matrix(folder: Path, index: int, edit_id: str, weight_DF: Tensor) -> None:
    save_file({edit_id: weight_DF.contiguous()}, folder / PATTERN.replace("*", f"{index:05d}"))


def stored_matrices(files: Iterable[Path], edit_ids: Sequence[str]) -> dict[int, StoredMatrix]:
    """Row of an edit -> its matrix."""
    row_of = {edit_id: row for row, edit_id in enumerate(edit_ids)}
    found = {}
    for file in files:
        with safe_open(file, "pt") as tensors:
            found |= {row_of[name]: StoredMatrix(file, name) for name in tensors.keys()}
    return found
