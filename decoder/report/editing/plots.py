"""The picture of what many edits do to a host. Inline SVG as in `decoder/report/plots.py`."""

import matplotlib
from markupsafe import Markup
from matplotlib.ticker import NullFormatter

from decoder.report.compare_plots import LOOKS
from decoder.report.editing.chains import MEASURES, Series, broken_from, value
from decoder.report.plots import ORANGE, SETTINGS, TEXT, grid, log_scale, to_svg


def collapse(series: Series) -> Markup:
    """A panel a measure, a line an editor, by number of facts; a cross where most seeds' hosts are broken."""
    with matplotlib.rc_context(SETTINGS):
        figure, panels = grid(2, 3, 5.0, sharex=True)
        for panel, measure in zip(panels.flat, MEASURES, strict=True):
            for (editor, points), (colour, style) in zip(series.items(), LOOKS * (1 + len(series) // len(LOOKS)), strict=False):
                drawn = {facts: found for facts, lines in points.items() if (found := value(lines, measure)) is not None}
                values = [round(found, 4) for found in drawn.values()]
                panel.plot(list(drawn), values, color=colour, linestyle=style, linewidth=1.4, label=editor)
                broken = [facts for facts in drawn if 2 * sum(line["broken"] for line in points[facts]) > len(points[facts])]
                panel.plot(broken, [round(drawn[facts], 4) for facts in broken], "x", color=colour, markersize=5)
            panel.set(title=measure.title, xscale="log")
            if measure.is_share:
                panel.set_ylim(-0.03, 1.03)
            else:
                log_scale(panel)
        for times in broken_from(series):
            panels.flat[-1].axhline(times, color=TEXT, linewidth=0.9, linestyle=":")
        for panel in panels[-1]:
            facts = sorted({facts for points in series.values() for facts in points})
            panel.set_xticks(facts, list(map(str, facts)))
            panel.xaxis.set_minor_formatter(NullFormatter())
            panel.set_xlabel("facts")
        handles, labels = panels.flat[0].get_legend_handles_labels()
        handles.append(matplotlib.lines.Line2D([], [], color=ORANGE, marker="x", linestyle="none", markersize=5))
        figure.legend(handles, [*labels, "broken"], loc="outside upper left", ncols=5, fontsize=8, handlelength=2.4, columnspacing=1.4)
        return to_svg(figure, "What facts planted one after the other do to a host, by editor: " + ", ".join(series))
