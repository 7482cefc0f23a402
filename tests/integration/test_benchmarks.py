"""Every benchmark runs in miniature and writes the JSON its readers expect, so that none rots."""

import importlib
import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

FOLDER = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = sorted(file.name for file in FOLDER.glob("*.py") if "class Settings(Common)" in file.read_text())
FIELDS = {"case", "unit", "ours", "reference", "ratio", "spread", "repeats", "floor", "distance", "note"}


def run(script: str, *arguments: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(FOLDER.parent), "HF_HUB_OFFLINE": "1"}
    return subprocess.run([sys.executable, str(FOLDER / script), *arguments], env=environment, capture_output=True, text=True, timeout=900)


@pytest.mark.parametrize("script", [pytest.param(name, marks=pytest.mark.slow) if name != "decode.py" else name for name in SCRIPTS])
def test_runs_in_miniature(tmp_path, script):
    out = tmp_path / "result.json"
    done = run(script, "miniature=true", "repeats=5", f"out={out}")
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert {"machine", "versions", "rows"} <= result.keys()
    assert {"threads", "cores", "memory_gib", "cpu", "gpu"} == result["machine"].keys() and result["versions"]["torch"] == torch.__version__
    assert result["rows"]
    for row in result["rows"]:
        assert row.keys() == FIELDS and (row["ours"] is not None or row["note"].startswith("not measured"))
        if row["ratio"] is not None:
            assert row["ratio"] > 0 and row["repeats"] >= 5 and row["spread"] >= 0
            assert math.isfinite(row["ours"] + row["reference"])
    assert str(FOLDER.parent) not in out.read_text(), "a result names no place of this machine"
    assert result["rows"][0]["case"][:20] in done.stdout, "the table is printed"
    lines = run("common.py", str(out)).stdout.splitlines()
    assert "torch" in lines[0] and len(lines) == 4 + len(result["rows"]) and len({line.count("|") for line in lines[2:]}) == 1


@pytest.mark.parametrize("script", SCRIPTS)
def test_unknown_setting_is_one_line(monkeypatch, capsys, script):
    monkeypatch.syspath_prepend(str(FOLDER))
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(Path(script).stem).main(["repeat=5"])
    told = capsys.readouterr().err
    assert stop.value.code == 2 and told.count("\n") == 1 and "did you mean 'repeats'" in told


def test_common(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    from common import Rates, compare, not_measured, quartile_distance

    row = compare("figure/x", [2.0, 1.0, 4.0], [8.0, 8.0, 8.0], amount=6, unit="edits/s", floor_seconds=0.5)
    assert (row.ours, row.reference, row.ratio, row.repeats, row.floor, row.distance) == (3.0, 0.75, 4.0, 3, 12.0, 4.0)
    assert row.spread == quartile_distance([4.0, 8.0, 2.0]) == 3.0
    assert compare("x", [1.0, 1.0]).ratio is None and not_measured("x", "1/s", "no GPU").note == "not measured: no GPU"
    assert Rates(operations=10.0, bytes=2.0).floor_seconds(20.0, 8.0) == 4.0


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_step_does_the_floor_s_operations_and_no_more(monkeypatch, layer):
    """Counted by the library while a step is taken: whatever is run twice, or for every edit instead of once, would show."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import decode

    case = decode.Case("miniature", layer=layer, batch=16, prompt=6)
    host = decode.random_host("miniature", "cpu")
    host.model.set_attn_implementation("eager")  # the counter knows nothing of fused attention on a CPU
    bench = decode.Bench(host, case)
    bench.step("grown")  # the self-check
    with FlopCounterMode(display=False) as counter:
        bench.step("grown")
    operations, _ = decode.necessary(bench)
    assert counter.get_total_flops() == pytest.approx(operations, rel=0.05)


def test_who_reads_whom_is_every_editor_alone_left_out_and_all_of_them(monkeypatch, capsys, tmp_path):
    monkeypatch.syspath_prepend(str(FOLDER))
    from editors import main, readers

    found = readers(["rome", "memit", "ft"], ["alone", "without", "all"], 2)
    assert [one.seed for one in found] == [0, 1] * 7 and found[0].editors == ("rome", "memit", "ft"), "what takes longest comes first"
    assert {one.editors for one in found[2:8]} == {("memit", "ft"), ("rome", "ft"), ("rome", "memit")}
    assert {one.editors for one in found[8:]} == {("rome",), ("memit",), ("ft",)}
    assert readers(["rome", "ft"], ["without"], 1) == [], "all but one of two is one alone"
    with pytest.raises(SystemExit) as stop:
        main([f"stores={tmp_path}"])
    assert stop.value.code == 2 and "a store for each of two editors or more" in capsys.readouterr().err


EDITORS = ["rome", "memit", "ft"]


@pytest.fixture
def gated(monkeypatch):
    """What gates make of lines, by the editors that they were fitted on and the editor that is read."""
    monkeypatch.syspath_prepend(str(FOLDER))
    gated = importlib.import_module("gates").gated
    return lambda lines: {("+".join(line["train"]), line["read"]): line["exact_match"]["value"] for line in gated(lines)}


def lines_of_three():
    """Each decoder reads its own editor's edits and is moved by them; of others it is as sure, and wrong. That of memit reads rome's."""
    right = {("rome", "rome"), ("memit", "memit"), ("memit", "rome"), ("ft", "ft")}
    about = {"host": "pocket", "layer": 1, "editors": EDITORS, "train_edits": 50, "steps": 700, "seed": 0}
    for decoder, read in itertools.product(EDITORS, EDITORS):
        for split, count in (("val/id", 20), ("val/new", 10), ("ood", 10)):
            own = (decoder, read) in right
            sure = [0.3 + 0.06 * ((n + len(decoder)) % 10) for n in range(count)]
            answers = {f"{split} {n}": [sure[n], int(own), 4.0 + n % 3 if own else 2.0 - n % 3 / 2] for n in range(count)}
            yield about | {"train": [decoder], "read": read, "split": split, "n": count, "answers": answers}


def test_gates_choose_among_decoders_of_one_editor_each(gated):
    found = gated([*lines_of_three()])
    assert {train for train, _ in found} == {"rome+memit+ft", "memit+ft", "rome+ft", "rome+memit"}
    assert all(found["rome+memit+ft", read] == found["memit+ft", read] == 1.0 for read in EDITORS), "memit's decoder reads rome's edits"
    assert [found["rome+memit", read] for read in EDITORS] == [1.0, 1.0, 0.0]


def test_no_gate_is_fitted_where_lines_do_not_say_enough(gated):
    lines = [*lines_of_three()]
    before = [line | {"answers": {edit: told[:2] for edit, told in line["answers"].items()}} for line in lines]
    unread = [line | {"answers": {edit: [told[0], 0, told[2]] for edit, told in line["answers"].items()}} for line in lines]
    others = [line | ({"answers": {"c": [0.2, 0, 1.0]}} if line["train"] == ["rome"] else {}) for line in lines]
    assert not gated(before) and not gated(unread) and not gated([line for line in lines if line["split"] == "ood"])
    assert {train for train, _ in gated(others)} == {"memit+ft"}
    assert {train for train, _ in gated([line for line in lines if line["train"] != ["ft"]])} == {"rome+memit"}
