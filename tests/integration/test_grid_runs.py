"""Grids of miniature runs, as a user starts them."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SUICIDAL = """
import os, sys
for line in sys.stdin:
    "seed=1" in line and os._exit(9)
    print('{"status": "ok"}', flush=True)
"""
SHOWN = ("experiment=smoke", "trainer.precision=32-true,31-odd", "seed=0,1")
BROKEN = [f"rome-e1-t1-s{seed}-trainer.precision=31-odd" for seed in (0, 1)]


def results(runs: Path) -> dict[str, dict]:
    return {file.parent.name: json.loads(file.read_text()) for file in sorted(runs.rglob("result.json"))}


@pytest.fixture(scope="module")
def grid(command, tmp_path_factory):
    """A grid whose second half asks for what only Lightning can refuse."""
    runs = tmp_path_factory.mktemp("grid")
    return runs, command("train.py", "-m", *SHOWN, f"runs={runs}")


def test_a_failed_run_does_not_stop_the_others_and_is_listed(grid):
    runs, done = grid
    assert done.returncode == 1
    found = results(runs)
    assert {name: result["status"] for name, result in found.items()} == {
        "rome-e1-t1-s0": "ok",
        "rome-e1-t1-s1": "ok",
        **dict.fromkeys(BROKEN, "failed"),
    }
    assert "2 of 4 runs failed" in done.stdout and "31-odd" in found[BROKEN[0]]["error"]
    assert "Traceback" not in done.stdout + done.stderr and "decoder says" not in done.stdout
    assert "decoder says" in (runs / "smoke/pocket/rome-e1-t1-s0/log.txt").read_text()


def test_a_run_of_a_grid_is_the_run_alone(grid, smoke):
    alone = json.loads((smoke[0] / "result.json").read_text())
    first = results(grid[0])["rome-e1-t1-s0"]
    for part in ("test", "validation", "baselines", "calibration", "fit", "edits"):
        assert first[part] == alone[part], part


def test_the_second_run_on_the_same_edits_has_nothing_to_open(grid):
    first, second = (results(grid[0])[f"rome-e1-t1-s{seed}"]["seconds"] for seed in (0, 1))
    # The host was opened before the first run, to say how many layers it has; opening it takes several times as long.
    assert max(first["host"], second["host"]) < 0.1 and second["edits"] < first["edits"] / 10


def test_finished_runs_are_skipped_and_failed_ones_tried_again(grid, command):
    runs, _ = grid
    written = {file: file.stat().st_mtime_ns for file in runs.rglob("result.json")}
    done = command("train.py", "-m", "experiment=smoke", "seed=0,1", f"runs={runs}", "wandb.mode=disabled")
    assert done.returncode == 0 and "Nothing to run" in done.stdout
    again = command("train.py", "-m", *SHOWN, f"runs={runs}")
    assert again.returncode == 1 and "2 to run" in again.stdout
    changed = {file.parent.name for file, before in written.items() if file.stat().st_mtime_ns != before}
    assert changed == set(BROKEN)


def test_grid_writes_a_comparison_and_a_wandb_report(grid):
    folder = grid[0] / "smoke"
    assert "<svg" in (folder / "compare.html").read_text() and len((folder / "compare.csv").read_text().splitlines()) == 3
    run_file = sorted((folder / "wandb").glob("offline-run-*/*.wandb"))[0]
    wandb = Path(sys.executable).parent / "wandb"
    records = subprocess.run([wandb, "leet", "inspect", "--json", run_file], capture_output=True, text=True, check=True).stdout
    assert '"job_type":"report"' in records.replace(": ", ":") and "layers/pocket/edited-1" in records and "runs" in records


def test_every_run_of_a_grid_is_a_wandb_run_of_its_own(grid):
    for name, seed in (("rome-e1-t1-s0", 0), ("rome-e1-t1-s1", 1)):
        (run_file,) = (grid[0] / "smoke" / "pocket" / name / "wandb").glob("offline-run-*/*.wandb")
        wandb = Path(sys.executable).parent / "wandb"
        line = [wandb, "leet", "inspect", "--summary", "--json", run_file]
        found = json.loads(subprocess.run(line, capture_output=True, text=True, check=True).stdout)
        assert found["config"]["seed"] == seed and found["config"]["decoder"]["layer"] == 1
        assert found["config"]["layer_frac"] == pytest.approx(1 / 3) and found["config"]["edited_layer_frac"] == pytest.approx(1 / 3)
        assert 0 <= found["summary"]["best/validation"] <= 1 and found["summary"]["test/id/n"] > 0


def test_progress_is_for_the_terminal_and_not_for_the_log(cache, tmp_path):
    """The run that breaks after a second is long enough for the bar to move while it goes on."""
    leader, follower = pty.openpty()
    argv = ["-m", "experiment=smoke", "decoder.layer=2,3", f"runs={tmp_path}", f"cache_dir={cache}", "wandb.mode=disabled"]
    line = [sys.executable, "-c", f"import time, train; train.train = lambda *_: time.sleep(1) or 1 / 0; train.main({argv})"]
    env = os.environ | {"TERM": "xterm", "COLUMNS": "140", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(line, cwd=tmp_path, env=env, stdout=follower) as process:
        os.close(follower)
        shown = b""
        while chunk := _read(leader):
            shown += chunk
    os.close(leader)
    assert process.returncode == 1 and shown.count(b"1/2") >= 6 and b"2 of 2 runs failed" in shown
    log = (tmp_path / "smoke/pocket/rome-e1-t2-s0/log.txt").read_text()
    assert "Palimpsest: read rome edits" in log and "\x1b" not in log and "0/2" not in log


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 4096)
    except OSError:  # Linux reports the other end's close as an error
        return b""


def test_two_processes_give_the_same_numbers(grid, command, tmp_path):
    done = command("train.py", "-m", "experiment=smoke", "seed=0,1", "launcher.jobs=2", f"runs={tmp_path}", "wandb.mode=disabled")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("rome edits of layer 1: ") == 1
    together, apart = results(grid[0]), results(tmp_path)
    assert set(apart) == {"rome-e1-t1-s0", "rome-e1-t1-s1"}
    for name, result in apart.items():
        assert result["fit"]["best_val_loss"] == pytest.approx(together[name]["fit"]["best_val_loss"], abs=1e-6)
        assert result["test"] == together[name]["test"]


def test_a_worker_that_dies_takes_only_its_own_run(cache, tmp_path):
    """The worker is a program that kills itself over one of its runs."""
    from launcher.grid import read_grid
    from launcher.workers import Worker

    script = tmp_path / "worker.py"
    script.write_text(SUICIDAL)
    runs = read_grid(["-m", "seed=0,1,2", f"runs={tmp_path}"]).runs
    worker = Worker(script, dict(os.environ))
    answers = [worker.ask("run", run) for run in runs]
    worker.stop()
    assert [answer["status"] for answer in answers] == ["ok", "failed", "ok"]
    assert "code 9" in answers[1]["error"]
    assert json.loads((runs[1].folder / "result.json").read_text())["status"] == "failed"


def test_a_worker_that_cannot_start_is_a_failure_of_its_runs(tmp_path, monkeypatch):
    from launcher import workers
    from launcher.grid import read_grid

    monkeypatch.setattr(workers, "_prepare", lambda *_: None)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    runs = read_grid(["-m", "seed=0,1", f"runs={tmp_path}"]).runs
    outcomes = list(workers.in_processes(runs, tmp_path / "train.py", 2, None))
    assert [result["status"] for _, result in outcomes] == ["failed", "failed"] and "no-python" in outcomes[0][1]["error"]
