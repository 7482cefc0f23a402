"""The tables of tracing and reversing edits as Markdown and as a page, from what `python -m data.tracing` left."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from decoder.report.page import render
from decoder.report.tracing.plots import pcs_bars, relation_curves, reversal_curves
from decoder.report.tracing.results import read_tracing
from decoder.report.tracing.tables import label, tables
from decoder.utils.files import write_text

PAGE = "tracing.html"


def markdown(measured: Sequence[Mapping[str, Any]]) -> str:
    return "\n\n".join(table.markdown() for table in tables(measured)) + "\n"


def write_tracing(path: Path, to: Path) -> Path:
    """Writes tracing.html into the folder `to`; returns its path."""
    measured = read_tracing(path)
    directions, pcs, relations, reversal, *rest = tables(measured)
    pictures = {
        pcs.title: [(label(found), pcs_bars(found)) for found in measured],
        relations.title: [("Grey: published, by host.", relation_curves(measured))],
        reversal.title: [("Bands: 95 %.", reversal_curves(measured))],
    }
    context = {"measured": measured, "tables": [directions, pcs, relations, reversal, *rest], "pictures": pictures, "label": label}
    to.mkdir(parents=True, exist_ok=True)
    write_text(to / PAGE, render("tracing_page.html.jinja", context))
    return to / PAGE
