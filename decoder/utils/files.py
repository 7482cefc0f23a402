"""Where everything lies: the cache of things made once, and the folder of each run."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from filelock import FileLock


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


def short_hash(value: Any) -> str:
    """12 hex digits over a JSON-able value: the fingerprint of settings."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
