"""A program that is told to end says one line, exits as a shell expects, blames no run for it, and takes its workers with it."""

import os
import pkgutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from forked import ended

from decoder.utils.errors import DEBUG

ROOT = Path(__file__).parents[2]
SIGNALS = [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
STAGES = {
    "fit": ("decoder.training.module.DecoderModule", "on_validation_start"),
    "test": ("decoder.training.module.DecoderModule", "on_test_start"),
    "calibration": ("launcher.summary", "calibration"),
}
# A run that sleeps, in workers that import nothing heavy for it.
WORKERS = """
import os, sys, time, types
import train, launcher.workers

def go_on(run, workspace):
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / "pid").write_text(str(os.getpid()))
    time.sleep(300)

sys.modules["data.workspace"] = types.SimpleNamespace(own_workspace=lambda: None)
train.run, train.__file__, launcher.workers._prepare = go_on, __file__, lambda *_: None
launcher.workers.attempt = lambda run, run_one, workspace: run_one(run, workspace)
train.main()
"""
# A program that is sent Ctrl-C while it imports what it needs.
IMPORTS = """
import os, runpy, signal, sys

class Interrupting:
    def find_spec(name, *_):
        if name == "omegaconf":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupting)
runpy.run_path(sys.argv[1], run_name="__main__")
"""


def signalled(stage: str, number: int, argv: list[str]) -> None:
    """A grid that sends itself a signal at a stage of its first run."""
    import train

    place, name = STAGES[stage]
    setattr(pkgutil.resolve_name(place), name, lambda *_: os.kill(os.getpid(), number))
    train.main(argv)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("number", "code", "word"), SIGNALS, ids=["SIGINT", "SIGTERM"])
def test_a_run_ends_the_same_wherever_it_is(cache, tmp_path, stage, number, code, word):
    runs = tmp_path / "runs"
    argv = ["-m", "seed=0,1", "experiment=smoke", f"runs={runs}", f"cache_dir={cache}", "wandb.mode=disabled", "optim.epochs=1"]
    done = ended(tmp_path, signalled, stage, number, argv)
    assert (done.returncode, done.stderr) == (code, f"{word}\n"), done.stdout + done.stderr
    assert "the same command goes on" in done.stdout and not list(runs.rglob("result.json"))


@pytest.mark.parametrize("program", ["train.py", "evaluate.py"])
def test_a_program_that_has_hardly_begun_ends_in_one_line(program):
    environment = {name: value for name, value in os.environ.items() if name != DEBUG} | {"PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-c", IMPORTS, str(ROOT / program)]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")
    shown = subprocess.run(line, env=environment | {DEBUG: "1"}, capture_output=True, text=True, timeout=60)
    assert shown.returncode == 130 and shown.stderr.startswith("Traceback") and shown.stderr.endswith("\ninterrupted\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_their_parent(tmp_path, number):
    (tmp_path / "program.py").write_text(WORKERS)
    line = [sys.executable, "program.py", "-m", "seed=0,1", f"runs={tmp_path / 'runs'}", "launcher.jobs=2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(line, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as parent:
        pids = eventually(
            lambda: len(found := [int(file.read_text() or 0) for file in tmp_path.rglob("pid")]) == 2 and all(found) and found
        )
        parent.send_signal(number)
        told, errors = parent.communicate(timeout=30)
    eventually(lambda: not any(map(alive, pids)))
    assert not list(tmp_path.rglob("result.json"))
    if number != signal.SIGKILL:
        ((code, word),) = [(code, word) for known, code, word in SIGNALS if known == number]
        assert (parent.returncode, errors) == (code, f"{word}\n") and "the same command goes on" in told


def eventually(condition, seconds: float = 60):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)
    return found


def alive(pid: int) -> bool:
    """A zombie has ended; nobody may be there to wait for it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
