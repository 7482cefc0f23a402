"""What many edits do to a host, by editor and number of facts, as a picture, as Markdown and as a page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from decoder.report.editing.chains import MEASURES, Measure, Series, broken_from, by_host, first_broken, read_collapse, value
from decoder.report.editing.plots import collapse
from decoder.report.page import render
from decoder.report.tables import format_interval
from decoder.scores import wilson
from decoder.utils.files import write_text


def markdown(lines: Sequence[Mapping[str, Any]]) -> str:
    """A table a host: what is left at the first, some and the last number of facts."""
    parts = []
    for (host, layer), series in by_host(lines).items():
        parts += [f"{host}, layer {layer}; broken: perplexity of neutral text above {_multiples(series)} times the clean host's", ""]
        titles = ["editor", "seeds", "facts", *(measure.title for measure in MEASURES), "broken"]
        parts += ["| " + " | ".join(titles) + " |", "| --- " * len(titles) + "|"]
        for editor, points in series.items():
            for facts, seeds in points.items():
                shown = [_shown(value(seeds, measure), seeds, measure) for measure in MEASURES]
                broken = f"{sum(line['broken'] for line in seeds)} of {len(seeds)}"
                parts.append(f"| {editor} | {len(seeds)} | {facts} | " + " | ".join(shown) + f" | {broken} |")
        parts.append("")
    return "\n".join(parts)


def _multiples(series: Series) -> str:
    return " or ".join(f"{times:g}" for times in broken_from(series))


def _shown(found: float | None, seeds: Sequence[Mapping[str, Any]], measure: Measure) -> str:
    if found is None:
        return "–"
    if not measure.is_share or measure.name == "specificity":
        return f"{found:.3g}"
    asked = sum(line["asked"] for line in seeds) if measure.name == "efficacy" else len(seeds)
    return f"{found:.2f} {format_interval(wilson(round(found * asked), asked))}"


def write_collapse(path: Path, to: Path) -> Path:
    """Writes collapse.html, and its picture as collapse.svg, into the folder `to`; returns the page's path."""
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
                "from": _multiples(series),
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
