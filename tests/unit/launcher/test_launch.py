"""Running a grid: what a SLURM script says, what is said as runs end, how workers share the machine."""

import contextlib
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from fabricated_runs import finished_run
from places import ROOT

from decoder.utils.cores import worker_environment
from launcher.grid import read_grid
from launcher.launch import launch
from launcher.slurm import sbatch_script


def test_slurm_script_has_one_line_per_run_and_starts_nothing(capsys, tmp_path):
    argv = ["-m", "decoder.layer=0,1", "edits.layer=0,1", f"runs={tmp_path / 'a b'}", "launcher=slurm", "launcher.partition=gpu"]
    script = sbatch_script(read_grid([*argv, "launcher.gpus=1"]))
    lines = script.splitlines()
    assert (
        lines[0] == "#!/bin/bash"
        and "#SBATCH --array=0-3" in lines
        and "#SBATCH --partition=gpu" in lines
        and "#SBATCH --gpus-per-task=1" in lines
    )
    runs = [line for line in lines if "python train.py -m" in line]
    assert runs[3] == f"  3) python train.py -m 'runs={tmp_path / 'a b'}' decoder.layer=1 edits.layer=1 ;;"
    assert "gpus" not in sbatch_script(read_grid(argv))
    assert len([line for line in lines if line.startswith("#   python -m data.produce")]) == 2
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
    echoed = script.replace("python train.py -m", "printf '%s\\n'")
    shown = subprocess.run(["bash"], input=echoed, text=True, capture_output=True, env=os.environ | {"SLURM_ARRAY_TASK_ID": "2"})
    assert shown.stdout.splitlines() == [f"runs={tmp_path / 'a b'}", "decoder.layer=0", "edits.layer=1"]


def test_slurm_leaves_out_what_is_finished(tmp_path):
    finished_run(tmp_path, "seed=0")
    script = sbatch_script(read_grid(["-m", "seed=0,1", f"runs={tmp_path}", "launcher=slurm"]))
    assert "--array=0-0" in script and "seed=1" in script and "seed=0" not in script


def test_free_text_with_a_comma_is_one_value_on_slurm():
    text = 'first, "second"'
    script = sbatch_script(read_grid([f"wandb.name={text}", "decoder.layer=[0,1]", "launcher=slurm"]))
    (line,) = [line for line in script.splitlines() if line.startswith("  0)")]
    argv = shlex.split(line.removeprefix("  0) python train.py").removesuffix(";;"))
    (run,) = read_grid(argv).runs
    assert (run.config.wandb.name, run.config.decoder.layer) == (text, [0, 1])


def test_slurm_of_a_finished_grid_says_so(tmp_path, capsys):
    for seed in (0, 1):
        finished_run(tmp_path, f"seed={seed}")
    launch(read_grid(["-m", "seed=0,1", f"runs={tmp_path}", "launcher=slurm"]), lambda *_: 1 / 0, ROOT)
    assert capsys.readouterr().out == f"Nothing to run. Compare them:  python -m decoder.report {tmp_path / 'main'}\n"


