"""What `python -m data.tracing` leaves: one JSON file a store of edits."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import FiniteFloat, TypeAdapter
from typing_extensions import NotRequired, TypedDict

from decoder.utils.json_files import Count, FromOne, Pair, Score, read_described

FORMAT = 1
REMEDY = "measure it again by python -m data.tracing"


class Mean(TypedDict):
    value: FiniteFloat
    ci95: Pair | None


class Spread(Mean):
    sd: FiniteFloat | None
    n: FromOne


class HostOf(TypedDict):
    name: str
    layers: FromOne


class StoreOf(TypedDict):
    fingerprint: str
    edits: FromOne
    relations: FromOne
    subjects: FromOne
    editor: str
    objects: str | None
    spelt: NotRequired[Count]


class Pcs(TypedDict):
    layers: list[FiniteFloat | None]
    edited: Spread
    change: Spread


class Classes(TypedDict):
    classes: FromOne
    train: FiniteFloat
    test: FiniteFloat
    published: Mean
    value: Mean
    read: Mean


class Relations(TypedDict):
    repeats: FromOne
    by_classes: list[Classes]


class Agreement(TypedDict):
    reversed: Score
    edited: Score


class Usual(Agreement):
    ranks: list[Count]


class Reversal(TypedDict):
    n: FromOne
    by_k: list[Agreement]
    best_k: Count
    usual: Usual
    traced: Agreement
    subject_found: Score
    subjects: FromOne


class Similarity(TypedDict):
    values: list[Mean]
    keys: list[Mean]


class Texts(TypedDict):
    n: FromOne
    edits: FromOne
    tokens: FromOne
    characters: FromOne
    clean: Spread
    edited: Spread


class Measured(TypedDict):
    __pydantic_config__ = {"extra": "allow"}

    format: int
    host: HostOf
    layer: Count
    store: StoreOf
    seed: int
    n: FromOne
    directions: Spread
    pcs: Pcs
    relations: Relations
    reversal: Reversal
    similarity: Similarity
    texts: Texts | None
    seconds: FiniteFloat


MEASURED = TypeAdapter(Measured)


def name_of(found: Mapping[str, Any]) -> str:
    """The file of what was measured: of one store a folder holds one."""
    return f"tracing-{found['host']['name']}-e{found['layer']}-{found['store']['fingerprint']}.json"


def read_tracing(path: Path) -> list[dict[str, Any]]:
    """What was measured of every store that has a file in a folder, or of the one of a file.

    Raises:
        ValueError: there is none, or one is not as described; names the file.
    """
    files = sorted(path.glob("tracing-*.json")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise ValueError(f"{path}: nothing measured there; give the folder that python -m data.tracing wrote")
    return [read_described(file, FORMAT, MEASURED, REMEDY) for file in files]
