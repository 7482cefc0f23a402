"""Pictures of what was measured, ours in colour, what was published in grey. Inline SVG as in `decoder/report/plots.py`."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes

from decoder.report.plots import BLUE, GREEN, GRID, ORANGE, SETTINGS, TEXT, UNEDITED, grid, to_svg
from decoder.report.tracing import published
from decoder.report.tracing.tables import label

METHODS = {
    "published": ("published recipe", ORANGE, (0, (4, 2))),
    "value": ("value, base known", GRID, "-"),
    "read": ("value read out of W'", BLUE, "-"),
}
GREY = ((0, (1, 1.2)), (0, (5, 1.5)), (0, (4, 1.5, 1, 1.5)))


def pcs_bars(found: Mapping[str, Any]) -> Markup:
    """pcs of every layer of the unedited host, and of the edited layer with its edits."""
    layers, layer, edited = found["pcs"]["layers"], found["layer"], found["pcs"]["edited"]
    with matplotlib.rc_context(SETTINGS):
        figure, ((panel,),) = grid(1, 1, 2.2)
        places = [place for place, value in enumerate(layers) if value is not None]
        panel.bar(places, [layers[place] for place in places], width=0.66, **UNEDITED, label="unedited")
        panel.errorbar(
            [layer],
            [edited["value"]],
            yerr=[edited["sd"] or 0],
            fmt="o",
            color=BLUE,
            markersize=5,
            capsize=3,
            linewidth=1.2,
            label="edited, sd",
        )
        panel.axhline(0, color=GRID, linewidth=0.8)
        panel.set(xlabel="layer", ylabel="pcs", xticks=range(0, len(layers), 1 + len(layers) // 40))
        panel.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
        panel.tick_params(axis="x", length=0)
        panel.grid(axis="x", visible=False)
        figure.legend(loc="outside upper left", ncols=2, fontsize=8.5)
        return to_svg(figure, f"pcs of every layer of {found['host']['name']}, and of layer {layer} with its edits")


def _curve(panel: Axes, places: Sequence[int], scores: Sequence[Mapping[str, Any]], colour: str, style: Any, told: str) -> None:
    """Values with their intervals as a band."""
    sides = [score["ci95"] or [score["value"]] * 2 for score in scores]
    panel.fill_between(places, *zip(*sides, strict=True), color=colour, alpha=0.15, linewidth=0)
    values, marks = [score["value"] for score in scores], {"marker": "o", "markersize": 3}
    panel.plot(places, values, color=colour, linestyle=style, linewidth=1.6, label=told, **marks)


def relation_curves(measured: Sequence[Mapping[str, Any]]) -> Markup:
    """Accuracy by number of relations, a panel a store; the published curves in grey."""
    with matplotlib.rc_context(SETTINGS):
        figure, (panels,) = grid(1, len(measured), 3.3, sharey=True)
        for panel, found in zip(panels, measured, strict=True):
            rows = found["relations"]["by_classes"]
            for (host, values), style in zip(published.RELATIONS.items(), GREY, strict=True):
                panel.plot(published.CLASSES, values, color=GRID, linestyle=style, linewidth=1.2, label=f"{host}, published")
            for name, (told, colour, style) in METHODS.items():
                colour = TEXT if name == "value" else colour
                _curve(panel, [row["classes"] for row in rows], [row[name] for row in rows], colour, style, told)
            panel.plot(published.CLASSES, [1 / count for count in published.CLASSES], color=GRID, linewidth=0.8, label="chance")
            panel.set(title=label(found), xlabel="relations", ylim=(0, 1.02))
        panels[0].set_ylabel("accuracy")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=4, fontsize=8.5, handlelength=2.6)
        return to_svg(figure, "Accuracy of the relation by number of relations, measured and published")


def reversal_curves(measured: Sequence[Mapping[str, Any]]) -> Markup:
    """Next token back and edit left by k, a panel a store, with what needs no labels as lines across."""
    with matplotlib.rc_context(SETTINGS):
        figure, (panels,) = grid(1, len(measured), 3.3, sharey=True)
        for panel, found in zip(panels, measured, strict=True):
            reversal = found["reversal"]
            ks = range(len(reversal["by_k"]))
            for name, told, colour, style in (
                ("reversed", "unedited host's token", BLUE, "-"), ("edited", "edited host's token", ORANGE, (0, (4, 2))),
            ):  # fmt: skip
                _curve(panel, ks, [cell[name] for cell in reversal["by_k"]], colour, style, told)
            for name, told, style in (("traced", "traced, without labels", "-"), ("usual", "k without labels", (0, (1, 1.2)))):
                panel.axhline(reversal[name]["reversed"]["value"], color=GREEN, linestyle=style, linewidth=1.4, label=told)
            panel.set(title=label(found), xlabel="components taken out, k", ylim=(-0.02, 1.04), xticks=range(0, len(ks), 3))
        panels[0].set_ylabel("share of edits")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=4, fontsize=8.5, handlelength=2.6)
        return to_svg(figure, "Share of edits whose next token is the unedited host's or the edited host's, by components taken out")
