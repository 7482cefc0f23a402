"""Reading one suspect matrix, out of a file or straight from a checkpoint folder.

Shape letters: D hidden width, F MLP width.
"""

from contextlib import suppress
from pathlib import Path

from torch import Tensor

from decoder.checkpoint.reader import Checkpoint
from decoder.dense import DenseEdit
from decoder.host import Host


def read_suspect(path: str | Path, host: Host, layer: int, tensor: str | None = None) -> DenseEdit:
    """The suspect W'_V of `layer`, in canonical orientation and the dtype it is stored in (float64: float32).

    Args:
        path: safetensors or npz file, or checkpoint folder.
        tensor: its name, if a file holds several matrices and not under the host's own name.

    Raises:
        ValueError: nothing to read there (pickles are never loaded), no or several 2-D tensors, or the matrix has another shape, is
            not of floats, or holds NaN or infinity.
    """
    if not Path(path).exists():
        raise ValueError(f"suspect={path}: no such file")
    checkpoint = Checkpoint(path)
    name = tensor or tensor_name(checkpoint, host, layer)
    if name not in checkpoint.names:
        raise ValueError(f"{path} has no tensor {name!r}; it has {', '.join(checkpoint.names[:20])}")
    return DenseEdit(read_weight_DF(checkpoint, name, host, layer).unsqueeze(0).to(host.device))


def read_weight_DF(checkpoint: Checkpoint, name: str, host: Host, layer: int) -> Tensor:
    """One matrix in canonical orientation and the dtype it is stored in (float64: float32)."""
    expected = tuple(host.down_proj(layer).weight.shape)
    matrix = checkpoint.matrix(name, expected, f"{host.module_path(layer)} of {host.name}")
    return matrix.T if host.stored_transposed(layer) else matrix


def tensor_name(checkpoint: Checkpoint, host: Host, layer: int) -> str:
    """What the checkpoint calls W_V of a layer: the host's name for it, or its only matrix."""
    if found := checkpoint.find_weight(host.module_path(layer)):
        return found
    if checkpoint.path.is_dir():
        raise ValueError(
            f"{checkpoint.path} has no {host.module_path(layer)}.weight; is it a checkpoint of {host.name}? Name it with tensor=NAME"
        )
    matrices = [name for name in checkpoint.names if len(checkpoint.shape(name)) == 2]
    if len(matrices) != 1:
        found = ", ".join(matrices[:20]) or "none"
        raise ValueError(f"{checkpoint.path} has {len(matrices)} 2-D tensors ({found}); expected one. Name it with tensor=NAME")
    if (other := _layer_named(checkpoint, matrices[0], host)) is not None:
        raise ValueError(
            f"{checkpoint.path}: {matrices[0]} is of layer {other}, the decoder reads layer {layer}. "
            "Use a decoder of that layer; tensor=NAME reads it all the same"
        )
    return matrices[0]


def _layer_named(checkpoint: Checkpoint, name: str, host: Host) -> int | None:
    """The layer whose W_V the host calls so."""
    for layer in range(host.layers):
        with suppress(ValueError):  # a layer without a down-projection of its own
            if checkpoint.find_weight(host.module_path(layer)) == name:
                return layer
    return None
