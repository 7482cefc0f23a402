"""The page of a causal trace, from its result alone: what was restored where, and what it says about the edited layer."""

import json
from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from data.causal_trace.effects import GROUPS, LAST_SUBJECT, shown
from decoder.report.compare_plots import COLOURS, MARK
from decoder.report.page import render
from decoder.report.plots import BLUE, GREEN, ORANGE, SETTINGS, TEXT, grid, to_svg

TITLES = {"hidden": "hidden state", "mlp": "MLP", "attention": "attention"}
LOOKS = {"hidden": (BLUE, "-"), "mlp": (GREEN, (0, (4, 2))), "attention": (ORANGE, (0, (1, 1.2)))}
CURVES = (LAST_SUBJECT, GROUPS[5])


def page(found: Mapping[str, Any]) -> str:
    """The self-contained page of what `trace_facts` found."""
    at = found["effects"]["mlp"][LAST_SUBJECT]
    tables = {
        kind: {group: [mean["value"] for mean in found["effects"][kind][group]] for group in GROUPS if found["facts"][group]}
        for kind in TITLES
    }
    return render(
        "trace_page.html.jinja",
        {
            "found": found,
            "layers": range(found["host"]["layers"]),
            "titles": {kind: title_of(kind, found["window"]) for kind in TITLES},
            "shown": {name: shown(found[name]) for name in ("clean", "corrupted", "total", "ahead")},
            "suggested": shown(at[found["suggested_layer"]]),
            "configured": shown(at[found["configured_layer"]]),
            "heat_svg": heat_maps(found),
            "curves_svg": curves(found),
            "tables": tables,
            "json": json.dumps({name: value for name, value in found.items() if name != "effects"}, ensure_ascii=False, indent=1),
        },
    )


def title_of(kind: str, window: int) -> str:
    """`MLP, windows of 6 layers`."""
    return TITLES[kind] + (f", windows of {window} layers" if window > 1 and kind != "hidden" else "")


def heat_maps(found: Mapping[str, Any]) -> Markup:
    """Mean indirect effect by token group and layer, a panel a kind, on one scale; the edited layer is outlined, dashed the suggested."""
    groups = [group for group in GROUPS if found["facts"][group]]
    effects = {kind: np.array([[mean["value"] for mean in found["effects"][kind][group]] for group in groups]) for kind in TITLES}
    highest = max(1e-6, *(float(values.max()) for values in effects.values()))
    with matplotlib.rc_context(SETTINGS | {"axes.grid": False}):
        figure, panels = grid(len(TITLES), 1, 0.9 + 0.27 * len(groups) * len(TITLES) + 0.6, sharex=True)
        for (panel,), (kind, values_GL) in zip(panels, effects.items(), strict=True):
            mesh = panel.pcolormesh(values_GL, cmap=COLOURS, vmin=0, vmax=highest, edgecolors="face", linewidth=0.2)
            panel.set_title(title_of(kind, found["window"]), loc="left")
            panel.set_yticks(np.arange(len(groups)) + 0.5, groups)
            panel.invert_yaxis()
            panel.tick_params(length=0)
            panel.spines[:].set_visible(False)
        layers = range(0, values_GL.shape[1], max(1, values_GL.shape[1] // 16))
        panels[-1, 0].set_xticks([layer + 0.5 for layer in layers], map(str, layers))
        panels[-1, 0].set_xlabel("layer")
        if LAST_SUBJECT in groups:
            _outline(panels[list(TITLES).index("mlp"), 0], groups.index(LAST_SUBJECT), found)
        figure.colorbar(mesh, ax=panels[:, 0], label="mean indirect effect", aspect=30, shrink=0.95, pad=0.015).outline.set_visible(False)
        return to_svg(figure, f"Heat maps: mean indirect effect by token and layer of {', '.join(TITLES.values())}")


def _outline(panel: Axes, row: int, found: Mapping[str, Any]) -> None:
    for layer, style in ((found["suggested_layer"], (0, (2, 1))), (found["configured_layer"], "-")):
        panel.add_patch(Rectangle((layer, row), 1, 1, fill=False, edgecolor=MARK, linewidth=1.6, linestyle=style, zorder=3))


def curves(found: Mapping[str, Any]) -> Markup:
    """Mean indirect effect with its interval by layer, of the subject's last token and of the prompt's."""
    groups = [group for group in CURVES if found["facts"][group]]
    with matplotlib.rc_context(SETTINGS):
        figure, (panels,) = grid(1, len(groups), 2.9, sharey=True)
        for panel, group in zip(panels, groups, strict=True):
            for kind, (colour, style) in LOOKS.items():
                means = found["effects"][kind][group]
                layers = range(len(means))
                sides = [mean["ci95"] or [mean["value"]] * 2 for mean in means]
                panel.fill_between(layers, *zip(*sides, strict=True), color=colour, alpha=0.2, linewidth=0)
                values = [mean["value"] for mean in means]
                panel.plot(layers, values, color=colour, linestyle=style, linewidth=1.6, label=title_of(kind, found["window"]))
            panel.axvline(found["configured_layer"], color=TEXT, linewidth=0.9, linestyle=":", label="edited layer")
            panel.set(title=group, xlabel="layer")
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panels[0].set_ylabel("mean indirect effect")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=4, fontsize=8.5)
        return to_svg(figure, f"Mean indirect effect by layer at the {' and the '.join(groups)}")
