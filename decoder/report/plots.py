"""Figures of the report as inline SVG strings that follow the page's colours, in light, dark and print.

Matplotlib draws with stand-in colours; in the SVG they become `currentColor` and CSS variables that the page defines. A figure
without data is an empty string.
"""

import io
import math
import re
import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from decoder.scores import wilson

if TYPE_CHECKING:
    from decoder.report.tables import ScoreRow

# Okabe-Ito; the page may lighten them for a dark background.
BLUE, GREEN, ORANGE = "#0072b2", "#009e73", "#d55e00"
TEXT, GRID = "#010101", "#808081"
CSS = {BLUE: "var(--blue)", GREEN: "var(--green)", ORANGE: "var(--orange)", TEXT: "currentColor", GRID: "var(--grid)"}
GROUP_COLOUR = {"decoder": BLUE, "base unknown": GREEN, "base known": ORANGE, "control": GRID}
FILLED = {"facecolor": BLUE, "edgecolor": BLUE, "alpha": 0.5}
HATCHED = {"facecolor": "none", "edgecolor": ORANGE, "hatch": "////"}
EDITED = {"color": BLUE}
UNEDITED = {"color": GRID, "alpha": 0.6}
FEW_LAYERS = 12  # that have room for their scores
WIDE_SPAN = 20  # times the threshold, from which scores are drawn on a log scale
WIDTH = 9.0  # inches, so that 9 pt text is near the page's size
SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.linewidth": 0.5,
    "text.parse_math": False,
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    **{name: TEXT for name in ("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor", "axes.titlecolor")},
    **{name: GRID for name in ("axes.edgecolor", "grid.color", "xtick.color", "ytick.color")},
}


def scores(rows: Sequence["ScoreRow"], splits: Sequence[str]) -> Markup:
    """Dot and 95 % interval of every method, one panel a split; filled is exact match, hollow is first token."""
    names = list(dict.fromkeys(row.name for row in rows))
    if not names:
        return Markup("")
    labels = {row.name: row.method for row in rows}
    with matplotlib.rc_context(SETTINGS):
        figure, (panels,) = grid(1, len(splits), 0.95 + 0.31 * len(names), sharex=True, sharey=True)
        for index, (panel, split) in enumerate(zip(panels, splits, strict=True)):
            panel.set(title=split, xlim=(-0.02, 1.02), ylim=(len(names) - 0.5, -0.5), xticks=(0, 0.5, 1), yticks=range(len(names)))
            panel.set_yticklabels([labels[name] for name in names])
            panel.tick_params(axis="y", length=0)
            panel.grid(axis="y", visible=False)
            for row in rows:
                if row.cells[index]:
                    _dot(panel, names.index(row.name), row, row.cells[index])
        figure.legend(handles=_score_legend(rows), loc="outside lower right", ncols=6, handletextpad=0.3, columnspacing=1.4)
        return to_svg(figure, f"Scores with 95 % intervals of the decoder and the baselines on {', '.join(splits)}")


def learning_curves(history: dict[str, dict[int, float]]) -> Markup:
    """Losses (log scale) and validation exact match by epoch, with the epoch of the best val/id/loss marked."""
    losses = [name for name in ("train/loss", "val/id/loss", "val/new/loss") if history.get(name)]
    matches = [name for name in ("val/id/exact_match", "val/new/exact_match") if history.get(name)]
    if not losses:
        return Markup("")
    stop = history.get("val/id/loss", {})
    best = min(stop, key=stop.__getitem__) if stop else None
    with matplotlib.rc_context(SETTINGS):
        figure, (panels,) = grid(1, 2 if matches else 1, 3.1)
        for panel, names in zip(panels, (losses, matches), strict=False):
            for name in names:
                _curve(panel, name, history[name])
            if best is not None:
                panel.axvline(best, color=TEXT, linewidth=0.8, linestyle=":", label=f"best epoch ({best:g})")
            panel.set_xlabel("epoch")
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
            panel.legend(loc="best", fontsize=8.5)
        panels[0].set_title("loss")
        log_scale(panels[0])
        if matches:
            panels[1].set(title="exact match", ylim=(-0.02, 1.02))
        return to_svg(figure, "Losses and validation exact match by epoch")


