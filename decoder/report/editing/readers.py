"""Who reads whom: decoders by the editors they were trained on × the editor that they read, as Markdown and as a page.

It is made from the lines that `benchmarks/editors.py` writes, one for what a decoder reads of an editor and a split.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from pydantic import TypeAdapter
from typing_extensions import NotRequired, TypedDict

from decoder.report.page import render
from decoder.report.tables import format_interval
from decoder.scores import VAL_SPLITS, wilson
from decoder.utils.files import write_text
from decoder.utils.json_files import Count, FromOne, Score, read_lines

GATED = "gate of "
CLOSE = 0.05
"""How much less a decoder of all may read of an editor than one of that editor alone."""


class Line(TypedDict):
    """What one decoder, or several and their gate, read of one editor in one split."""

    __pydantic_config__ = {"extra": "allow"}

    host: str
    layer: Count
    editors: list[str]
    train: list[str]
    seed: int
    train_edits: Count
    steps: Count
    read: str
    split: str
    n: FromOne
    exact_match: Score
    gated: NotRequired[bool]


LINE = TypeAdapter(Line)


@dataclass(frozen=True)
class Cell:
    """What the decoders of a row read of one editor: exact match by seed, of `n` edits each."""

    values: tuple[float, ...]
    n: int

    @property
    def mean(self) -> float:
        return fmean(self.values)

    @property
    def interval(self) -> list[float]:
        """Wilson's, of the mean over seeds. All seeds read the same edits, so it is that of one reading of them."""
        return wilson(round(self.mean * self.n), self.n)

    def __str__(self) -> str:
        return f"{self.mean:.3f} {format_interval(self.interval)}"


@dataclass(frozen=True)
class Row:
    """The decoders trained on one set of editors."""

    name: str
    cells: Mapping[str, Cell]
    own: frozenset[str]
    train_edits: int
    steps: int

    @property
    def seeds(self) -> int:
        return max(len(cell.values) for cell in self.cells.values())


def read_readers(path: Path) -> list[dict[str, Any]]:
    """The lines that `benchmarks/editors.py` left in a folder or a file.

    Raises:
        ValueError: there is none, or one is no such line.
    """
    return read_lines(path, LINE, "give the folder that benchmarks/editors.py wrote")


def by_host(lines: Iterable[Mapping[str, Any]]) -> dict[tuple[str, int], list[Mapping[str, Any]]]:
    """(host, layer) -> its lines: what decoders read on one host says nothing about those of another."""
    found: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for line in sorted(lines, key=lambda line: (line["host"], line["layer"])):
        found.setdefault((line["host"], line["layer"]), []).append(line)
    return found


def rows(lines: Iterable[Mapping[str, Any]], split: str) -> list[Row]:
    """The rows of the table of one host and split: decoders of one editor, of all but one, of all."""
    found: dict[tuple[bool, tuple[str, ...]], dict[str, dict[int, Mapping[str, Any]]]] = {}
    for line in sorted(lines, key=lambda line: line["seed"]):
        if line["split"] == split:
            found.setdefault((line.get("gated", False), tuple(line["train"])), {}).setdefault(line["read"], {})[line["seed"]] = line
    rows = []
    for (is_gated, train), by_editor in found.items():
        some = [one for by_seed in by_editor.values() for one in by_seed.values()]
        editors = some[0]["editors"]
        cells = {
            editor: Cell(
                tuple(one["exact_match"]["value"] for one in by_editor[editor].values()), next(iter(by_editor[editor].values()))["n"]
            )
            for editor in editors
            if editor in by_editor
        }
        name = (GATED if is_gated else "") + _name(train, editors)
        row = Row(name, cells, frozenset(train), some[0]["train_edits"], some[0]["steps"])
        left_out = min(map(editors.index, set(editors) - {*train}), default=0)
        rows.append((is_gated, len(train) == len(editors), len(train) > 1, left_out, train, row))
    return [row for *_, row in sorted(rows, key=lambda entry: entry[:5])]


