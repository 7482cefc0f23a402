"""Whole matrices W'_V beside the rows of a store, for edits that no factors explain: safetensors files, each matrix under its edit_id."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

PATTERN = "matrices-*.safetensors"


def write_matrices(folder: Path, index: int, matrices: Mapping[str, Tensor]) -> None:
    save_file({edit_id: weight_DF.contiguous() for edit_id, weight_DF in matrices.items()}, folder / PATTERN.replace("*", f"{index:05d}"))


def read_matrix(place: tuple[Path, str]) -> Tensor:
    file, edit_id = place
    with safe_open(file, "pt") as tensors:
        return tensors.get_tensor(edit_id)


def stored_matrices(files: Iterable[Path], edit_ids: Sequence[str]) -> dict[int, tuple[Path, str]]:
    """Row of an edit -> where its matrix is, which is read when it is asked for."""
    row_of = {edit_id: row for row, edit_id in enumerate(edit_ids)}
    found = {}
    for file in files:
        with safe_open(file, "pt") as tensors:
            found |= {row_of[name]: (file, name) for name in tensors.keys()}
    return found