def relations(test: dict[str, dict]) -> Markup:
    """Exact match of every relation of id and ood, sorted; colour tells whether training had this kind of object."""
    parts = {split: test[split]["by_relation"] for split in ("id", "ood") if (test.get(split) or {}).get("by_relation")}
    if not parts:
        return Markup("")
    rows = max(map(len, parts.values()))
    with matplotlib.rc_context(SETTINGS):
        figure, (panels,) = grid(1, len(parts), 0.9 + 0.23 * rows, sharex=True)
        for panel, (split, entries) in zip(panels, parts.items(), strict=True):
            _bars(panel, sorted(entries.items(), key=lambda item: (-item[1]["exact_match"], item[0])))
            panel.set(title=f"{split}: exact match", xlim=(0, 1.02), ylim=(rows - 0.4, -0.6))
        kinds = {entry["seen_kind"] for entries in parts.values() for entry in entries.values()}
        legend = [Patch(**FILLED, label="kind of object seen in training")] if True in kinds else []
        legend += [Patch(**HATCHED, label="kind of object not seen in training")] if False in kinds else []
        figure.legend(handles=legend, loc="outside lower right", ncols=2)
        return to_svg(figure, "Exact match by relation on " + " and ".join(parts))


def confidence(predictions: Sequence[dict]) -> Markup:
    """Histogram of the answer's probability, right above wrong, each on its own scale."""
    from decoder.report.tables import is_right

    scored = [row for row in predictions if row["probability"] is not None and not math.isnan(row["probability"])]
    right = [row["probability"] for row in scored if is_right(row)]
    wrong = [row["probability"] for row in scored if not is_right(row)]
    if not scored:
        return Markup("")
    bins = [index / 25 for index in range(26)]
    with matplotlib.rc_context(SETTINGS):
        figure, panels = grid(2, 1, 3.1, sharex=True)
        panels = panels[:, 0]
        panels[0].hist(right, bins, rwidth=0.9, **FILLED)
        panels[1].hist(wrong, bins, rwidth=0.9, **HATCHED)
        for panel, name, values in zip(panels, ("right", "wrong"), (right, wrong), strict=True):
            median = f", median {statistics.median(values):.2f}" if values else ""
            panel.set_title(f"{name} (n={len(values)}{median})", loc="left")
            panel.set(xlim=(0, 1), ylabel="edits")
            panel.yaxis.set_major_locator(MaxNLocator(4, integer=True))
            panel.grid(axis="x", visible=False)
        panels[1].set_xlabel("probability of the answer")
        return to_svg(figure, "Histogram of the probability of right and of wrong answers")


