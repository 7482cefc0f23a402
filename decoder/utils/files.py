"""The cache of things made once, and files and folders that are there whole or not at all."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any
from uuid import uuid4

from filelock import FileLock

from decoder.utils.errors import UserError


def cache_root(cache_dir: str | None) -> Path:
    """The cache folder: the given one, or palimpsest under the user's cache home."""
    if cache_dir:
        return Path(cache_dir).expanduser()
    if home := os.environ.get("XDG_CACHE_HOME"):
        return Path(home) / "palimpsest"
    try:
        return Path.home() / ".cache" / "palimpsest"
    except RuntimeError:
        raise UserError("this user has no home folder for the cache; give cache_dir=FOLDER, or set XDG_CACHE_HOME") from None


def cached(cache_dir: str | None, kind: str, name: str, fingerprint: str) -> Path:
    """Folder of one cached host, set of key statistics, store or set of baselines; `kind` is hosts, keys, stores or baselines."""
    return cache_root(cache_dir) / kind / f"{name}-{fingerprint}"


def refuse_file(key: str, folder: Path) -> None:
    """Raises UserError if a setting names a folder that cannot be made, as it, or what it shall lie in, is a file."""
    if file := next((place for place in (folder, *folder.parents) if place.is_file()), None):
        raise UserError(f"{key}={folder}: {'it' if file == folder else file} is a file; give a folder")


def alone(path: Path) -> FileLock:
    """A lock, to be held with `with`, among the processes that would make `path`; it goes when its process does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path.with_name(f".{path.name}.lock"))


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Gives a hidden path beside `path` to write to; it takes the place of `path` when the block ends, and goes if the block fails."""
    unfinished = _unfinished(path)
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """`whole_file` for a folder: what lay there is there until the new one is, also for a reader after a kill."""
    unfinished = _unfinished(folder)
    unfinished.mkdir()
    try:
        yield unfinished
        aside = _put_aside(folder)
        os.replace(unfinished, folder)
        shutil.rmtree(aside, ignore_errors=True)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _unfinished(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}.{uuid4().hex[:12]}")


def remove_unfinished(folder: Path, name: str | None = None) -> None:
    """Removes what killed writers left beside the files and folders of `folder`, or the one of a name; nobody may be writing there."""
    for path in folder.glob(f".{'*' if name is None else escape(name)}." + "[0-9a-f]" * 12):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole, as UTF-8 whatever the locale."""
    with whole_file(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def remove_whole(folder: Path) -> None:
    """Removes a folder so that nobody finds half of it under its name."""
    shutil.rmtree(_put_aside(folder), ignore_errors=True)


def _put_aside(folder: Path) -> Path:
    aside = folder.with_name(f".{folder.name}.removed")
    shutil.rmtree(aside, ignore_errors=True)
    if folder.exists():
        os.replace(folder, aside)
    return aside


def sha256_of(file: Path) -> str:
    """Of a file's bytes, read by parts."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while part := stream.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def short_hash(value: Any) -> str:
    """12 hex digits over a JSON-able value: the fingerprint of settings."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
