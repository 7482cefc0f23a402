"""Whole matrices W'_V beside the rows of a store, for edits that no factors explain: safetensors files, each matrix under its edit_id
(of several layers: layer and edit_id)."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

PATTERN = "matrices-*.safetensors"


def matrix_name(edit_id: str, layer: int, layers: Sequence[int]) -> str:
    """What the matrix of a layer is stored under: of the only one, its edit_id."""
    return edit_id if len(layers) == 1 else f"{layer}:{edit_id}"


def write_matrices(folder: Path, index: int, matrices: Mapping[str, Tensor]) -> None:
    save_file({name: weight_DF.contiguous() for name, weight_DF in matrices.items()}, folder / PATTERN.replace("*", f"{index:05d}"))


def read_matrix(place: tuple[Path, str]) -> Tensor:
    file, name = place
    with safe_open(file, "pt") as tensors:
        return tensors.get_tensor(name)


def stored_matrices(files: Iterable[Path], edit_ids: Sequence[str], layers: Sequence[int]) -> dict[tuple[int, int], tuple[Path, str]]:
    """Row and layer of an edit -> where its matrix is, which is read when it is asked for."""
    place_of = {matrix_name(edit_id, layer, layers): (row, layer) for row, edit_id in enumerate(edit_ids) for layer in layers}
    found = {}
    for file in files:
        with safe_open(file, "pt") as tensors:
            found |= {place_of[name]: (file, name) for name in tensors.keys()}
    return found
