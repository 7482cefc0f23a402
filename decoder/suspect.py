"""Reading one suspect matrix out of a file.

Shape letters: D hidden width, F MLP width.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from decoder.edit import DenseEdit
from decoder.host import Host


def read_suspect(file: str | Path, host: Host, layer: int, tensor: str | None = None) -> DenseEdit:
    """The suspect W'_V of `layer` from a safetensors file, in the host's own orientation and any float dtype.

    Raises:
        ValueError: the file is no safetensors file (pickles are never loaded), it has no or several 2-D tensors, or the matrix
            has another shape, is not of floats, or holds NaN or infinity.
    """
    file = Path(file)
    if not file.is_file():
        raise ValueError(f"suspect={file}: no such file")
    try:
        with safe_open(str(file), "pt") as opened:
            name = tensor or _only_matrix(file, {key: opened.get_slice(key).get_shape() for key in opened.keys()})
            if name not in opened.keys():
                raise ValueError(f"{file} has no tensor {name!r}; it has {', '.join(sorted(opened.keys()))}")
            matrix = opened.get_tensor(name)
    except SafetensorError as error:
        raise ValueError(f"{file} is not a whole safetensors file ({error}). Pickles and .pt files are never loaded: convert it") from None
    _check(file, name, matrix, host, layer)
    matrix_DF = matrix.T if host.stored_transposed(layer) else matrix
    return DenseEdit(matrix_DF.unsqueeze(0).to(host.device, torch.float32))


def _only_matrix(file: Path, shapes: dict[str, list[int]]) -> str:
    matrices = [name for name, shape in shapes.items() if len(shape) == 2]
    if len(matrices) != 1:
        found = ", ".join(sorted(matrices)) or "none"
        raise ValueError(f"{file} has {len(matrices)} 2-D tensors ({found}); expected one. Name it with tensor=NAME")
    return matrices[0]


def _check(file: Path, name: str, matrix: torch.Tensor, host: Host, layer: int) -> None:
    expected = tuple(host.down_proj(layer).weight.shape)
    if tuple(matrix.shape) != expected:
        turned = " It looks transposed." if tuple(matrix.shape) == expected[::-1] else ""
        raise ValueError(f"{file}: {name} is {tuple(matrix.shape)}, {host.module_path(layer)} of {host.name} is {expected}.{turned}")
    if not matrix.is_floating_point():
        raise ValueError(f"{file}: {name} is {matrix.dtype}, expected floats")
    if not torch.isfinite(matrix.float()).all():
        raise ValueError(f"{file}: {name} holds NaN or infinity; expected finite numbers")