def layer_bars(ranking: Sequence[Mapping[str, Any]], threshold: float, edited: Collection[int], label: str) -> Markup:
    """Every layer's score by its place, with the threshold of an edit; the edited layers are blue."""
    if not ranking:
        return Markup("")
    scores_by_layer = {one["layer"]: one["score"] for one in ranking}
    first, last, highest = min(scores_by_layer), max(scores_by_layer), max(threshold, *scores_by_layer.values())
    told = {layer: f"{score:,.0f}" if score >= 100 else f"{score:.2f}" for layer, score in scores_by_layer.items()}
    with matplotlib.rc_context(SETTINGS):
        figure, ((panel,),) = grid(1, 1, 2.5)
        for layer, score in scores_by_layer.items():
            panel.bar(layer, score, width=0.66, linewidth=0.8, **(EDITED if layer in edited else UNEDITED))
            if layer in edited or len(ranking) <= FEW_LAYERS:
                panel.annotate(told[layer], (layer, score), (0, 2), textcoords="offset points", ha="center", fontsize=8)
        panel.axhline(threshold, color=ORANGE, linewidth=1.2, linestyle="--")
        place = {"xytext": (-2, 3), "xycoords": ("axes fraction", "data"), "textcoords": "offset points", "ha": "right"}
        panel.annotate(f"threshold {threshold:.2g}", (1, threshold), color=ORANGE, **place)
        panel.set(xlabel="layer", ylabel=label, xlim=(first - 0.7, max(last, first + FEW_LAYERS - 1) + 0.7), ylim=(0, 1.18 * highest))
        if highest > WIDE_SPAN * threshold:
            log_scale(panel)
            panel.yaxis.set_major_locator(LogLocator())
            panel.set_ylim(threshold / 10, 3 * highest)
        panel.set_xticks(range(first, last + 1, 1 + (last - first) // 40))
        panel.tick_params(axis="x", length=0)
        panel.grid(visible=False)
        return to_svg(figure, "Score of every layer, " + ", ".join(f"{layer}: {told[layer]}" for layer in sorted(told)))


def grid(rows: int, columns: int, height: float, **shared: Any) -> tuple[Figure, Any]:
    """A figure of the page's width and its panels, (rows, columns)."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **shared)


def log_scale(panel: Axes) -> None:
    """Losses, in powers of ten and what lies between them, as 0.2."""
    panel.set_yscale("log")
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.yaxis.set_minor_formatter(NullFormatter())


def _dot(panel: Axes, position: int, row: "ScoreRow", cell: dict) -> None:
    filled = row.metric == "exact_match"
    height = position + (-0.13 if filled else 0.13)
    colour = GROUP_COLOUR[row.group]
    if cell.get("ci95"):
        panel.plot(cell["ci95"], [height, height], color=colour, linewidth=1.4)
    face = colour if filled else "none"
    panel.plot(cell["value"], height, "o", markersize=5, markerfacecolor=face, markeredgecolor=colour, markeredgewidth=1.2)


def _score_legend(rows: Sequence["ScoreRow"]) -> list[Line2D]:
    groups = dict.fromkeys(row.group for row in rows)
    lines = [Line2D([], [], color=GROUP_COLOUR[group], linewidth=2.5, label=group) for group in groups]
    shape = {"marker": "o", "linestyle": "none", "markersize": 5, "markeredgecolor": TEXT}
    lines.append(Line2D([], [], markerfacecolor=TEXT, label="exact match", **shape))
    return [*lines, Line2D([], [], markerfacecolor="none", label="first token", **shape)]


def _curve(panel: Axes, name: str, points: dict[int, float]) -> None:
    colour, style = {"train": (GRID, "-"), "val/id": (BLUE, "-"), "val/new": (ORANGE, "--")}[name.rsplit("/", 1)[0]]
    marker = "o" if len(points) < 3 else None
    panel.plot(list(points), list(points.values()), color=colour, linestyle=style, linewidth=1.6, marker=marker, label=name)


def _bars(panel: Axes, entries: list[tuple[str, dict]]) -> None:
    for position, (_, entry) in enumerate(entries):
        value, n = entry["exact_match"], entry["n"]
        panel.barh(position, value, height=0.66, linewidth=0.8, **(FILLED if entry["seen_kind"] else HATCHED))
        panel.plot(wilson(round(value * n), n), [position, position], color=TEXT, linewidth=0.9)
    panel.set_yticks(range(len(entries)), [f"{name} ({entry['n']})" for name, entry in entries])
    panel.tick_params(axis="y", length=0)
    panel.grid(axis="y", visible=False)


def to_svg(figure: Figure, description: str) -> Markup:
    """A figure as inline SVG in the page's own colours and font."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg ") + len("<svg ") :]
    svg = re.sub(r'(?:width|height)="[^"]*pt" ', "", svg, count=2)  # the page's width decides
    svg = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", svg)  # figure_1, axes_1 and so on would come back in every figure
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
    for colour, css in CSS.items():
        svg = svg.replace(colour, css)
    return Markup('<svg role="img" aria-label="{}" ').format(description) + Markup(svg)
