"""The list of columns: how numbers are shown, and what a line more is good for, with the line that docs/extending.md adds."""

import csv
import json
import re

import pytest
from fabricated_runs import result, write_run
from places import ROOT

from decoder.config import TrainConfig
from decoder.report import columns, compare_page, wandb_runs
from decoder.report.columns import COLUMNS, Column
from decoder.report.compare_page import write_comparison
from decoder.report.layer_curves import run_rows
from decoder.report.results import find_runs
from decoder.report.wandb_runs import CHOSEN_BY, result_of, summary_of
from decoder.training.tracking import log_comparison


@pytest.fixture
def added(monkeypatch) -> Column:
    """The column of the page, in the place that the page names."""
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^Column\(.*\)$", page, flags=re.MULTILINE)
    column = eval(line, {"Column": Column})
    for module in (columns, compare_page, wandb_runs):
        monkeypatch.setattr(module, "COLUMNS", (*COLUMNS, column))
    return column


def test_the_column_of_the_page_shows_everywhere(added, tmp_path, monkeypatch):
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("WANDB_SILENT", "true")
    file = write_run(tmp_path, 1, 1, 0) / "result.json"
    found = json.loads(file.read_text()) | {"edits": {"editor": "rome", "ridge": 0.01, "delta_norm_ratio": 0.15349}}
    file.write_text(json.dumps(found))
    write_run(tmp_path, 1, 2, 0)  # its edits do not say
    page = write_comparison(find_runs([tmp_path]), tmp_path).read_text(encoding="utf-8")
    with (tmp_path / "compare.csv").open(encoding="utf-8") as lines:
        assert [line["delta_norm_ratio"] for line in csv.DictReader(lines)] == ["0.15349", ""]
    assert 'data-name="‖ΔW‖ / ‖W‖" class="number"' in page
    assert '<td class="number" data-value="0.15349">0.153</td>' in page
    log_comparison(TrainConfig(), run_rows(find_runs([tmp_path]).finished), tmp_path)
    (table,) = tmp_path.glob("wandb/offline-run-*/files/media/table/runs_*.table.json")
    logged = json.loads(table.read_text())
    assert logged["data"][0][logged["columns"].index("delta_norm_ratio")] == 0.15349
    summary = summary_of(found)
    assert summary["edits/delta_norm_ratio"] == 0.15349
    back = result_of(found["config"], summary | {CHOSEN_BY: 0.5}, "finished")
    assert run_rows({"run": back})[0]["delta_norm_ratio"] == 0.15349


@pytest.mark.parametrize(
    ("value", "format", "shown"),
    [
        (0.15349, "", "0.1535"),
        (3e-05, "", "3e-05"),
        (12.0, "", "12"),
        (12345, "", "12345"),
        (0.4996, ".3f", "0.500"),
        (7, ".3f", "7.000"),
        (None, ".3f", "–"),
        (True, ".3f", "True"),
        ("0+1", ".3f", "0+1"),
        (float("nan"), ".3f", "nan"),
    ],
)
def test_numbers_are_never_shown_as_nothing(value, format, shown):
    assert Column("one", "of.many", "title", format).shown({"one": value}) == shown


def test_columns_have_names_of_their_own():
    for names in ([column.key for column in COLUMNS], [column.logged_as for column in COLUMNS if column.logged_as]):
        assert len(set(names)) == len(names)


@pytest.mark.parametrize("edits", [{"editor": "rome", "ridge": 0.01}, {"editor": "imported", "ridge": None}])
def test_a_row_survives_the_way_through_wandb(edits):
    found = result(1, [0, 1], 3) | {"edits": edits}
    for scores in found["validation"].values():
        scores["exact_match"]["value"] = round(scores["exact_match"]["value"], 2)
    back = result_of(found["config"] | {"host_layers": 10}, summary_of(found) | {CHOSEN_BY: 0.5, "_runtime": 121.0}, "finished")
    here, there = (run_rows({"run": one})[0] for one in (found, back))
    apart = {key for key in here if here[key] != there[key]}
    # Intervals are computed again, and the fabricated ones are no Wilson intervals.
    assert {key for key in apart if not key.endswith(("_low", "_high"))} == set()
