"""Hosts after more and more edits, from the lines that `python -m data.sequential` writes, one for a host after so many facts."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from pydantic import TypeAdapter
from typing_extensions import NotRequired, TypedDict

from decoder.config.identity import as_today, differing
from decoder.config.options import typed
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
    settings: NotRequired[dict[str, Any]]


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
    """(host, layer) -> its series, editors in the order of their names, facts ascending.

    An editor of several settings is as many series, each named with those that differ.
    """
    by_editor: dict[tuple[str, int, str], list[Mapping[str, Any]]] = {}
    for line in sorted(lines, key=lambda line: (line["host"], line["layer"], line["editor"], line["facts"], line["seed"])):
        by_editor.setdefault((line["host"], line["layer"], line["editor"]), []).append(line)
    found: dict[tuple[str, int], Series] = {}
    for (host, layer, editor), members in by_editor.items():
        named = zip(_named(editor, [line.get("settings") for line in members]), members, strict=True)
        for name, line in sorted(named, key=lambda pair: pair[0]):
            line = {**line, "perplexity": line["perplexity"] / line["clean_perplexity"]}
            found.setdefault((host, layer), {}).setdefault(name, {}).setdefault(line["facts"], []).append(line)
    return found


def _named(editor: str, records: Sequence[Mapping[str, Any] | None]) -> list[str]:
    """The name of each line's series: the editor's, with what its settings differ in where they do. Early lines do not say theirs."""
    told = [record and {"neutral_text": "keys"} | as_today(record) for record in records]
    names = differing([record for record in told if record])
    if not names and len({record is None for record in told}) == 1:
        return [editor] * len(told)
    ends = [
        ", ".join(f"{name.removeprefix('edits.')}={typed(record.get(name))}" for name in names) if record else "settings not recorded"
        for record in told
    ]
    return [f"{editor} ({end})" if end else editor for end in ends]


def value(lines: Sequence[Mapping[str, Any]], measure: Measure) -> float | None:
    """Of the seeds together; None where none of them has it."""
    known = [line[measure.name] for line in lines if line[measure.name] is not None]
    return measure.together(known) if known else None


def first_broken(points: Mapping[int, Sequence[Mapping[str, Any]]]) -> int | None:
    """The fewest facts after which most seeds' hosts are broken."""
    return next((facts for facts, lines in points.items() if 2 * sum(line["broken"] for line in lines) > len(lines)), None)


def broken_from(series: Series) -> list[float]:
    """The multiples of the clean host's perplexity from which a host's lines count as broken: one, or several that differ in it."""
    return sorted({line["broken_from"] for points in series.values() for lines in points.values() for line in lines})
