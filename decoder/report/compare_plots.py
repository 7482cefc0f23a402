"""Figures of a comparison: layer curves, heat maps of edited against trained layer, learning curves. Inline SVG as in `plots.py`."""

from collections.abc import Iterable, Mapping
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from decoder.report.layer_curves import Point, Series
from decoder.report.plots import BLUE, GREEN, ORANGE, SETTINGS, TEXT, grid, log_scale, to_svg
from decoder.report.results import LEARNT
from decoder.report.tables import METHODS
from decoder.scores import TEST_SPLITS

LOOKS = [(colour, style) for style in ("-", (0, (4, 2))) for colour in (BLUE, ORANGE, GREEN, TEXT)]
MOST_LINES = len(LOOKS)
BASELINE_LOOKS = ((ORANGE, "--"), (GREEN, "-."), (TEXT, (0, (6, 1.5, 1, 1.5, 1, 1.5))))
COLOURS = "cividis"  # looks the same to colour-blind people, and lightness alone tells its order
MARK = "#d55e01"  # no colour of the page's own: the map below it is the same on a dark page
NUMBERED_CELLS = 16


def layer_curves(curves: Mapping[Series, Mapping[str, list[Point]]], baselines: Mapping[Series, Mapping[str, Mapping[str, Any]]]) -> Markup:
    """Exact match by trained layer: a row of panels an edited layer, a panel a test split."""
    if not any(curves.values()):
        return Markup("")
    layers = [point.layer for by_split in curves.values() for points in by_split.values() for point in points]
    with matplotlib.rc_context(SETTINGS):
        figure, panels = grid(len(curves), len(TEST_SPLITS), 0.5 + 2.2 * len(curves), sharex=True, sharey=True)
        shown = _most_readable([baselines[series] for series in curves if series in baselines])
        for row, (series, by_split) in zip(panels, curves.items(), strict=True):
            for panel, split in zip(row, TEST_SPLITS, strict=True):
                _curve(panel, by_split.get(split, []), series.edited_layer, min(layers), max(layers))
                _baseline_lines(panel, baselines.get(series, {}), split, shown)
            row[0].set_ylabel(f"edited layer {series.edited_layer}\nexact match")
        for panel, split in zip(panels[0], TEST_SPLITS, strict=True):
            panel.set_title(split)
        for panel in panels[-1]:
            panel.set_xlabel("trained layer")
        _one_legend(figure, panels.flat)
        return to_svg(figure, f"Layer curve: exact match by trained layer on {', '.join(TEST_SPLITS)}")


def heat_maps(curves: Mapping[Series, Mapping[str, list[Point]]]) -> Markup:
    """Mean exact match of every edited × trained layer, a panel a test split."""
    if not any(curves.values()):
        return Markup("")
    edited = sorted(series.edited_layer for series in curves)
    trained = sorted({point.layer for by_split in curves.values() for points in by_split.values() for point in points})
    with matplotlib.rc_context(SETTINGS | {"axes.grid": False}):
        figure, (panels,) = grid(1, len(TEST_SPLITS), 1.8 + 0.3 * min(len(edited), 16), sharex=True, sharey=True)
        for panel, split in zip(panels, TEST_SPLITS, strict=True):
            means = np.full((len(edited), len(trained)), np.nan)
            for series, by_split in curves.items():
                for point in by_split.get(split, []):
                    means[edited.index(series.edited_layer), trained.index(point.layer)] = point.mean
            mesh = panel.pcolormesh(np.ma.masked_invalid(means), cmap=COLOURS, vmin=0, vmax=1, edgecolors="face", linewidth=0.2)
            _number_cells(panel, means)
            _mark_edited(panel, edited, trained)
            _name_ticks(panel, edited, trained)
            panel.set(title=split, xlabel="trained layer")
        panels[0].set_ylabel("edited layer")
        panels[0].invert_yaxis()  # in the order of the curves above
        figure.colorbar(mesh, ax=panels, label="exact match", aspect=12, shrink=0.95, pad=0.015).outline.set_visible(False)
        return to_svg(figure, f"Heat map: exact match by edited and trained layer on {', '.join(TEST_SPLITS)}")


def learning_curves(histories: Mapping[Series, Mapping[int, Mapping[str, Mapping[int, float]]]]) -> Markup:
    """val/id/loss and val/new exact match by epoch, a line a trained layer (mean over seeds), a row an edited layer."""
    histories = {series: by_layer for series, by_layer in histories.items() if by_layer}
    if not histories:
        return Markup("")
    with matplotlib.rc_context(SETTINGS):
        figure, panels = grid(len(histories), len(LEARNT), 0.5 + 2.2 * len(histories), sharex=True, sharey="col")
        for row, (series, by_layer) in zip(panels, histories.items(), strict=True):
            for panel, name in zip(row, LEARNT, strict=True):
                for layer, look in _looks(sorted(by_layer)).items():
                    points = by_layer[layer].get(name, {})
                    panel.plot(list(points), [round(value, 4) for value in points.values()], linewidth=1.3, **look)
                panel.xaxis.set_major_locator(MaxNLocator(integer=True))
            log_scale(row[0])
            row[0].set_ylabel(f"edited layer {series.edited_layer}")
            row[1].set_ylim(-0.02, 1.02)
        for panel, name in zip(panels[0], LEARNT, strict=True):
            panel.set_title(name)
        for panel in panels[-1]:
            panel.set_xlabel("epoch")
        _one_legend(figure, panels.flat)
        return to_svg(figure, "Learning curves: validation loss and exact match by epoch for every trained layer")


