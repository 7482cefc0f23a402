"""How far a suspect's tensors are from the host's, one after the other."""

import json
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from transformers import AutoTokenizer

from decoder.checkpoint.reader import Checkpoint
from decoder.host import Host

TRAINED = 1e-3  # relative distance of a tensor above which somebody has trained it further


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
        absent_by_right = (host.family.fused and host.family.fused in name) or (tied and name == "lm_head.weight")
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
