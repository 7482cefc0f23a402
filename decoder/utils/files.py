"""Where everything lies: the cache of things made once, and the folder of each run."""

import hashlib
import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from decoder.config import TrainConfig


def cache_root(cache_dir: str | None) -> Path:
    """The cache folder: the given one, or palimpsest under the user's cache home."""
    if cache_dir:
        return Path(cache_dir).expanduser()
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "palimpsest"


def cached(cache_dir: str | None, kind: str, name: str, fingerprint: str) -> Path:
    """Folder of one cached host, set of key statistics, store or set of baselines; `kind` is hosts, keys, stores or baselines."""
    return cache_root(cache_dir) / kind / f"{name}-{fingerprint}"


def alone(path: Path) -> FileLock:
    """A lock, to be held with `with`, among the processes that would make `path`; it goes when its process does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path.with_name(f".{path.name}.lock"))


def put_in_place(made: Path, folder: Path) -> None:
    """Renames a finished folder to its place. What lay there is there whole or not at all, also for a reader after a kill."""
    aside = _put_aside(folder)
    os.replace(made, folder)
    shutil.rmtree(aside, ignore_errors=True)


def remove_whole(folder: Path) -> None:
    """Removes a folder so that nobody finds half of it under its name."""
    shutil.rmtree(_put_aside(folder), ignore_errors=True)


def _put_aside(folder: Path) -> Path:
    aside = folder.with_name(f".{folder.name}.removed")
    shutil.rmtree(aside, ignore_errors=True)
    if folder.exists():
        os.replace(folder, aside)
    return aside


def run_folder(cfg: TrainConfig) -> Path:
    """Folder of one run: experiment, host, editor (`editor_of`), edited and trained layers, seed, and the variant if there is one."""
    trained = "-".join(str(layer) for layer in trained_layers(cfg))
    leaf = f"{editor_of(cfg)}-e{cfg.edits.layer}-t{trained}-s{cfg.seed}" + (f"-{cfg.variant}" if cfg.variant else "")
    return Path(cfg.runs) / cfg.experiment / cfg.host.name / leaf


def editor_of(cfg: TrainConfig) -> str:
    """Who made the edits: what the manifest of `store=` says if it is there (`imported` of other tools' edits), else who is asked to."""
    if cfg.store:
        # A manifest that is damaged is refused where the store is opened.
        with suppress(OSError, ValueError, KeyError, TypeError):
            manifest = json.loads((Path(cfg.store).expanduser() / "manifest.json").read_text(encoding="utf-8"))
            return Path(manifest["editor"]["name"]).name or cfg.edits.editor
    return cfg.edits.editor


def trained_layers(cfg: TrainConfig) -> list[int]:
    layer = cfg.decoder.layer
    return list(layer) if isinstance(layer, (list, tuple)) else [layer]


def short_hash(value: Any) -> str:
    """12 hex digits over a JSON-able value: the fingerprint of settings."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
