"""What a GGUF file says before its numbers: metadata, and name, shape, type and place of each tensor. Nothing here imports torch.

The vocabulary alone is 100,000 strings, for which the reader of the `gguf` package makes an array each.
"""

import json
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

MAGIC = b"GGUF"
VERSIONS = (2, 3)
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}  # type of a value -> struct's name
STRING, ARRAY = 8, 9
MOST_DIMENSIONS = 4  # ggml's own limit
PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
SOURCE = "gguf.json"  # in a folder that was made from a GGUF file: which that was
AGAIN = "Download or copy it again"
FAULTS = (struct.error, UnicodeDecodeError, OverflowError, MemoryError)  # of files that are not whole


@dataclass(frozen=True)
class Place:
    """Where a tensor's bytes are, and what they are.

    Attributes:
        shape: rows first, as torch has it; the file lists it the other way round.
        kind: number of its ggml type.
        start: byte of the file at which it begins.
    """

    file: Path
    shape: tuple[int, ...]
    kind: int
    start: int


def is_gguf(path: Path) -> bool:
    """Whether a path is a GGUF file, by its first bytes."""
    try:
        with path.open("rb") as opened:
            return opened.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def find_gguf(path: str | Path) -> Path | None:
    """The GGUF file that a path names: itself, or the one of a folder without safetensors; of a file in parts the first."""
    path = Path(path).expanduser()
    if not path.is_dir():
        return path if is_gguf(path) else None
    found = firsts(path)
    return found[0] if len(found) == 1 and not any(path.glob("*.safetensors")) else None


def firsts(folder: Path) -> list[Path]:
    """The GGUF files of a folder; of files in parts the first."""
    return sorted({*folder.glob("*.gguf")} - later_parts(folder))


def later_parts(folder: Path) -> set[Path]:
    """Those that another part stands for: the first, or where that is missing the lowest, which is refused by what is missing."""
    stands: dict[tuple[str, str], Path] = {}
    for file in sorted(folder.glob("*.gguf")):
        if part := PART.fullmatch(file.name):
            stands.setdefault((part["stem"], part["count"]), file)
    return {file for file in folder.glob("*.gguf") if PART.fullmatch(file.name)} - {*stands.values()}


def parts(file: Path) -> list[Path]:
    """All files of one that is in parts by its name, or the file alone.

    Raises:
        ValueError: a part is missing, or another one than the first was given.
    """
    if not (part := PART.fullmatch(file.name)):
        return [file]
    found = [file.with_name(f"{part['stem']}-{number + 1:05d}-of-{part['count']}.gguf") for number in range(int(part["count"]))]
    if found[:1] != [file] and all(first.exists() for first in found[:1]):
        raise ValueError(f"{file} is part {int(part['number'])} of {int(part['count'])}. Give the first, with the others beside it")
    if absent := [other.name for other in found if not other.exists()]:
        raise ValueError(f"{file.parent}: {absent[0]} is missing, one of {len(found)} parts. {AGAIN}")
    return found


def read_parts(files: Sequence[Path]) -> tuple[dict[str, Any], dict[str, Place]]:
    """Metadata of the first of all parts of a file, and the tensors of all of them.

    Raises:
        ValueError: one cannot be read, or they are not all parts of one file.
    """
    headers = [read_header(file) for file in files]
    in_parts = any("split.count" in metadata for metadata, _ in headers)
    places: dict[str, Place] = {}
    for number, (file, (metadata, found)) in enumerate(zip(files, headers, strict=True)):
        if in_parts:
            _check_part(file, metadata, number, len(files))
        if twice := sorted(places.keys() & found.keys()):
            raise ValueError(f"{file}: {twice[0]} is also in {places[twice[0]].file.name}: parts of different files. {AGAIN}")
        places |= found
    told = headers[0][0].get("split.tensors.count", len(places))
    if told != len(places):
        raise ValueError(f"{files[0]} speaks of {told} tensors in all its parts, there are {len(places)}. {AGAIN}")
    return headers[0][0], places


def _check_part(file: Path, metadata: Mapping[str, Any], number: int, count: int) -> None:
    """Raises ValueError if a file is another part than its name makes it."""
    own, of = metadata.get("split.no"), metadata.get("split.count")
    if not isinstance(own, int) or not isinstance(of, int):
        raise ValueError(f"{file} lies among parts of a file, but does not say which of them it is. {AGAIN}")
    if count == 1 < of:
        names = f"NAME-00001-of-{of:05d}.gguf to NAME-{of:05d}-of-{of:05d}.gguf"
        raise ValueError(f"{file} is part {own + 1} of {of}, and its name does not tell the others. Put all of them beside it as {names}")
    if (own, max(of, 1)) != (number, count):
        raise ValueError(f"{file} is part {number + 1} of {count} by its name, {own + 1} of {of} by its metadata. {AGAIN}")


def made_from(folder: Path) -> str | None:
    """The GGUF file that a folder of the cache was made from."""
    try:
        found = json.loads((folder / SOURCE).read_text(encoding="utf-8"))["file"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) else None


def read_header(file: Path) -> tuple[dict[str, Any], dict[str, Place]]:
    """Metadata by key, and the place of each tensor by its name in the file.

    Raises:
        ValueError: it is no GGUF file, of a version or byte order that is not read, cut short or damaged.
    """
    if not is_gguf(file):
        raise ValueError(f"{file} is no GGUF file. Give one, or a folder with safetensors")
    try:
        with file.open("rb") as opened, mmap(opened.fileno(), 0, access=ACCESS_READ) as view:
            return _read(file, view)
    except FAULTS:
        raise ValueError(f"{file} is not a whole GGUF file: it is cut short or damaged. {AGAIN}") from None


def _read(file: Path, view: mmap) -> tuple[dict[str, Any], dict[str, Place]]:
    at = len(MAGIC)

    def take(form: str) -> tuple[Any, ...]:
        nonlocal at
        values = struct.unpack_from(form, view, at)
        at += struct.calcsize(form)
        return values

    def text() -> str:
        nonlocal at
        (length,) = take("<Q")
        at += length
        return view[at - length : at].decode()

    (version,) = take("<I")
    if version not in VERSIONS:
        what = "its bytes are in the other order" if version % 2**16 == 0 else f"it is of version {version}, versions 2 and 3 are read"
        raise ValueError(f"{file}: {what}. Convert it again with llama.cpp")
    tensors, pairs = take("<QQ")
    metadata = {}
    for _ in range(pairs):
        key, (kind,) = text(), take("<I")
        metadata[key] = _value(kind, take, text)
    listed = []
    for _ in range(tensors):
        name, (dimensions,) = text(), take("<I")
        if dimensions > MOST_DIMENSIONS:
            raise struct.error
        shape, (kind, offset) = take(f"<{dimensions}Q"), take("<IQ")
        listed.append((name, shape[::-1], kind, offset))
    step = metadata.get("general.alignment", 32)
    if not isinstance(step, int) or step <= 0:
        raise struct.error
    start = -(-at // step) * step
    return metadata, {name: Place(file, shape, kind, start + offset) for name, shape, kind, offset in listed}


def _value(kind: int, take: Callable[[str], tuple[Any, ...]], text: Callable[[], str]) -> Any:
    if kind == STRING:
        return text()
    if kind != ARRAY:
        return take(f"<{_scalar(kind)}")[0]
    inner, length = take("<IQ")
    if inner == STRING:
        return [text() for _ in range(length)]
    return list(take(f"<{length}{_scalar(inner)}"))


def _scalar(kind: int) -> str:
    if kind not in SCALARS:
        raise struct.error
    return SCALARS[kind]
