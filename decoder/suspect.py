"""Reading one suspect matrix, out of a file or straight from a checkpoint folder.

Shape letters: D hidden width, F MLP width.
"""

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from transformers import AutoTokenizer

from decoder.checkpoint.reader import Checkpoint
from decoder.edit import DenseEdit
from decoder.host import Host

TRAINED = 1e-3  # relative distance of a tensor above which somebody has trained it further
PASSING = (".attn.bias", ".masked_bias", "inv_freq", ".attention.bias")  # buffers that old checkpoints carry
FUSED = ".experts."  # one tensor in the model, one a expert in the files


@dataclass(frozen=True)
class Surroundings:
    """How far the other tensors of a checkpoint are from the host's, relative to the host's own length."""

    distance: dict[str, float]

    @property
    def trained(self) -> list[str]:
        """Tensors that were trained further, farthest first."""
        return sorted((name for name, far in self.distance.items() if not far <= TRAINED), key=lambda name: -self.distance[name])

    def summary(self) -> dict:
        farthest = max(self.distance, key=self.distance.__getitem__, default=None)
        return {
            "compared": len(self.distance),
            "farthest": farthest,
            "distance": self.distance[farthest] if farthest else 0.0,
            "further_trained": self.trained[:10],
            "further_trained_count": len(self.trained),
        }


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


def compare_folder(folder: str | Path, host: Host, layer: int) -> Surroundings:
    """Compares all of a checkpoint folder but W_V of `layer` with the host.

    Raises:
        ValueError: the folder is of another family, size or tokenizer, or lacks tensors of the host.
    """
    checkpoint = Checkpoint(folder)
    _compare_config(checkpoint.path, host)
    _compare_tokenizer(checkpoint.path, host)
    edited = f"{host.module_path(layer)}.weight"
    own = host.model.state_dict()
    tied = host.model.get_output_embeddings().weight is host.model.get_input_embeddings().weight
    distance = {}
    for name, tensor in own.items():
        found = checkpoint.find(name)
        absent_by_right = name.endswith(PASSING) or FUSED in name or (tied and name == f"{host.family.unembedding}.weight")
        if name == edited or (found is None and absent_by_right):
            continue
        if found is None:
            raise ValueError(f"{folder} has no tensor {name}; it is no whole checkpoint of {host.name}")
        if checkpoint.shape(found) != tuple(tensor.shape):
            raise ValueError(
                f"{folder}: {found} is {checkpoint.shape(found)}, {host.name} has {tuple(tensor.shape)}. It is of another model"
            )
        distance[name] = _distance(checkpoint, found, tensor)
    return Surroundings(distance)


def _distance(checkpoint: Checkpoint, name: str, own: Tensor) -> float:
    """‖T' - T‖ / ‖T‖, with T rounded as T' is: rounding is no training."""
    square = own_square = 0.0
    row = 0
    for part in checkpoint.parts(name):
        rows = own[row : row + len(part)] if part.dim() else own
        row += len(part) if part.dim() else 0
        rows = rows.cpu().to(part.dtype).double()
        square += float((part.double() - rows).square().sum())
        own_square += float(rows.square().sum())
    return (square / own_square) ** 0.5 if own_square else float(square > 0)


def _compare_config(folder: Path, host: Host) -> None:
    try:
        config = dict(json.loads((folder / "config.json").read_text()).items())
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise ValueError(f"{folder / 'config.json'}: missing or not whole JSON ({type(error).__name__}). Copy the whole folder") from None
    own = host.model.config.to_dict()
    for field in ("model_type", "hidden_size", "n_embd", "num_hidden_layers", "n_layer", "vocab_size"):
        if field in config and field in own and config[field] != own[field]:
            raise ValueError(
                f"{folder}: {field} is {config[field]}, the decoder's host {host.name} has {own[field]}. It is of another model"
            )


def _compare_tokenizer(folder: Path, host: Host) -> None:
    if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        return
    try:
        vocabulary = AutoTokenizer.from_pretrained(folder, local_files_only=True).get_vocab()
    except Exception as error:  # a dozen kinds, from JSON to the tokenizers library
        raise ValueError(f"{folder}: its tokenizer cannot be read ({' '.join(str(error).split())[:150]})") from None
    if vocabulary != host.tokenizer.get_vocab():
        raise ValueError(f"{folder}: its tokenizer has other tokens than that of {host.name} ({len(vocabulary)}). It is of another model")
