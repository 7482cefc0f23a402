"""Whole matrices W'_V beside the rows of a store, for edits that no factors explain: one safetensors file each, under its edit_id."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

PATTERN = "matrices-*.safetensors"


def write_matrix(folder: Path, index: int, edit_id: str, weight_DF: Tensor) -> None:
    save_file({edit_id: weight_DF.contiguous()}, folder / PATTERN.replace("*", f"{index:05d}"))


def read_matrix(file: Path) -> Tensor:
    (weight_DF,) = load_file(file).values()
    return weight_DF


def stored_matrices(files: Iterable[Path], edit_ids: Sequence[str]) -> dict[int, Path]:
    """Row of an edit -> the file of its matrix, which is read when it is asked for."""
    row_of = {edit_id: row for row, edit_id in enumerate(edit_ids)}
    found = {}
    for file in files:
        with safe_open(file, "pt") as tensors:
            found |= {row_of[name]: file for name in tensors.keys()}
    return found
