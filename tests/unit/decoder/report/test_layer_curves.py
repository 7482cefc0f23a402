"""The numbers of a comparison, from results that nobody measured."""

import json
from pathlib import Path

import pytest
from fabricated_runs import write_grid, write_run

from decoder.config import TrainConfig
from decoder.config.compose import compose, to_dict
from decoder.report.compare_page import write_comparison
from decoder.report.layer_curves import (
    CHOSEN,
    Series,
    baseline_levels,
    best_layers,
    chosen_by_validation,
    differences,
    layer_curves,
    run_rows,
)
from decoder.report.results import find_runs, validation_score


@pytest.fixture(scope="module")
def grid(tmp_path_factory) -> Path:
    return write_grid(tmp_path_factory.mktemp("runs"))


def rows_of(top: Path) -> list[dict]:
    return run_rows(find_runs([top]).finished)


def test_points_are_means_over_seeds_with_the_runs_intervals(grid):
    rows = rows_of(grid)
    curves = layer_curves(rows)
    assert list(curves) == [Series("pocket", "", edited) for edited in (0, 1, 2)]
    point = curves[Series("pocket", "", 1)]["ood"][3]
    seeds = [row for row in rows if (row["edited_layer"], row["trained_layer"]) == (1, 3)]
    assert point.layer == 3 and sorted(point.values) == sorted(row["ood"] for row in seeds) and len(seeds) == 3
    assert point.mean == pytest.approx(sum(row["ood"] for row in seeds) / 3)
    assert point.interval[0] == pytest.approx(sum(row["ood_low"] for row in seeds) / 3)


def test_runs_of_other_settings_are_never_averaged_together(grid, tmp_path):
    write_grid(tmp_path, 1, 2, 2)
    write_run(tmp_path / "other", 0, 1, 0, edits={"editor": "rome", "layer": 0, "ridge": 0})
    write_run(tmp_path, 0, 1, 0, host={"name": "gpt2-xl", "path": "somewhere"})
    curves = layer_curves(rows_of(tmp_path))
    assert {(series.host, series.setting) for series in curves} == {("pocket", "ridge=0.01"), ("pocket", "ridge=0"), ("gpt2-xl", "")}
    assert [len(point.values) for point in curves[Series("pocket", "ridge=0.01", 0)]["id"]] == [2, 2]


def test_the_editor_is_the_one_that_made_the_store(tmp_path):
    file = write_run(tmp_path, 0, 1, 0) / "result.json"
    found = json.loads(file.read_text())
    assert (rows_of(tmp_path)[0]["editor"], rows_of(tmp_path)[0]["ridge"]) == ("rome", 0.01)
    file.write_text(json.dumps(found | {"edits": {"editor": "imported", "ridge": None}}))
    assert (rows_of(tmp_path)[0]["editor"], rows_of(tmp_path)[0]["ridge"]) == ("imported", None)


def labels(*lines: str) -> list[tuple[str, str]]:
    configs = {line: {"config": to_dict(compose(TrainConfig, "train", line.split()))} for line in lines}
    return [(row["setting"], row["edits_setting"]) for row in run_rows(configs)]


def test_a_label_has_no_setting_that_follows_from_others_in_it():
    assert labels("edits=rome", "edits=memit", "edits=ft optim.recombined=0 optim.value_noise=0") == [
        ("editor=rome", "editor=rome"),
        ("editor=memit", "editor=memit"),
        ("editor=ft", "editor=ft"),
    ]
    assert labels("experiment=main", "experiment=quick") == [
        ("splits.train_per_relation=55", "splits.train_per_relation=55"),
        ("splits.train_per_relation=11", "splits.train_per_relation=11"),
    ]
    assert labels("edits.ridge=0.1 optim.clip=2", "edits.ridge=0.1 optim.clip=3", "edits.ridge=0.2", "edits.ridge=0.2 seed=1") == [
        ("ridge=0.1, optim.clip=2.0", "ridge=0.1"),
        ("ridge=0.1, optim.clip=3.0", "ridge=0.1"),
        ("ridge=0.2, optim.clip=1.0", "ridge=0.2"),
        ("ridge=0.2, optim.clip=1.0", "ridge=0.2"),
    ]


