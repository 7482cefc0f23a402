"""Which files of a folder hold its weights, by the rule of transformers, and what a file is that holds none. Nothing here imports torch."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

from decoder.checkpoint.gguf_header import MAGIC, find_gguf, firsts

INDEX, WHOLE = "model.safetensors.index.json", "model.safetensors"
ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
NO_PICKLE = "pickles are never loaded: save it again as safetensors (save_pretrained does)"
AGAIN = "Save the checkpoint again"
KINDS = {
    b"version https://git-lfs": "a Git LFS pointer, not the file itself: fetch it with `git lfs pull`",
    MAGIC: "a GGUF file: give it the ending .gguf",
    b"\x93NUMPY": "a single NumPy array: save it with numpy.savez under the ending .npz",
    b"\x89HDF": "an HDF5 file: save its tensors as safetensors",
    b"\x1f\x8b": "packed with gzip: unpack it",
    b"\x28\xb5\x2f\xfd": "packed with zstd: unpack it",
    b"\xfd7zXZ": "packed with xz: unpack it",
    b"\x80": f"a pickle; {NO_PICKLE}",
}
PAGE = "a web page, not the file itself: download it again, logged in if it asks for that, from an address with /resolve/ instead of /blob/"


def read_json(file: Path) -> dict[str, Any] | None:
    """What a JSON file with named entries says; None if it is missing, or no such file."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def is_checkpoint_folder(path: Path) -> bool:
    """Whether a folder is one checkpoint, and not a folder of them."""
    named = any((path / name).exists() for name in (INDEX, WHOLE, ADAPTER_CONFIG, "config.json"))
    return named or find_gguf(path) is not None or any(file.suffix in PICKLES for file in path.glob("pytorch_model*"))


def weight_files(folder: Path, config: Mapping[str, Any]) -> tuple[list[Path], list[str]]:
    """The files that transformers would read, and the names of other weights that lie beside them.

    The file that the config names comes first, then one whole file, then an index with its shards; last what transformers would not find:
    an adapter, or a single safetensors or GGUF file under any name.

    Raises:
        ValueError: there is none, a shard is missing, or nothing tells which of several.
    """
    present = sorted(file.name for file in folder.iterdir() if _is_weights(file.name))
    single = [name for name in present if name.endswith(".safetensors")]
    first = config.get("transformers_weights") or next((name for name in (WHOLE, INDEX, ADAPTER) if name in present), None)
    if first is None and len(single) > 1:
        raise ValueError(
            f"{folder}: {len(single)} safetensors files and no {INDEX}. Give one of them; of one checkpoint in pieces copy the index too"
        )
    if first is None and not single and (found := firsts(folder)):
        if len(found) > 1:
            raise ValueError(f"{folder}: {len(found)} GGUF files ({', '.join(file.name for file in found[:3])}, ...). Give one of them")
        return found, [name for name in present if not name.endswith(".gguf")]
    if first is None and not single:
        there = f" holds {present[0]}; {kind_of(folder / present[0]) or NO_PICKLE}" if present else ": no safetensors file there"
        raise ValueError(f"{folder}{there}")
    first = str(first or single[0])
    if not first.endswith((".safetensors", ".safetensors.index.json")):
        raise ValueError(f"{folder / 'config.json'}: transformers_weights is {first!r}, expected a safetensors file or an index. {AGAIN}")
    read = _shards(folder / first) if first.endswith(".json") else [_inside(folder / first, folder, folder / "config.json")]
    return read, [name for name in present if name != first and folder / name not in read]


def code_named_in(folder: Path, config: Mapping[str, Any] | None) -> str:
    """The files that name code of the folder's own (`auto_map`), and the code; empty where none does. `config` is that of config.json."""
    others = ("tokenizer_config.json", "generation_config.json", "processor_config.json", "preprocessor_config.json")
    found = []
    for name, entries in {"config.json": config, **{name: read_json(folder / name) for name in others}}.items():
        if auto_map := (entries or {}).get("auto_map"):
            found.append(f"auto_map of {name}: {', '.join(map(str, auto_map.values() if isinstance(auto_map, dict) else [auto_map]))}")
    return "; ".join(found)


def _is_weights(name: str) -> bool:
    known = name.startswith(("pytorch_model", "model", "consolidated", "adapter_model")) and Path(name).suffix in PICKLES
    return known or name.endswith((".safetensors", ".safetensors.index.json", ".bin.index.json", ".gguf"))


def _shards(index: Path) -> list[Path]:
    try:
        shards = sorted(set(map(Path, json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())))
    except (json.JSONDecodeError, KeyError, AttributeError, UnicodeDecodeError, TypeError):
        raise ValueError(f"{index} is no index of shards (weight_map). {AGAIN}") from None
    if not shards:
        raise ValueError(f"{index} names no shards (weight_map is empty). {AGAIN}")
    return [_inside(index.parent / shard, index.parent, index) for shard in shards]


def _inside(file: Path, folder: Path, named_by: Path) -> Path:
    name = str(file.relative_to(folder)) if file.is_relative_to(folder) else str(file)
    if Path(name).name != name:
        raise ValueError(f"{named_by} names {name!r}, which is outside its folder. {AGAIN}")
    if not file.exists():
        raise ValueError(f"{folder}: shard {name} is missing. Download or copy it again")
    return file


def kind_of(file: Path) -> str | None:
    """What a file is by its first bytes, if that is no safetensors file, and what to do with it."""
    with file.open("rb") as opened:
        start = opened.read(512)
    text = start.lstrip().lower()
    if not start:
        return "empty: download or copy it again"
    if text.startswith((b"<!doctype html", b"<html", b"<?xml")):
        return PAGE
    if text.startswith((b"{", b"[")):
        return "JSON text: give the file with the weights"
    if start[8:9] == b"{":
        return "a safetensors file: give it the ending .safetensors" if file.suffix != ".safetensors" else None
    return _kind_of_zip(file) if start.startswith(b"PK") else next((kind for magic, kind in KINDS.items() if start.startswith(magic)), None)


def _kind_of_zip(file: Path) -> str | None:
    try:
        with ZipFile(file) as archive:
            names = archive.namelist()
    except (BadZipFile, OSError):
        return None
    if any(name.endswith("data.pkl") for name in names):
        return f"a pickle of torch; {NO_PICKLE}"
    if any(name.endswith(".npy") for name in names):
        return None if file.suffix == ".npz" else "an npz archive: give it the ending .npz"
    return "a zip archive: unpack it"
