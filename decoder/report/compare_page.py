"""The page, the table and the figures of a comparison of runs, from their result.json and metrics.csv; half-finished grids are welcome."""

import csv
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from decoder.report.columns import COLUMNS, RunRow
from decoder.report.layer_curves import (
    Series,
    baseline_levels,
    best_layers,
    chosen_by_validation,
    differences,
    has_place,
    layer_curves,
    run_rows,
    series_of,
)
from decoder.report.page import render
from decoder.report.results import LEARNT, VALIDATION_SCORE, Found, History
from decoder.report.tables import METHODS, is_toy
from decoder.scores import TEST_SPLITS
from decoder.utils.files import write_text

PAGE, TABLE = "compare.html", "compare.csv"
MOST_VALUES = 8


def write_comparison(found: Found, to: Path) -> Path:
    """Writes compare.html, compare.csv and the figures as files of their own into the folder `to`; returns the page's path."""
    to.mkdir(parents=True, exist_ok=True)
    rows = _seen_from(to, run_rows(found.finished))
    _write_csv(to / TABLE, rows)
    page, parts = to / PAGE, _page(found, rows, to)
    write_text(page, render("compare_page.html.jinja", parts))
    _write_figures(to, parts["groups"])
    return page


def mean_histories(histories: list[History], rows: list[RunRow]) -> dict[Series, dict[Any, History]]:
    """Series -> trained layer -> means over the seeds that got so far."""
    seen: dict[Series, dict[Any, list[History]]] = defaultdict(lambda: defaultdict(list))
    for history, row in zip(histories, rows, strict=True):
        if has_place(row) and history:
            seen[series_of(row)][row["trained_layer"]].append(history)
    return {
        series: {layer: {name: _mean_by_epoch([h.get(name, {}) for h in found]) for name in LEARNT} for layer, found in by_layer.items()}
        for series, by_layer in seen.items()
    }


def _page(found: Found, rows: list[RunRow], to: Path) -> dict[str, Any]:
    drawn = [*chosen_by_validation(rows), *rows]
    folders = {row["run"]: folder for row, folder in zip(rows, found.finished, strict=True)}
    curves, levels = layer_curves(drawn), baseline_levels([found.finished[folders[row["run"]]] for row in drawn], drawn)
    curves_by_epoch = mean_histories([found.history(folders[row["run"]]) for row in drawn], drawn)
    groups = dict.fromkeys((series.host, series.setting) for series in map(series_of, drawn))
    chosen = {group: _chosen_settings(group, drawn) for group in groups}
    summed_up = {host for (host, _), settings in chosen.items() if settings}
    folded = [group for group in groups if group[0] in summed_up and not chosen[group]]
    failed = [{"run": str(folder), "error": result.get("error", "no error was recorded")} for folder, result in found.failed.items()]
    return {
        "rows": rows,
        "columns": [column for column in COLUMNS if column.title and (column.key != "setting" or any(row["setting"] for row in rows))],
        "splits": TEST_SPLITS,
        "methods": METHODS,
        "groups": [
            _group(group, curves, levels, curves_by_epoch) | {"chosen": chosen[group], "folded": group in folded} for group in groups
        ],
        "best": best_layers(rows),
        "differences": differences(result.get("config") or {} for result in found.finished.values()),
        "most_values": MOST_VALUES,
        "failed": _seen_from(to, failed),
        "unfinished": _seen_from(to, [{"run": str(folder)} for folder in found.unfinished]),
        "unreadable": found.unreadable,
        "toy": any(map(is_toy, found.finished.values())),
        "chosen_by": VALIDATION_SCORE,
    }


def _group(
    group: tuple[str, str], curves: Mapping[Series, Any], levels: Mapping[Series, Any], by_epoch: Mapping[Series, Any]
) -> dict[str, Any]:
    from decoder.report import compare_plots

    own = {series: points for series, points in curves.items() if series[:2] == group}
    return {
        "host": group[0],
        "setting": group[1],
        "curves_svg": compare_plots.layer_curves(own, levels),
        "heat_svg": compare_plots.heat_maps(own),
        "learning_svg": compare_plots.learning_curves({series: by_epoch[series] for series in sorted(by_epoch) if series[:2] == group}),
        "levels": {series: levels[series] for series in own if series in levels},
    }


def _chosen_settings(group: tuple[str, str], rows: list[RunRow]) -> dict[tuple[Any, Any], tuple[str, list[RunRow]]]:
    """(edited layer, trained layer) -> the training settings that were chosen for it, and its runs; empty where nothing was."""
    cells: dict[tuple[Any, Any], tuple[str, list[RunRow]]] = {}
    for row in rows:
        if (row["host"], row["setting"]) == group and "chosen" in row:
            cells.setdefault((row["edited_layer"], row["trained_layer"]), (row["chosen"], []))[1].append(row)
    return dict(sorted(cells.items(), key=lambda item: ([*map(int, str(item[0][0]).split("+"))], str(item[0][1]))))


def _mean_by_epoch(histories: list[Mapping[int, float]]) -> dict[int, float]:
    epochs = sorted({epoch for history in histories for epoch in history})
    return {epoch: fmean(history[epoch] for history in histories if epoch in history) for epoch in epochs}


def _seen_from(top: Path, rows: list[RunRow]) -> list[RunRow]:
    """The rows with run folders as they are seen from `top`."""
    return [row | {"run": str(Path(row["run"]).relative_to(top)) if Path(row["run"]).is_relative_to(top) else row["run"]} for row in rows]


def _write_figures(to: Path, groups: list[dict[str, Any]]) -> None:
    """compare-curve.svg and compare-heat.svg of the page's first group, compare-curve-2.svg of the second, and so on."""
    style = "svg { background: var(--page); color: var(--ink); font-family: sans-serif; }"
    for number, group in enumerate(groups, 1):
        for name, svg in (("curve", group["curves_svg"]), ("heat", group["heat_svg"])):
            if svg:
                file = to / f"{Path(PAGE).stem}-{name}{f'-{number}' if number > 1 else ''}.svg"
                write_text(file, str(svg).replace(">", f"><style>{render('colours.css.jinja', {})}{style}</style>", 1))


def _write_csv(path: Path, rows: list[RunRow]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else ["run"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