def test_validation_chooses_the_settings_of_each_layer_on_seeds_they_share(tmp_path):
    levels = {
        (0, 5e-3): (0.1, 0.1),
        (0, 1e-3): (0.8,),
        (1, 5e-3): (0.9, 0.9),
        (1, 1e-3): (0.6, 0.6),
        (2, 5e-3): (0.5, 0.3),
        (2, 1e-4): (0.45,),
    }
    for (trained, rate), by_seed in levels.items():
        for seed, level in enumerate(by_seed):
            file = write_run(tmp_path / f"{rate}", 1, trained, seed, optim={"lr_layer": rate}) / "result.json"
            result = json.loads(file.read_text())
            for split in result["validation"].values():
                split["exact_match"]["value"] = level
            for split in result["test"].values():
                split["exact_match"]["value"] = 1 - level  # the tests say the opposite, and have no part in it
            file.write_text(json.dumps(result))
    rows = rows_of(tmp_path)
    chosen = chosen_by_validation(rows)
    rates = {row["trained_layer"]: row["chosen"] for row in chosen}
    assert rates == {0: "optim.lr_layer=0.001", 1: "optim.lr_layer=0.005", 2: "optim.lr_layer=0.005"} and len(chosen) == 5
    curve = layer_curves(chosen)[Series("pocket", CHOSEN, 1)]["ood"]
    assert [point.mean for point in curve] == pytest.approx([0.2, 0.1, 0.6])
    page = write_comparison(find_runs([tmp_path]), tmp_path).read_text(encoding="utf-8")
    assert f"Layer curve: pocket, {CHOSEN}" in page and "What validation chose" in page and "optim.lr_layer=0.005</h2>" in page


def test_a_run_made_twice_counts_once(tmp_path):
    for name, seeds in (("a", (0, 1)), ("b", (0,))):
        for seed in seeds:
            write_run(tmp_path / name, 1, 1, seed)
    rows = rows_of(tmp_path)
    assert len(rows) == 3 and len(layer_curves(rows)[Series("pocket", "", 1)]["ood"][0].values) == 2
    assert [best.seeds for best in best_layers(rows)] == [2]


def test_nothing_is_chosen_between_other_edits_or_where_settings_are_alike(grid, tmp_path):
    assert chosen_by_validation(rows_of(grid)) == []
    for ridge in (0, 0.01):
        write_run(tmp_path / f"{ridge}", 1, 1, 0, edits={"editor": "rome", "layer": 1, "ridge": ridge})
    assert chosen_by_validation(rows_of(tmp_path)) == []


def test_the_best_layer_is_chosen_by_validation_not_by_tests(tmp_path):
    for trained, value, test in ((0, 0.9, 0.1), (1, 0.2, 0.99)):
        for seed in (0, 1):
            file = write_run(tmp_path, 1, trained, seed) / "result.json"
            result = json.loads(file.read_text())
            for split in ("val/id", "val/new"):
                result["validation"][split]["exact_match"]["value"] = value + 0.01 * seed
            for split in result["test"].values():
                split["exact_match"]["value"] = test
            file.write_text(json.dumps(result))
    (best,) = best_layers(rows_of(tmp_path))
    assert (best.layer, best.seeds, best.of_host) == (0, 2, True)
    assert best.run.endswith("t0-s1") and best.validation == pytest.approx(0.905) and best.tests["id"] == pytest.approx(0.1)


def test_validation_score_is_not_made_up_for_by_one_split():
    splits = {name: {"exact_match": {"value": value}} for name, value in (("val/id", 0.9), ("val/new", 0.5))}
    assert validation_score({"validation": splits}) == pytest.approx(2 * 0.9 * 0.5 / 1.4)
    assert validation_score({"validation": {"val/id": splits["val/id"]}}) == 0.9 and validation_score({}) is None


def test_baselines_say_what_they_are_scored_on(grid):
    found = find_runs([grid]).finished
    levels = baseline_levels(found.values(), run_rows(found))[Series("pocket", "", 2)]
    assert levels["master_key"]["metric"] == "first_token" and levels["carrier"]["metric"] == "exact_match"
    assert levels["carrier"]["base_known"] and levels["carrier"]["ood"] == pytest.approx(0.5)


def test_differences_name_settings_with_an_effect():
    configs = [{"seed": 0, "wandb": {"mode": "offline"}, "optim": {"lr": lr, "epochs": 3}} for lr in (1, 2, 2)]
    configs[0]["wandb"] = {"mode": "online"}
    assert differences(configs) == {"optim.lr": {"1": 1, "2": 2}}


def test_several_edited_layers_are_a_series_without_a_place_on_the_axis(tmp_path):
    for name, edited in (("a", 10), ("b", 2), ("c", [0, 1])):
        file = write_run(tmp_path / name, 1, 1, 0) / "result.json"
        result = json.loads(file.read_text())
        result["config"]["edits"]["layer"] = result["edited_layer"] = edited
        file.write_text(json.dumps(result))
    rows = rows_of(tmp_path)
    assert {row["edited_layer"] for row in rows} == {10, 2, "0+1"}
    assert [series.edited_layer for series in layer_curves(rows)] == [2, 10]
    assert [best.series.edited_layer for best in best_layers(rows)] == ["0+1", 2, 10]
    assert "0+1" in write_comparison(find_runs([tmp_path]), tmp_path).read_text()
