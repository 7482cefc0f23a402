"""Exported decoders: a folder with `decoder_config.json`, `decoder_model.safetensors` and a model card. No pickle anywhere.

Also a command: `python -m decoder.export runs/layers to=decoders` collects the best of several runs (`decoder/export/collection.py`). Only
saving and loading import torch.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import decoder as package
from decoder.checkpoint.gguf_header import made_from
from decoder.config.options import as_list, one_or_list
from decoder.export.card import model_card
from decoder.utils.files import whole_folder, write_text
from decoder.utils.json_files import read_described, write_json

if TYPE_CHECKING:
    from decoder.host import Host
    from decoder.model import ObjectDecoder

FORMAT = 2
CONFIG, WEIGHTS, CARD = "decoder_config.json", "decoder_model.safetensors", "README.md"
LEADING_SPACE = "objects are tokenised with one leading space"


def decoder_config(decoder: "ObjectDecoder") -> dict[str, Any]:
    """What a decoder is and which host and matrix it belongs to."""
    host, layers = decoder.host, decoder.edited_layers
    return {
        "format": FORMAT,
        "package_version": package.__version__,
        "host": _described(host),
        "module": one_or_list([host.module_path(layer) for layer in layers]),
        "edited_layer": one_or_list(layers),
        "trained_layer": decoder.trained_layers,
        "shape": one_or_list([list(host.weight_DF(layer).shape) for layer in layers]),
        "base_sha256": one_or_list([host.base_sha256(layer) for layer in layers]),
        "prompt_length": len(decoder.prompt_MD),
        "scope": decoder.scope,
        "arithmetic": decoder.arithmetic,
        "apart": decoder.apart,
        "terminator_id": host.terminator_id,
        "learnt_end": decoder.ending is not None,
        "own_key_tokens": decoder.own_keys.tokens if decoder.own_keys else 0,
        "object_rule": LEADING_SPACE,
    }


def _described(host: "Host") -> dict[str, Any]:
    """What a config says of its host: of one in a palimpsest cache the folder's name, as a path of this machine means nothing elsewhere.

    Where that folder was made from a file of the user's, that file's path is beside it, to make it again.
    """
    folder = Path(host.path)
    source = made_from(folder)
    is_cached = folder.parent.name == "hosts" and (source is not None or folder.name.startswith(f"{host.name}-"))
    return {
        "id": host.name,
        "path": source if is_cached else host.path,
        "cached_as": folder.name if is_cached else None,
        "revision": host.revision,
        "dtype": str(host.dtype).removeprefix("torch."),
        "model_type": host.model_type,
        "fingerprint": host.fingerprint,
        "tokenizer": host.tokenizer.name_or_path if host.revision else host.name,
        "vocabulary": len(host.tokenizer),
    }


def save_decoder(folder: Path, decoder: "ObjectDecoder", facts: dict[str, Any]) -> None:
    """Writes an exported decoder; `facts` (search, scores, calibration, splits, ...) join the config.

    The folder appears whole or not at all.
    """
    from safetensors.torch import save_file

    config = decoder_config(decoder) | facts
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in decoder.state_dict().items()}
    metadata = {
        "format": str(FORMAT),
        "host": config["host"]["id"],
        "fingerprint": config["host"]["fingerprint"],
        "layer": str(config["edited_layer"]),
    }
    with whole_folder(folder) as unfinished:
        write_json(unfinished / CONFIG, config)
        save_file(tensors, str(unfinished / WEIGHTS), metadata=metadata)
        write_text(unfinished / CARD, model_card(config))


def read_config(folder: str | Path) -> dict[str, Any]:
    """The config of an exported decoder.

    Raises:
        ValueError: the folder is no exported decoder, it is of a format this version does not know, or an entry of its config is missing
            or of a wrong kind.
    """
    from decoder.export.formats import DECODER_CONFIG

    file = Path(folder).expanduser() / CONFIG
    if not file.is_file():
        inside = f" Its decoder is {file.parent / 'decoder'}." if (file.parent / "decoder" / CONFIG).is_file() else ""
        raise ValueError(
            f"decoder={folder}: no {CONFIG} there.{inside} Give the decoder/ folder of a run, or a collection of decoders "
            "(python -m decoder.export RUNS to=FOLDER makes one)"
        )
    return read_described(file, FORMAT, DECODER_CONFIG)


def load_decoder(folder: str | Path, host: "Host", *, allow_host_mismatch: bool = False) -> "ObjectDecoder":
    """An exported decoder on a host, in eval mode.

    Raises:
        ValueError: the host is not the one the decoder was trained on (names both), or tensors are missing, surplus or of
            another shape.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from decoder.ending import Ending
    from decoder.export.formats import layers_of
    from decoder.model import ObjectDecoder
    from decoder.parts.rekey import OwnKey, OwnKeys

    config = read_config(folder)
    layers, tokens = layers_of(config), config.get("own_key_tokens", 0)
    if not allow_host_mismatch:
        _compare_host(config, host, layers)
    if (shape := one_or_list([list(host.weight_DF(layer).shape) for layer in layers])) != config["shape"]:
        raise ValueError(f"{folder}: the decoder is for {config['shape']} matrices, {host.name} has {shape}")
    file = Path(folder).expanduser() / WEIGHTS
    try:
        tensors = load_file(str(file))
    except (SafetensorError, FileNotFoundError) as error:
        raise ValueError(f"{file} cannot be read as safetensors ({error}). Export the decoder again") from None
    if broken := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise ValueError(f"{file}: {broken[0]} holds NaN or infinity. Train the decoder again")
    decoder = ObjectDecoder(
        host,
        edited_layers=layers,
        trained_layers=config["trained_layer"],
        prompt_MD=torch.zeros(config["prompt_length"], host.hidden_size),
        scope=config["scope"],
        arithmetic=config["arithmetic"],
        ending=Ending(host.hidden_size, torch.zeros(len(host.unembedding_VD), dtype=torch.bool)) if config.get("learnt_end") else None,
        own_keys=OwnKeys({layer: OwnKey(host.mlp_size(layer), tokens) for layer in layers}) if tokens else None,
        apart=config.get("apart", False),
    )
    try:
        decoder.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise ValueError(f"{file} does not fit its config: {' '.join(str(error).split())}") from None
    return decoder.to(host.device).eval()


def _compare_host(config: dict[str, Any], host: "Host", layers: list[int]) -> None:
    trained_on, found = config["host"], _described(host)
    for field in ("model_type", "dtype", "vocabulary", "fingerprint"):
        if trained_on[field] != found[field]:
            raise ValueError(
                f"the decoder was trained on host {trained_on['id']} with {field} {trained_on[field]}, "
                f"this host ({host.name}) has {found[field]}. Its answers would be noise; allow_host_mismatch=true goes on all the same"
            )
    for layer, expected in zip(layers, as_list(config["base_sha256"]), strict=True):
        if host.base_sha256(layer) != expected:
            raise ValueError(f"W_V of {host.name} layer {layer} is not the one the decoder was trained beside")
