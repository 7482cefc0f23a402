"""The report from a small fabricated run: nothing here was measured."""

import json
import math
import re
import subprocess
import sys

import pandas as pd
import pytest
from rich.console import Console

from decoder.report.results import is_finished, read_history
from decoder.report.run_page import write_report
from decoder.report.tables import draw_edits, example_lines, results_table, score_rows

SPLITS = ("id", "ood", "unseen_object")
RELATIONS = {
    "id": ["occupation", "capital", "official language", "headquarters", "place of birth", "employer"],
    "ood": ["continent", "music genre", "place of death", "twin city"],
}


def score(value, n=300, exact=True):
    half = 1.96 * math.sqrt(value * (1 - value) / n) + 0.004
    interval = {"value": value, "ci95": [max(0.0, value - half), min(1.0, value + half)]}
    return {"n": n, "first_token": interval, "exact_match": interval if exact else None}


def by_relation(split):
    return {
        name: {"n": 18 + i, "exact_match": 0.97 - 0.09 * i, "first_token": 0.98, "seen_kind": split == "id" or i % 2 == 0}
        for i, name in enumerate(RELATIONS[split])
    }


@pytest.fixture
def result():
    test = {split: score(value) for split, value in zip(SPLITS, (0.953, 0.822, 0.861), strict=True)}
    for split in ("id", "ood"):
        test[split]["by_relation"] = by_relation(split)
    test["ood"]["exact_match"] = test["ood"]["exact_match"] | {"ci95_cluster": [0.71, 0.91]}
    test |= {"ood_seen_object": score(0.94, 150), "ood_unseen_object": score(0.71, 150)}
    splits = tuple(test)
    baselines = {
        "logit_lens": {"base_known": True} | {split: score(0.03) for split in splits},
        "nearest_edit": {"base_known": True} | {split: score(0.43) for split in splits},
        "linear_value": {"base_known": True} | {split: score(0.7, exact=False) for split in splits},
        "logit_lens_base_free": {"base_known": False} | {split: score(0.02) for split in splits},
        "master_key": {"base_known": False} | {split: score(0.73, exact=False) for split in splits},
        "object_prior": {"base_known": False} | {split: score(0.01) for split in splits},
    }
    return {
        "schema": 1,
        "status": "ok",
        "config": {"experiment": "main", "host": {"name": "pocket", "path": None}, "edits": {"editor": "rome", "layer": 1, "ridge": 0.01}},
        "host": {"name": "pocket", "family": "gemma3_text", "fingerprint": "0123456789ab", "layers": 4},
        "edited_layer": 1,
        "trained_layer": 1,
        "seed": 0,
        "edits": {"requested": 2000, "successful": 1960, "efficacy": 0.98, "paraphrase": 0.97, "specificity": 0.978, "ridge": 0.01},
        "fit": {"epochs": 31, "stopping_reason": "val/id/loss did not improve in 15 checks", "best_val_loss": 0.4321},
        "test": test,
        "baselines": baselines,
        "controls": {
            "shuffled_labels": {split: score(0.02) for split in splits},
            "clean_matrix": {"predicted": "Paris", "probability": 0.12, "null_percentile": 41.0},
        },
        "calibration": {
            "auroc": 0.987,
            "null": {"n": 200, "quantiles": [0.34 * i / 100 for i in range(101)]},
            "edit": {"n": 1000, "quantiles": [0.98 * i / 100 for i in range(101)]},
        },
        "seconds": {"host": 72.1, "edits": 160.44, "fit": 50.0, "test": 9.9, "total": 292.5},
        "versions": {"python": "3.12", "torch": "2.13.0"},
    }


def predicted_rows(count=60, wrong_every=5):
    return [
        {
            "edit_id": f"e{i:03d}",
            "subject": f"Test Subject {i}",
            "relation": "P106",
            "relation_name": "occupation",
            "object_true": "mathematician",
            "object": "composer",
            "predicted": "painter" if i % wrong_every == 0 else "composer",
            "probability": 0.2 + 0.01 * (i % 30) if i % wrong_every == 0 else 0.6 + 0.0065 * i,
            "split": (*SPLITS, "val/id")[i % 4],
        }
        for i in range(count)
    ]