def test_a_task_on_slurm_skips_its_run_if_it_is_finished_and_runs_where_the_script_was_printed(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    script = sbatch_script(read_grid(["-m", "optim.lr_layer=1e-3,2e-3", "runs=runs", "launcher=slurm"]))
    finished_run(Path("runs"), "optim.lr_layer=2e-3", "variant=lr_layer=0.002")
    line = script.replace("python train.py", f"{sys.executable} {ROOT / 'train.py'}")
    env = os.environ | {"SLURM_ARRAY_TASK_ID": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash"], input=line, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "Nothing to run" in done.stdout, done.stdout + done.stderr


def ran(monkeypatch, tmp_path, broken=(), page=lambda *_: "page", log=lambda *_: None):
    """A grid of three seeds whose runs end as told, with a comparison that does as told."""
    from decoder.report import compare_page as compare
    from decoder.report import results as runs
    from decoder.training import tracking
    from launcher import launch

    def outcomes(left, run_one, out):
        for run in left:
            result = {"status": "ok", "seconds": {"fit": 9.0, "test": 1.0, "total": 10.0}, "test": {}}
            yield run, {"status": "failed", "error": "it broke"} if run.config.seed in broken else result

    monkeypatch.setattr(launch, "in_process", outcomes)
    monkeypatch.setattr(compare, "write_comparison", page)
    monkeypatch.setattr(tracking, "log_comparison", log)
    monkeypatch.setattr(runs, "find_runs", lambda folders: runs.Found())
    launch.launch(read_grid(["-m", "seed=0,1,2", f"runs={tmp_path}"]), None, ROOT)


def test_what_failed_is_said_although_the_comparison_breaks(monkeypatch, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        ran(monkeypatch, tmp_path, broken=[1], page=lambda *_: {}["x"])
    shown = capsys.readouterr().out
    assert stop.value.code == 1 and shown.index("1 of 3 runs failed") < shown.index("The comparison broke (KeyError: 'x')")


def test_a_wandb_that_breaks_does_not_lose_the_page(monkeypatch, tmp_path, capsys):
    ran(monkeypatch, tmp_path, log=lambda *_: 1 / 0)
    shown = capsys.readouterr().out
    assert shown.index("Comparison: page") < shown.index("The comparison broke (ZeroDivisionError")


@pytest.mark.parametrize(("broken", "reports"), [([0, 1, 2], 0), ([0, 1], 1), ([], 1)])
def test_a_report_is_logged_if_a_run_went_through(monkeypatch, tmp_path, broken, reports):
    logged = []
    with contextlib.suppress(SystemExit):
        ran(monkeypatch, tmp_path, broken, log=lambda *_: logged.append(1))
    assert len(logged) == reports


def test_the_estimate_is_corrected_by_runs_that_go_through(monkeypatch, tmp_path, capsys):
    with pytest.raises(SystemExit):
        ran(monkeypatch, tmp_path, broken=[0])
    first, second, third = (line for line in capsys.readouterr().out.splitlines() if line.startswith("["))
    assert "left" not in first and second.endswith("(about 10 s left)") and "left" not in third


def test_a_grid_that_is_interrupted_writes_the_page_of_what_is_there(monkeypatch, tmp_path, capsys):
    argv = ["-m", "seed=0,1", f"runs={tmp_path}"]
    finished_run(tmp_path, "seed=0")

    def interrupted(*_):
        yield from ()
        raise KeyboardInterrupt

    monkeypatch.setattr("launcher.launch.in_process", interrupted)
    monkeypatch.setattr("decoder.report.results.find_runs", lambda folders: folders)
    monkeypatch.setattr("decoder.report.compare_page.write_comparison", lambda found, folder: f"page of {found[0]}")
    monkeypatch.setattr("decoder.report.layer_curves.run_rows", lambda finished: [])
    with pytest.raises(KeyboardInterrupt):
        launch(read_grid(argv), None, ROOT)
    shown = capsys.readouterr().out
    assert shown.index("the same command goes on") < shown.index("Comparison: page of ")


@pytest.mark.parametrize(
    ("cores", "jobs", "own", "threads"), [(2, 2, "", "1"), (16, 2, "", "8"), (16, 3, "", "5"), (2, 4, "", "1"), (16, 2, "3", "3")]
)
def test_workers_share_the_cores(cores, jobs, own, threads):
    found = worker_environment(0, jobs, {"OMP_NUM_THREADS": own, "HOME": "h"}, cores)
    assert found["OMP_NUM_THREADS"] == threads and found["HOME"] == "h" and "CUDA_VISIBLE_DEVICES" not in found


def test_workers_take_turns_on_gpus():
    assert [worker_environment(i, 3, {"CUDA_VISIBLE_DEVICES": "2,5"}, 8)["CUDA_VISIBLE_DEVICES"] for i in range(3)] == ["2", "5", "2"]
