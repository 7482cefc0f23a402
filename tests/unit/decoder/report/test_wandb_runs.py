"""W&B without a network: sweep files, projects read back from recorded runs, and what is logged of a comparison."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import harmonic_mean
from types import SimpleNamespace

import pytest
import wandb
from fabricated_runs import write_grid
from places import HELPERS, ROOT
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args, load_sweep_config
from wandb.sdk.lib.service.service_connection import WandbApiFailedError

from decoder.config import TrainConfig
from decoder.report.compare_page import mean_histories, write_comparison
from decoder.report.layer_curves import Series, layer_curves, run_rows
from decoder.report.results import LEARNT, find_runs, layer_fraction
from decoder.report.wandb_runs import CHOSEN_BY, collect, read_project
from decoder.scores import wilson
from decoder.training.tracking import log_comparison
from decoder.utils.errors import UserError
from launcher.grid import read_grid

SWEEPS = sorted((ROOT / "configs" / "sweep").glob("*.yaml"))
RECORDED = json.loads((HELPERS / "recorded_wandb_runs.json").read_text())


class RecordedRun(SimpleNamespace):
    def scan_history(self, keys: list[str]) -> Iterator[dict]:
        """As W&B says of it: the rows that have all of the keys, with nothing else."""
        return ({key: row[key] for key in keys} for row in self.history if set(keys) <= set(row))


@pytest.fixture
def recorded() -> list[RecordedRun]:
    """Runs as `wandb.Api().runs` gives them, read out of the files of miniature runs: four finished, one crashed, one going on."""
    return [RecordedRun(**run) for run in RECORDED]


def arguments(sweep: dict, pick: str) -> list[str]:
    """The words an agent would start the program with, made by W&B's own code."""
    chosen = {}
    for name, parameter in sweep["parameters"].items():
        options = parameter.get("values") or [parameter.get("value", parameter.get(pick))]
        chosen[name] = {"value": options[0 if pick == "min" else -1]}
    words = create_sweep_command_args({"args": chosen})["args_no_hyphens"]
    command = create_sweep_command(list(sweep["command"]))
    return [word for part in command[3:] for word in (words if part == "${args_no_hyphens}" else [part])]


@pytest.mark.parametrize("pick", ["min", "max"])
@pytest.mark.parametrize("file", SWEEPS, ids=lambda file: file.stem)
def test_command_lines_of_sweeps_parse(file, pick, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "abc123")
    sweep = load_sweep_config(str(file))
    grid = read_grid(arguments(sweep, pick))
    assert grid.is_one_run and grid.runs[0].config.wandb.mode == "online"
    assert sweep["metric"] == {"name": CHOSEN_BY, "goal": "maximize"} and sweep["program"] == "train.py"
    if sweep["method"] == "bayes":
        assert grid.runs[0].folder.name.endswith("-abc123"), "runs of one agent would overwrite each other"


def test_there_is_a_grid_and_a_bayesian_sweep():
    assert {load_sweep_config(str(file))["method"] for file in SWEEPS} == {"grid", "bayes"}


def test_recorded_runs_come_back_as_results(recorded):
    found = collect("me/palimpsest", recorded)
    assert (len(found.finished), len(found.failed), len(found.unfinished)) == (4, 1, 1)
    run, result = recorded[3], list(found.finished.values())[3]
    assert (result["edited_layer"], result["trained_layer"], result["seed"], result["host"]["layers"]) == (1, 1, 1, 4)
    hits = round(run.summary["test/id/exact_match"] * run.summary["test/id/n"])
    assert result["test"]["id"]["exact_match"] == {
        "value": run.summary["test/id/exact_match"],
        "ci95": wilson(hits, run.summary["test/id/n"]),
    }
    assert result["baselines"]["carrier"]["base_known"] is True and set(result["baselines"]["master_key"]["id"]) == {"first_token"}
    assert "crashed" in next(iter(found.failed.values()))["error"]


def test_rows_of_a_project_are_those_of_the_files(recorded):
    rows = run_rows(collect("me/palimpsest", recorded).finished)
    for row, run in zip(rows, recorded, strict=False):
        assert row["validation"] == pytest.approx(
            harmonic_mean(run.summary[f"best/{split}/exact_match"] for split in ("val/id", "val/new"))
        )
        assert row["layer_frac"] == pytest.approx(run.config["layer_frac"])
        assert row["ood"] == run.summary["test/ood/exact_match"] and row["setting"] == ""
    curve = layer_curves(rows)[Series("pocket", "", 1)]["id"]
    assert [(point.layer, len(point.values)) for point in curve] == [(0, 2), (1, 2)]