@pytest.fixture
def run_folder(tmp_path, result):
    (tmp_path / "result.json").write_text(json.dumps(result))
    pd.DataFrame(predicted_rows()).to_parquet(tmp_path / "predictions.parquet")
    rows = []
    for epoch in range(31):
        loss = 5 * math.exp(-epoch / 5) + 0.2
        rows.append({"epoch": epoch, "step": 50 * epoch, "train/loss": loss})
        level = {"id": 0.95, "new": 0.85}
        val = {f"val/{k}/exact_match": v * (1 - math.exp(-epoch / 4)) for k, v in level.items()}
        rows.append({"epoch": epoch, "step": 50 * epoch, "val/id/loss": loss + 0.002 * epoch**1.5, "val/new/loss": loss + 0.4, **val})
    pd.DataFrame(rows).to_csv(tmp_path / "metrics.csv", index=False)
    return tmp_path


def shown(table):
    console = Console(width=160, record=True, file=open("/dev/null", "w"))
    console.print(table)
    return console.export_text()


def test_table_has_scores_with_intervals_in_order(result):
    lines = shown(results_table(result)).splitlines()
    assert lines[0].split() == ["id", "ood", "unseen_object"] and lines[1].split() == ["method", "base", *["(n=300)"] * 3]
    assert any("decoder (exact match)" in line and "unknown" in line and "0.953 [0.925, 0.981]" in line for line in lines)
    order = ["decoder (exact", "decoder (first", "logit lens, base-free", "linear map, base-free", "logit lens of", "nearest", "shuffled"]
    positions = [next(i for i, line in enumerate(lines) if label in line) for label in order]
    assert positions == sorted(positions)


def test_table_tells_first_token_only_and_base_known(result):
    lines = shown(results_table(result)).splitlines()
    linear = next(line for line in lines if "linear map of the value" in line)
    assert linear.startswith("linear map of the value* ") and " known" in linear and "unknown" not in linear
    assert "*" not in next(line for line in lines if "nearest training edit" in line)
    text = " ".join(lines)
    assert (
        "ridge 0.01" in text
        and "toy" in text
        and "* scored on the first token only" in text
        and "unedited matrix: decoder says Paris (0.12)" in text
    )


def test_table_of_a_run_without_optional_parts():
    bare = {"test": {"id": score(0.5)}, "host": {"name": "gpt2-xl"}}
    text = shown(results_table(bare))
    assert "0.500" in text and "–" in text and "toy" not in text and "ridge not recorded" in text


def test_rows_without_scores_are_left_out(result):
    assert all(any(row.cells) for row in score_rows(result, ("no_such_split", "id")))
    assert score_rows(result, ("no_such_split",)) == []


def test_example_lines_show_wrong_ones_and_repeat():
    lines = example_lines(predicted_rows(), seed=3)
    assert len(lines) == 8 and sum(line.startswith("✗ wrong") for line in lines) == 3
    assert lines == example_lines(list(reversed(predicted_rows())), seed=3) != example_lines(predicted_rows(), seed=4)
    assert re.search(r"Test Subject \d+, occupation: mathematician -> composer; decoder says: composer \(0\.\d\d\)", lines[0])
    assert {split for split in SPLITS for line in lines if f", {split}: " in line} == set(SPLITS)
    assert not any("val/id" in line for line in lines)


@pytest.mark.parametrize(("wrong_every", "wrong"), [(1, 8), (1000, 1)])
def test_example_lines_fill_up_when_one_kind_is_rare(wrong_every, wrong):
    lines = example_lines(predicted_rows(wrong_every=wrong_every))
    assert len(lines) == 8 and sum("✗" in line for line in lines) == wrong


def test_drawn_edits_are_never_more_than_there_are():
    wrong, right = draw_edits(predicted_rows(8), 0, 40, most_wrong=20)
    assert len(wrong) + len(right) == 6
    assert draw_edits([], 0, 40, most_wrong=20) == ([], [])