def _tested(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """The splits that are scored, those of validation aside: from them gates learn."""
    return [split for split in dict.fromkeys(line["split"] for line in lines) if split not in VAL_SPLITS]


def _name(train: Sequence[str], editors: Sequence[str]) -> str:
    left = [editor for editor in editors if editor not in train]
    return train[0] if len(train) == 1 else "all" if not left else f"all but {', '.join(left)}"


def summary(rows: Sequence[Row]) -> list[str]:
    """What the table says of all editors together, in sentences: for decoders of several, and for a gate of several."""
    alone = {editor: row.cells[editor].mean for row in rows for editor in row.own & row.cells.keys() if len(row.own) == 1}
    return [sentence for who in ("", GATED) for sentence in (*_of_all(rows, who, alone), *_left_out(rows, who))]


def _of_all(rows: Sequence[Row], who: str, alone: Mapping[str, float]) -> Iterator[str]:
    for row in rows:
        if row.name == f"{who}all" and alone:
            behind = {editor: alone[editor] - row.cells[editor].mean for editor in alone if editor in row.cells}
            worst = max(behind, key=behind.__getitem__)
            close = sum(gap <= CLOSE for gap in behind.values())
            together = "By a gate of all decoders editors" if who else "All together"
            yield (
                f"{together} are read within {CLOSE:g} of a decoder of one editor for {close} of {len(behind)} editors; "
                f"the most is lost on {worst} ({behind[worst]:+.3f})."
            )


def _left_out(rows: Sequence[Row], who: str) -> Iterator[str]:
    means = {
        editor: row.cells[editor].mean for row in rows if row.name.startswith(f"{who}all but ") for editor in row.cells.keys() - row.own
    }
    if means:
        worst, by = min(means, key=means.__getitem__), " by a gate of the others" if who else ""
        yield f"An editor that was left out is read at {median(means.values()):.3f} in the median{by}, {worst} worst ({means[worst]:.3f})."


def markdown(lines: Sequence[Mapping[str, Any]]) -> str:
    """The tables of all hosts and splits, in bold what a decoder was not trained on."""
    return "\n".join(part for (host, layer), own in by_host(lines).items() for part in (f"## {host}, layer {layer}\n", _tables(own)))


def _tables(lines: Sequence[Mapping[str, Any]]) -> str:
    parts = []
    for split in _tested(lines):
        table = rows(lines, split)
        editors = list(dict.fromkeys(editor for row in table for editor in row.cells))
        counts = {editor: next(row.cells[editor].n for row in table if editor in row.cells) for editor in editors}
        parts += [f"`{split}`, exact match, mean over seeds with the 95 % interval of one reading of the edits:", ""]
        parts.append("| trained on | seeds | " + " | ".join(f"{editor} (n {counts[editor]})" for editor in editors) + " |")
        parts.append("| --- " * (len(editors) + 2) + "|")
        for row in table:
            shown = [
                ("{}" if editor in row.own else "**{}**").format(row.cells[editor]) if editor in row.cells else "–" for editor in editors
            ]
            parts.append(f"| {row.name} | {row.seeds} | " + " | ".join(shown) + " |")
        parts += ["", *summary(table), ""]
    return "\n".join(parts)


def write_readers(path: Path, to: Path) -> Path:
    """Writes readers.html into the folder `to`; returns its path."""
    hosts = []
    for (host, layer), lines in by_host(read_readers(path)).items():
        splits = {split: rows(lines, split) for split in _tested(lines)}
        told = {split: summary(table) for split, table in splits.items()}
        hosts.append({"host": host, "layer": layer, "editors": lines[0]["editors"], "splits": splits, "summaries": told})
    to.mkdir(parents=True, exist_ok=True)
    page = to / "readers.html"
    write_text(page, render("readers_page.html.jinja", {"hosts": hosts}))
    return page
