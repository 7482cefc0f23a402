"""Hosts after more and more edits, from the lines that `python -m data.sequential` writes, one for a host after so many facts."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from decoder.utils.json_files import Count, FromOne, read_lines


class Line(TypedDict):
    """One host after so many facts."""

    __pydantic_config__ = {"extra": "allow"}

    host: str
    layer: Count
    editor: str
    seed: int
    facts: FromOne
    first: float
    last: float
    asked: FromOne
    efficacy: float
    specificity: float | None
    norm_ratio: float
    perplexity: float
    clean_perplexity: float
    broken: bool
    broken_from: float


LINE = TypeAdapter(Line)


@dataclass(frozen=True)
class Measure:
    """What is drawn of a host: its place in a line, its title, how seeds are put together."""

    name: str
    title: str
    together: Callable[[Iterable[float]], float] = fmean
    is_share: bool = True


MEASURES = (
    Measure("efficacy", "efficacy, of all facts"),
    Measure("first", "efficacy, of the first fact"),
    Measure("last", "efficacy, of the last fact"),
    Measure("specificity", "specificity"),
    Measure("norm_ratio", "‖ΔW‖ / ‖W‖", median, is_share=False),
    Measure("perplexity", "perplexity over the clean host's", median, is_share=False),
)
Series = dict[str, dict[int, list[dict[str, Any]]]]
"""Editor -> number of facts -> lines of the seeds."""


def read_collapse(path: Path) -> list[dict[str, Any]]:
    """The lines that `python -m data.sequential` left in a folder or a file.

    Raises:
        ValueError: there is none, or one is no such line.
    """
    return read_lines(path, LINE, "give the folder that python -m data.sequential wrote")


def by_host(lines: Iterable[Mapping[str, Any]]) -> dict[tuple[str, int], Series]:
    """(host, layer) -> its series, editors in the order of their names, facts ascending."""
    found: dict[tuple[str, int], Series] = {}
    for line in sorted(lines, key=lambda line: (line["host"], line["layer"], line["editor"], line["facts"], line["seed"])):
        line = {**line, "perplexity": line["perplexity"] / line["clean_perplexity"]}
        found.setdefault((line["host"], line["layer"]), {}).setdefault(line["editor"], {}).setdefault(line["facts"], []).append(line)
    return found


def value(lines: Sequence[Mapping[str, Any]], measure: Measure) -> float | None:
    """Of the seeds together; None where none of them has it."""
    known = [line[measure.name] for line in lines if line[measure.name] is not None]
    return measure.together(known) if known else None


def first_broken(points: Mapping[int, Sequence[Mapping[str, Any]]]) -> int | None:
    """The fewest facts after which most seeds' hosts are broken."""
    return next((facts for facts, lines in points.items() if 2 * sum(line["broken"] for line in lines) > len(lines)), None)