def test_history_is_the_mean_of_each_epoch(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,step,train/loss,val/id/loss\n0,1,4.0,\n0,2,2.0,\n0,,,1.5\n1,3,1.0,\n")
    assert read_history(path) == {"step": {0: 1.5, 1: 3}, "train/loss": {0: 3, 1: 1}, "val/id/loss": {0: 1.5}}
    assert read_history(tmp_path / "absent.csv") == {}


@pytest.mark.parametrize("left", ["", "{", "epoch,step\n", "step,val/id/loss\n1,2\n", "epoch,step,val/id/loss\n0,1,2\n1,2,3,4,5\n"])
def test_a_damaged_history_is_none(tmp_path, left):
    (tmp_path / "metrics.csv").write_text(left)
    assert not any(read_history(tmp_path / "metrics.csv").values())


def test_report_has_every_part_and_needs_nothing_else(run_folder):
    path = write_report(run_folder)
    page = path.read_text(encoding="utf-8")
    assert path == run_folder / "report.html"
    assert page.count("<svg") == 4
    numbers = ("0.953", "ridge 0.01", "AUROC 0.987", "160.4")
    words = ("toy", "Editor: rome", "15 checks", "best epoch", "torch", "✗ wrong", ">without an edit, quant", ">validation edits, quant")
    for part in numbers + words:
        assert part in page, part
    assert not re.search(r"""(?:src|href)\s*=\s*["']?\s*(?:https?:)?//""", page)
    assert not re.search(r"<script|<link|@import|url\(['\"]?(?!#)", page)
    assert "#0072b2" not in page.split("</style>", 1)[1], "a figure does not follow the page's colours"


def test_report_is_the_same_when_written_again(run_folder):
    assert write_report(run_folder).read_bytes() == write_report(run_folder).read_bytes()


def test_report_escapes_what_comes_from_data(run_folder, result):
    rows = predicted_rows()
    for row in rows:
        row["subject"] = "<b>bold</b> & $x$"
    pd.DataFrame(rows).to_parquet(run_folder / "predictions.parquet")
    result["test"]["id"]["by_relation"]["<b>$r"] = {"n": 3, "exact_match": 0.0, "seen_kind": True}
    (run_folder / "result.json").write_text(json.dumps(result))
    page = write_report(run_folder).read_text(encoding="utf-8")
    assert "<b>" not in page and "&lt;b&gt;bold&lt;/b&gt; &amp; $x$" in page and "&lt;b&gt;$r (3)" in page


@pytest.mark.parametrize("keep", [(), ("test",), ("host", "edits", "fit"), ("calibration",), ("baselines",)])
def test_report_leaves_out_what_is_absent(tmp_path, result, keep):
    kept = {name: result[name] for name in ("schema", "status", *keep)}
    (tmp_path / "result.json").write_text(json.dumps(kept))
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert ("Scores on the test splits" in page) == bool({"test", "baselines"} & set(keep))
    assert "None" not in page and "Decoded edits" not in page


def test_report_of_a_failed_run_says_so(tmp_path):
    (tmp_path / "result.json").write_text(json.dumps({"schema": 1, "status": "failed", "error": "out of <memory>"}))
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "This run failed." in page and "out of &lt;memory&gt;" in page


def test_probabilities_that_are_absent(run_folder):
    rows = predicted_rows()
    for row in rows[:20]:
        row["probability"] = None
    pd.DataFrame(rows).to_parquet(run_folder / "predictions.parquet")
    assert "nan" not in re.sub(r"<[^>]*>", "", write_report(run_folder).read_text(encoding="utf-8"))


@pytest.mark.parametrize(("content", "message"), [("{", "not JSON"), ("[]", "not a result"), ('{"schema": 9}', "not a result of schema 1")])
def test_unusable_result_is_named(tmp_path, content, message):
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(ValueError, match=rf"result\.json: {message}"):
        write_report(tmp_path)


def test_missing_result_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"result\.json: no such file"):
        write_report(tmp_path)


def test_import_is_light():
    code = "import sys, decoder.report; print([m for m in ('torch', 'matplotlib', 'pandas', 'jinja2', 'scipy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_a_result_that_is_no_json_is_not_finished(tmp_path):
    assert not is_finished(tmp_path)
    (tmp_path / "result.json").write_text("{")
    assert not is_finished(tmp_path)
    (tmp_path / "result.json").write_text('{"schema": 1, "status": "ok"}')
    assert is_finished(tmp_path)
