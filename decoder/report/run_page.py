"""The page of one run, from the files in its run folder; also a command: `python -m decoder.report runs/main`.

Nothing here touches the host or torch: a report can be written again at any time from `result.json`, `metrics.csv` and
`predictions.parquet`. Parts whose data are absent are left out. For several runs see `decoder/report/compare_page.py`.
"""

from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml

from decoder.report.page import render
from decoder.report.results import read_history, read_predictions, read_result
from decoder.report.tables import draw_edits, is_right, is_toy, made_by, score_rows
from decoder.scores import OOD_CELLS, TEST_SPLITS
from decoder.utils.files import write_text

TABLED_EDITS = 40
TABLED_PERCENTS = (5, 25, 50, 75, 95)  # of the 0, 1, ..., 100 % quantiles that a calibration has


def write_report(folder: Path, result: Mapping[str, Any] | None = None) -> Path:
    """Writes `report.html`, one self-contained page, into a run folder; returns its path. The result is its `result.json` unless given."""
    result = result or read_result(folder / "result.json")
    context = _page(result, read_predictions(folder / "predictions.parquet"), read_history(folder / "metrics.csv"))
    path = folder / "report.html"
    write_text(path, render("run_page.html.jinja", context))
    return path


def _page(result: dict, predictions: list[dict], history: dict) -> dict[str, Any]:
    from decoder.report import plots

    editor, ridge = made_by(result)
    tested = [row for row in predictions if row["split"] in TEST_SPLITS]
    wrong, right = draw_edits(tested, 0, TABLED_EDITS, most_wrong=TABLED_EDITS // 2)
    return {
        "result": result,
        "editor": editor or "not recorded",
        "ridge": ridge,
        "toy": is_toy(result),
        "tabled_percents": TABLED_PERCENTS,
        "splits": [split for split in TEST_SPLITS if split in (result.get("test") or {})],
        "tables": [table for table in (_grouped(result, TEST_SPLITS), _grouped(result, tuple(OOD_CELLS))) if table["groups"]],
        "scores_svg": plots.scores(score_rows(result), TEST_SPLITS),
        "curves_svg": plots.learning_curves(history),
        "relations_svg": plots.relations(result.get("test") or {}),
        "confidence_svg": plots.confidence(tested),
        "wrong": wrong,
        "right": right,
        "tested": len(tested),
        "missed": sum(not is_right(row) for row in tested),
        "config": yaml.safe_dump(result["config"], sort_keys=False) if result.get("config") else "",
    }


def _grouped(result: dict, splits: tuple[str, ...]) -> dict[str, Any]:
    rows = groupby(score_rows(result, splits), key=lambda row: row.group)
    return {"splits": splits, "groups": {group: list(members) for group, members in rows}}
