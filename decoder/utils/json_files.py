"""JSON files that say what they hold: one that was damaged or written by hand is refused in one line, not read as something else."""

import json
import reprlib
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, FiniteFloat, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from decoder.utils.files import write_text

Count = Annotated[int, Field(ge=0)]
FromOne = Annotated[int, Field(ge=1)]
Pair = Annotated[list[FiniteFloat], Field(min_length=2, max_length=2)]
Shape = Annotated[list[FromOne], Field(min_length=2, max_length=2)]
AGAIN = "export it again, or copy it whole"


class Score(TypedDict):
    value: FiniteFloat
    ci95: Pair


def read_described(file: Path, format: int, description: TypeAdapter, remedy: str = AGAIN) -> dict[str, Any]:
    """A JSON file as it is, once it was held against its description.

    Raises:
        ValueError: it is not whole JSON or of another format, or an entry is missing or of a wrong kind; names the first one, what
            came and what was expected.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        raise ValueError(f"{file} is not whole JSON; {remedy}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{file}: {reprlib.repr(found)} came, expected entries with names; {remedy}")
    if found.get("format") != format:
        raise ValueError(f"{file}: format {reprlib.repr(found.get('format'))}, this version reads {format}; {remedy}")
    try:
        description.validate_python(found, strict=True)
    except ValidationError as error:
        raise ValueError(f"{file}: {_told(error)}; {remedy}") from None
    return found


def read_lines(path: Path, description: TypeAdapter, remedy: str) -> list[dict[str, Any]]:
    """The lines of a file of JSON lines, or of all `*.jsonl` in a folder.

    Raises:
        ValueError: there is none, or a line is not whole JSON or not as described; names the file, the line and the first entry.
    """
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    found = []
    for file in files:
        if not file.is_file():
            raise ValueError(f"{file}: no such file; {remedy}")
        for number, line in enumerate(file.read_bytes().splitlines(), 1):
            try:
                found.append(description.validate_json(line, strict=True))
            except ValidationError as error:
                raise ValueError(f"{file}, line {number}: {_told(error)}; {remedy}") from None
    if not found:
        raise ValueError(f"{path}: no line there; {remedy}")
    return found


def _told(error: ValidationError) -> str:
    """The entries that are missing, or else the first that is wrong."""
    errors = error.errors(include_url=False)
    if absent := [_name(one["loc"]) for one in errors if one["type"] == "missing"]:
        return f"it lacks {', '.join(absent)}"
    first = errors[0]
    if first["type"] == "json_invalid":
        return "not whole JSON"
    expected = first["msg"].removeprefix("Input should be ")
    return f"{_name(first['loc'])} is {reprlib.repr(first['input'])}, expected {expected[0].lower()}{expected[1:]}"


def _name(place: tuple[int | str, ...]) -> str:
    return ".".join(map(str, place))


def write_json(path: Path, value: Any) -> None:
    """Writes JSON so that a reader sees the old file or the whole new one."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
