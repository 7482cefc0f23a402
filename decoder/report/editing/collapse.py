"""What many edits do to a host, by editor and number of facts, as a picture, as Markdown and as a page.

It is made from the lines that `python -m data.sequential` writes, one for a host after so many facts.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from decoder.report.page import render
from decoder.report.tables import format_interval
from decoder.scores import wilson
from decoder.utils.files import write_text
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


def markdown(lines: Sequence[Mapping[str, Any]]) -> str:
    """A table a host: what is left at the first, some and the last number of facts."""
    parts = []
    for (host, layer), series in by_host(lines).items():
        times = next(iter(lines))["broken_from"]
        parts += [f"{host}, layer {layer}; broken: perplexity of neutral text above {times:g} times the clean host's", ""]
        titles = ["editor", "seeds", "facts", *(measure.title for measure in MEASURES), "broken"]
        parts += ["| " + " | ".join(titles) + " |", "| --- " * len(titles) + "|"]
        for editor, points in series.items():
            for facts, seeds in points.items():
                shown = [_shown(value(seeds, measure), seeds, measure) for measure in MEASURES]
                broken = f"{sum(line['broken'] for line in seeds)} of {len(seeds)}"
                parts.append(f"| {editor} | {len(seeds)} | {facts} | " + " | ".join(shown) + f" | {broken} |")
        parts.append("")
    return "\n".join(parts)


def _shown(found: float | None, seeds: Sequence[Mapping[str, Any]], measure: Measure) -> str:
    if found is None:
        return "–"
    if not measure.is_share or measure.name == "specificity":
        return f"{found:.3g}"
    asked = sum(line["asked"] for line in seeds) if measure.name == "efficacy" else len(seeds)
    return f"{found:.2f} {format_interval(wilson(round(found * asked), asked))}"


def write_collapse(path: Path, to: Path) -> Path:
    """Writes collapse.html, and its picture as collapse.svg, into the folder `to`; returns the page's path."""
    from decoder.report.editing.plots import collapse

    hosts = by_host(read_collapse(path))
    pictures = {host: collapse(series) for host, series in hosts.items()}
    context = {
        "hosts": [
            {
                "host": host,
                "layer": layer,
                "svg": pictures[host, layer],
                "clean": median(line["clean_perplexity"] for points in series.values() for lines in points.values() for line in lines),
                "broken": {editor: first_broken(points) for editor, points in series.items()},
                "from": next(iter(next(iter(series.values())).values()))[0]["broken_from"],
                "seeds": {editor: max(map(len, points.values())) for editor, points in series.items()},
                "last": {editor: next(reversed(points.items())) for editor, points in series.items()},
            }
            for (host, layer), series in hosts.items()
        ],
        "measures": MEASURES,
        "value": value,
    }
    to.mkdir(parents=True, exist_ok=True)
    page = to / "collapse.html"
    write_text(page, render("collapse_page.html.jinja", context))
    style = (
        f"<style>{render('colours.css.jinja', {})}svg {{ background: var(--page); color: var(--ink); font-family: sans-serif; }}</style>"
    )
    for number, svg in enumerate(pictures.values(), 1):
        write_text(to / f"collapse{f'-{number}' if number > 1 else ''}.svg", str(svg).replace(">", f">{style}", 1))
    return page