def test_a_page_of_a_project(recorded, tmp_path):
    page = write_comparison(collect("me/palimpsest", recorded), tmp_path).read_text(encoding="utf-8")
    assert "4 finished runs" in page and "me/palimpsest/pocket-rome-e1-t2-s0" in page and page.count("<svg") == 3
    assert "Learning curves: pocket" in page


def test_learning_curves_of_a_project_are_what_was_logged(recorded):
    found = collect("me/palimpsest", recorded)
    assert list(found.histories) == list(found.finished)
    curves = found.history(Path("me/palimpsest/pocket-rome-e1-t1-s1"))
    logged = [row for row in recorded[3].history if "val/id/loss" in row]
    assert set(curves) == set(LEARNT) and len(logged) == 8
    assert curves["val/id/loss"] == {epoch: row["val/id/loss"] for epoch, row in enumerate(logged)}
    rows = run_rows(found.finished)
    means = mean_histories([found.history(folder) for folder in found.finished], rows)[Series("pocket", "", 1)]
    last = [row["val/id/loss"] for run in recorded[2:4] for row in run.history if row.get("epoch") == 7 and "val/id/loss" in row]
    assert set(means) == {0, 1} and means[1]["val/id/loss"][7] == pytest.approx(sum(last) / 2) and len(set(last)) == 2


def test_curves_that_cannot_be_had_are_named_and_cost_nothing_else(recorded, tmp_path):
    def refuse(keys):
        raise WandbApiFailedError("429\ntoo many")

    recorded[1].scan_history = refuse
    found = collect("me/palimpsest", recorded)
    page = write_comparison(found, tmp_path).read_text(encoding="utf-8")
    assert len(found.finished) == 4 and page.count("<svg") == 3
    assert "me/palimpsest/pocket-rome-e1-t0-s1: its learning curves (WandbApiFailedError: 429 too many)" in page


def test_the_api_is_asked_for_training_runs_in_full(recorded, monkeypatch):
    asked = {}

    class Api:
        def runs(self, path, **options):
            asked.update(path=path, **options)
            return iter(recorded)

    monkeypatch.setattr(wandb, "Api", Api)
    assert len(read_project("me/palimpsest", group="layers").results) == 5
    assert asked == {"path": "me/palimpsest", "filters": {"jobType": "train", "group": "layers"}, "per_page": 200, "lazy": False}


@pytest.mark.parametrize("error", [ValueError("Could not find project me/nope"), wandb.errors.CommError("no network")])
def test_a_project_that_cannot_be_read_is_one_line(error, monkeypatch):
    class Api:
        def runs(self, path, **options):
            raise error

    monkeypatch.setattr(wandb, "Api", Api)
    with pytest.raises(UserError, match="wandb=me/nope: .*wandb login"):
        read_project("me/nope")
    with pytest.raises(UserError, match="expected entity/project"):
        read_project("nope")
    with pytest.raises(UserError, match="no runs of job type train"):
        collect("me/empty", [])


def test_layer_fraction():
    assert (layer_fraction(0, 4), layer_fraction(3, 4), layer_fraction(0, 1), layer_fraction([0, 1], 4)) == (0, 1, 0, None)


def test_a_comparison_is_one_run_of_type_report(tmp_path, monkeypatch):
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("WANDB_SILENT", "true")
    cfg = TrainConfig(experiment="layers")
    rows = run_rows(find_runs([write_grid(tmp_path, 2, 3, 2)]).finished)
    log_comparison(cfg, rows, tmp_path)
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    program = Path(sys.executable).parent / "wandb"
    text = subprocess.run([program, "leet", "inspect", "--json", file], capture_output=True, text=True, check=True).stdout
    run = next(record["run"] for record in map(json.loads, text.splitlines()) if record.get("type") == "run")
    assert (run["job_type"], run["run_group"], run["tags"]) == ("report", "layers", ["report"])
    assert "layers/pocket/edited-0" in text and "layers/pocket/edited-1" in text
    cfg.wandb.mode = "disabled"
    log_comparison(cfg, rows, tmp_path)
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 1
