"""A GGUF file as a host: dequantised once into an ordinary folder of the cache, by which it opens quickly from then on."""

import hashlib
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from glob import escape
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from decoder.checkpoint.folders import kind_of, read_json
from decoder.checkpoint.gguf_config import config_of
from decoder.checkpoint.gguf_file import GgufFile
from decoder.checkpoint.gguf_header import AGAIN, SOURCE, find_gguf, firsts, made_from, parts
from decoder.checkpoint.gguf_tokenizer import tokenizer_of
from decoder.checkpoint.model_files import FAULTS, give_another, reader
from decoder.checkpoint.reader import Checkpoint
from decoder.utils.files import alone, cached, remove_unfinished, short_hash, whole_folder
from decoder.utils.json_files import write_json
from decoder.utils.progress import progress
from decoder.utils.terminal import console

VERSION = 1  # of what is written; another one is written anew
SHARD = 1 << 28  # bytes of a file that is written: what is dequantised at a time, or one tensor
PIECE = 1 << 14  # rows that are looked at for NaN at a time
PARTS_OF_MODEL = ("rope_freqs.weight",)  # of a file, but no weights of the model: `config_of` reads them


def host_folder(path: str | Path, *, name: str, dtype: str, cache_dir: str | None, shown: bool = False, setting: str = "host.path") -> str:
    """What to load a host from: of a GGUF file, or a folder that has nothing else, its folder in the cache; else the path itself.

    The folder is named by the bytes of the file and the dtype. One that is damaged is made again.

    Args:
        shown: whether the terminal is told what is done, and how far it is.
        setting: that the path was given with, and another one can be.

    Raises:
        ValueError: the file is no model that can be read; says why.
    """
    if (file := find_gguf(path)) is None:
        _refuse_file(Path(path).expanduser(), name, setting)
        return str(path)
    digest = hashlib.sha256()
    for part in parts(file):
        with part.open("rb") as opened:
            while block := opened.read(1 << 22):
                digest.update(block)
    folder = cached(cache_dir, "hosts", "gguf", short_hash([VERSION, digest.hexdigest(), dtype]))
    if (there := whole_of(folder)) is None:
        with alone(folder):
            if (there := whole_of(folder)) is None:
                remove_unfinished(folder.parent, folder.name)
                _convert(file, name, dtype, there := folder, shown)
    if not Path(made_from(there) or file).exists():
        # A copy that was elsewhere; a cache that cannot be written to keeps its word.
        with suppress(OSError):
            write_json(there / SOURCE, {"file": str(file.resolve())})
    return str(there)


def whole_of(folder: Path) -> Path | None:
    """A folder of the cache that was made from a GGUF file, or, as older versions called it by its host, one of the same fingerprint."""
    others = sorted(folder.parent.glob(f"*-{escape(folder.name.rpartition('-')[2])}"))
    return next((one for one in (folder, *others) if _is_whole(one)), None)


def _is_whole(folder: Path) -> bool:
    """Whether all files are there and none is cut short; of the weights headers alone are read."""
    if read_json(folder / "config.json") is None or not (folder / "tokenizer.json").exists():
        return False
    if not (folder / "tokenizer.json").read_bytes().rstrip().endswith(b"}"):
        return False
    try:
        Checkpoint(folder)
    except (ValueError, OSError):
        return False
    return True


def _refuse_file(path: Path, name: str, setting: str) -> None:
    """Raises ValueError for files that are no host, and folders with GGUF files of several models."""
    if path.suffix == ".gguf" and not path.exists():
        raise ValueError(f"host {name}: {path}: no such file")
    if path.is_file():
        kind = kind_of(path) or "no GGUF file"
        raise ValueError(f"host {name}: {path} is {kind}. {give_another(setting)}")
    if path.is_dir() and not any(path.glob("*.safetensors*")) and len(found := firsts(path)) > 1:
        raise ValueError(f"host {name}: {path} has {len(found)} GGUF files, {found[0].name} among them. Give one of them with {setting}=")


def _convert(file: Path, name: str, dtype: str, folder: Path, shown: bool) -> None:
    source = GgufFile(file)
    kinds = "/".join(dict.fromkeys(tensor.rounding for tensor in source.tensors.values() if len(tensor.shape) > 1))
    if shown:
        console().print(f"  {name}: {file.name} ({kinds}) becomes {dtype} in {folder}, once", style="dim", highlight=False)
    try:
        config = AutoConfig.for_model(source.model_type, **config_of(source), dtype=dtype)
        shapes = _shapes(source, config)
        tokenizer = tokenizer_of(source.metadata)
    except FAULTS as error:
        raise ValueError(f"host {name}: {' '.join(str(error).split())}") from None
    with whole_folder(folder) as unfinished:
        try:
            _write(source, shapes, getattr(torch, dtype), unfinished, shown)
        except ValueError as error:
            raise ValueError(f"host {name}: {error}") from None
        tokenizer.save_pretrained(unfinished)
        write_json(unfinished / SOURCE, {"file": str(file.resolve())})
        config.save_pretrained(unfinished)


def _shapes(source: GgufFile, config: PretrainedConfig) -> dict[str, tuple[int, ...]]:
    """The weights of the model, by name.

    Raises:
        ValueError: the file lacks one, or has others than the model.
    """
    if source.of("expert_count") or any("_exps." in name for name in source.tensors):
        raise ValueError(f"{source.file} is a mixture of experts, which are not read from GGUF. Give the safetensors checkpoint")
    with torch.device("meta"):
        model = reader(config).from_config(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        shapes.pop("lm_head.weight", None)
    found = {name: tensor.shape for name, tensor in source.tensors.items() if name not in PARTS_OF_MODEL}
    for wrong in sorted(shapes.items() ^ found.items()):
        expected, there = shapes.get(wrong[0], "nothing"), found.get(wrong[0], "nothing")
        raise ValueError(f"{source.file}: {wrong[0]} is {there}, {source.model_type} of these sizes has {expected}. Convert it again")
    return shapes


def _write(source: GgufFile, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, folder: Path, shown: bool) -> None:
    """Dequantises the weights into one safetensors file, or an index and shards: no more than one of them is held.

    Raises:
        ValueError: as `_numbers`.
    """
    shards = split_torch_state_dict_into_shards(
        {name: torch.empty(shape, dtype=dtype, device="meta") for name, shape in shapes.items()}, max_shard_size=SHARD
    )
    with progress("tensors of the GGUF file", len(shapes)) if shown else nullcontext(lambda count: None) as advance:
        for file, names in shards.filename_to_tensors.items():
            save_file({name: _numbers(source, name, dtype) for name in names}, folder / file, {"format": "pt"})
            advance(len(names))
    if shards.is_sharded:
        write_json(folder / SAFE_WEIGHTS_INDEX_NAME, {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename})


def _numbers(source: GgufFile, name: str, dtype: torch.dtype) -> Tensor:
    """A tensor in the dtype asked for.

    Raises:
        ValueError: it has NaN or infinite numbers, or such as the dtype cannot hold.
    """
    tensor = source.tensors[name].rows().to(dtype).contiguous()
    if not all(bool(piece.isfinite().all()) for piece in tensor.split(PIECE)):
        told = str(dtype).removeprefix("torch.")
        raise ValueError(f"{source.file}: {name} holds NaN or infinity in {told}; expected finite numbers. {AGAIN}")
    return tensor
