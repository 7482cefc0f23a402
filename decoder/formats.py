"""What the JSON files of exported decoders and of stores hold; a file that was damaged or written by hand is refused in one line.

Only what is read again is described; a file may hold more. Kinds are strict: "1" is no number, and true is none either.
"""

import json
import reprlib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError, with_config
from typing_extensions import NotRequired, TypedDict

Count = Annotated[int, Field(ge=0)]
FromOne = Annotated[int, Field(ge=1)]
Pair = Annotated[list[FiniteFloat], Field(min_length=2, max_length=2)]
Shape = Annotated[list[FromOne], Field(min_length=2, max_length=2)]


class ExportedHost(TypedDict):
    id: str
    path: str | None
    cached_as: str | None
    revision: str | None
    dtype: Literal["float32", "bfloat16", "float16"]
    model_type: str
    fingerprint: str
    vocabulary: FromOne


class Editor(TypedDict):
    name: str
    settings: dict[str, Any]


class Exported(TypedDict):
    """What a decoder says of itself, in its own config and in the index of a collection."""

    host: ExportedHost
    module: str
    edited_layer: Count
    trained_layer: list[Count]
    shape: Shape
    base_sha256: str
    editors: list[Editor]
    seed: int


@with_config(ConfigDict(extra="forbid"))  # they are the arguments of a search
class Search(TypedDict):
    beams: FromOne
    max_object_tokens: FromOne


class Quantiles(TypedDict):
    quantiles: Annotated[list[FiniteFloat], Field(min_length=1)]


class Calibration(TypedDict):
    auroc: float
    null: Quantiles
    edit: Quantiles


class Splits(TypedDict):
    train: list[str]
    id: list[str]
    ood: list[str]
    unseen_object: list[str]


class Score(TypedDict):
    value: FiniteFloat
    ci95: Pair


class SplitScores(TypedDict):
    n: Count
    first_token: Score
    exact_match: Score


class BaselineScores(TypedDict):
    n: Count
    first_token: Score
    exact_match: Score | None


class DecoderConfig(Exported):
    """`decoder_config.json` beside the weights."""

    prompt_length: FromOne
    scope: Literal["prompt", "all"]
    arithmetic: Literal["factors", "dense"]
    terminator_id: Count | None
    search: Search
    store: str
    splits: Splits
    scores: dict[str, SplitScores]
    calibration: Calibration


class IndexScore(TypedDict):
    n: Count
    exact_match: FiniteFloat


class IndexEntry(Exported):
    folder: str
    validation: FiniteFloat
    scores: dict[str, IndexScore]
    run: str


class Index(TypedDict):
    """`index.json` of a collection of decoders."""

    decoders: list[IndexEntry]


class MadeOn(TypedDict):
    id: NotRequired[str]
    fingerprint: str


class MadeBy(TypedDict):
    name: str
    settings: NotRequired[dict[str, Any]]


class Requests(TypedDict):
    count: Count


class Manifest(TypedDict):
    """`manifest.json` of a store of edits, as far as any store is used."""

    host: MadeOn
    layer: Count
    editor: MadeBy
    files: dict[str, str]
    facts: NotRequired[dict[str, str]]
    requests: NotRequired[Requests]
    parquet: NotRequired[dict[str, Count]]


DECODER_CONFIG, COLLECTION, MANIFEST = TypeAdapter(DecoderConfig), TypeAdapter(Index), TypeAdapter(Manifest)
BASELINES = TypeAdapter(dict[str, dict[str, bool | BaselineScores]])
"""Scores of some baselines by split, and whether each has the base."""
AGAIN = "export it again, or copy it whole"


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


def _told(error: ValidationError) -> str:
    """The entries that are missing, or else the first that is wrong."""
    errors = error.errors(include_url=False)
    if absent := [_name(one["loc"]) for one in errors if one["type"] == "missing"]:
        return f"it lacks {', '.join(absent)}"
    first = errors[0]
    expected = first["msg"].removeprefix("Input should be ")
    return f"{_name(first['loc'])} is {reprlib.repr(first['input'])}, expected {expected[0].lower()}{expected[1:]}"


def _name(place: tuple[int | str, ...]) -> str:
    return ".".join(map(str, place))