def _curve(panel: Axes, points: list[Point], edited_layer: int, first: int, last: int) -> None:
    layers, means = [point.layer for point in points], [point.mean for point in points]
    panel.axvline(edited_layer, color=TEXT, linewidth=0.9, linestyle=":", label="edited layer")
    panel.fill_between(
        layers, [min(point.values) for point in points], [max(point.values) for point in points],
        color=BLUE, alpha=0.22, linewidth=0, label="range of seeds",
    )  # fmt: skip
    spans = [(point.layer, point.mean, point.interval) for point in points if point.interval]
    if spans:
        at, middle, intervals = zip(*spans, strict=True)
        low, high = (np.abs(np.array(side) - middle) for side in zip(*intervals, strict=True))
        panel.errorbar(at, middle, [low, high], fmt="none", ecolor=BLUE, elinewidth=0.9, capsize=2, label="95 % interval of a run")
    seeds = [(point.layer, value) for point in points for value in point.values]
    if seeds:
        hollow = {"markersize": 2.6, "markerfacecolor": "none", "markeredgecolor": BLUE, "markeredgewidth": 0.7}
        panel.plot(*zip(*seeds, strict=True), "o", label="seeds", **hollow)
    panel.plot(layers, means, color=BLUE, linewidth=1.6, marker="o", markersize=3.6, label="decoder, mean")
    panel.set(xlim=(first - 0.4, last + 0.4), ylim=(-0.02, 1.02))
    panel.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))


def _most_readable(levels: list[Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """The three baselines that read most; all of them stand in the table below the figure."""
    names = dict.fromkeys(name for found in levels for name in found)
    total = {name: sum(found.get(name, {}).get(split, 0) for found in levels for split in TEST_SPLITS) for name in names}
    return sorted(total, key=lambda name: -total[name])[: len(BASELINE_LOOKS)]


def _baseline_lines(panel: Axes, levels: Mapping[str, Mapping[str, Any]], split: str, shown: list[str]) -> None:
    for name, (colour, style) in zip(shown, BASELINE_LOOKS, strict=False):
        if split in levels.get(name, {}):
            only = "" if levels[name]["metric"] == "exact_match" else " (first token)"
            label = f"{METHODS.get(name, name)}{only}"
            panel.axhline(levels[name][split], color=colour, linestyle=style, linewidth=1.0, label=label, zorder=1)


def _one_legend(figure: Figure, panels: Iterable[Axes]) -> None:
    """One legend for the whole figure, of what any panel shows."""
    shown = {label: handle for panel in panels for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(shown.values(), shown.keys(), loc="outside upper left", ncols=4, fontsize=8, handlelength=2.4, columnspacing=1.4)


def _number_cells(panel: Axes, means: Any) -> None:
    if max(means.shape) > NUMBERED_CELLS:
        return
    for row, column in np.argwhere(~np.isnan(means)):
        mean = means[row, column]
        # The map runs from dark to light.
        ink = "#000000" if mean > 0.55 else "#ffffff"
        panel.text(column + 0.5, row + 0.5, f"{mean:.2f}", ha="center", va="center", color=ink, fontsize=8 if max(means.shape) < 8 else 6)


def _mark_edited(panel: Axes, edited: list[int], trained: list[int]) -> None:
    for row, layer in enumerate(edited):
        if layer in trained:
            panel.add_patch(Rectangle((trained.index(layer), row), 1, 1, fill=False, edgecolor=MARK, linewidth=1.6, zorder=3))


def _name_ticks(panel: Axes, edited: list[int], trained: list[int]) -> None:
    for axis, layers in ((panel.xaxis, trained), (panel.yaxis, edited)):
        every = range(0, len(layers), max(1, len(layers) // 12))
        axis.set_ticks([index + 0.5 for index in every], [str(layers[index]) for index in every])
        axis.set_tick_params(length=0)
    panel.spines[:].set_visible(False)


def _looks(layers: list[int]) -> dict[int, dict[str, Any]]:
    """Colour, dashes and legend of the line of each trained layer; of many lines some are named."""
    names = {layer: f"trained layer {layer}" for layer in layers}
    if len(layers) <= MOST_LINES:
        looks = zip(names.items(), LOOKS, strict=False)
        return {layer: {"label": name, "color": colour, "linestyle": style} for (layer, name), (colour, style) in looks}
    # The middle of the map shows on a light page and on a dark one.
    colours = matplotlib.colormaps["viridis"](np.linspace(0.25, 0.85, len(layers)))
    named = {layers[index] for index in np.linspace(0, len(layers) - 1, MOST_LINES).round().astype(int)}
    return {
        layer: {"color": colour, "label": names[layer] if layer in named else None} for layer, colour in zip(layers, colours, strict=True)
    }
