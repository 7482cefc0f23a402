"""W&B as it fails: its service dies, nobody is logged in, there is no home. A run goes on and says so.

Runs are offline; nothing is asked of a server.
"""

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import psutil
import pytest
from fabricated_runs import result
from places import ROOT

from decoder.config import TrainConfig, WandbConfig
from decoder.training import tracking
from decoder.training.tracking import FOLDERS, Tracker, describe_run, keep_inside, log_result

PREDICTIONS = pd.DataFrame({"edit_id": ["a"], "predicted": ["Paris"]})


@pytest.fixture(autouse=True)
def environment(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "_given", {})
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in (*FOLDERS, "WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def tracker(folder: Path, mode: str = "offline") -> tuple[Tracker, SimpleNamespace]:
    folder.mkdir()
    found = Tracker(TrainConfig(wandb=WandbConfig(mode=mode)), folder)
    return found, SimpleNamespace(loggers=[found])


def files_of(folder: Path) -> list[Path]:
    return list(folder.glob("wandb/offline-run-*/*.wandb"))


def kill_the_service() -> None:
    """W&B's own process, that all runs of this one speak to."""
    killed = [child for child in psutil.Process().children(recursive=True) if "wandb" in child.name()]
    for child in killed:
        child.kill()
    assert killed and not psutil.wait_procs(killed, timeout=10)[1]
    time.sleep(0.2)


def test_a_service_that_dies_ends_what_is_logged_and_not_the_run(tmp_path, capsys):
    first, trainer = tracker(tmp_path / "first")
    describe_run(trainer, TrainConfig(), 4)
    first.log_metrics({"val/id/loss": 1.0}, step=1)
    assert first.failure is None and files_of(tmp_path / "first")
    kill_the_service()
    for step in range(2, 5):
        first.log_metrics({"val/id/loss": 1.0}, step=step)
    said = log_result(trainer, result(1, 1, 0), PREDICTIONS, None)
    assert set(said) == {"wandb"} and said["wandb"] == first.failure and "\n" not in said["wandb"]
    assert capsys.readouterr().out.count("W&B failed, the run goes on without it") == 1
    second, trainer = tracker(tmp_path / "second")
    second.log_metrics({"val/id/loss": 1.0}, step=1)
    assert log_result(trainer, result(1, 1, 0), PREDICTIONS, None) == {} and files_of(tmp_path / "second")


def test_a_service_that_dies_before_the_scores_are_logged(tmp_path):
    found, trainer = tracker(tmp_path / "run")
    found.log_metrics({"val/id/loss": 1.0}, step=1)
    kill_the_service()
    assert "Connection" in log_result(trainer, result(1, 1, 0), PREDICTIONS, None)["wandb"]


def test_a_user_who_is_not_logged_in_gets_a_run_all_the_same(tmp_path, capsys):
    found, trainer = tracker(tmp_path / "run", mode="online")
    assert found.experiment, "Lightning asks for it when it sets up a trainer"
    describe_run(trainer, TrainConfig(variant="a"), 4)
    found.log_hyperparams({"seed": 0})
    found.log_metrics({"val/id/loss": 1.0}, step=1)
    assert "No API key configured" in log_result(trainer, result(1, 1, 0), PREDICTIONS, None)["wandb"]
    assert capsys.readouterr().out.count("W&B failed") == 1


def test_a_run_without_wandb_says_nothing_of_it():
    assert log_result(SimpleNamespace(loggers=[]), result(1, 1, 0), PREDICTIONS, None) == {}


def test_files_of_wandb_follow_the_run_but_for_what_a_user_named(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_CACHE_DIR", "mine")
    (tmp_path / "home" / ".config" / "wandb").mkdir(parents=True)
    for name in ("a", "b"):
        keep_inside(tmp_path / name)
        own = {name: str(tmp_path / name), "": "mine"}
        assert (os.environ["WANDB_DIR"], os.environ["WANDB_CACHE_DIR"]) == (own[name], own[""])
        assert os.environ["WANDB_DATA_DIR"] == str(tmp_path / name / "wandb" / "data")
    assert "WANDB_CONFIG_DIR" not in os.environ, "what `wandb login` wrote there"


def test_no_home_is_needed(tmp_path):
    """HOME is a file, so nobody can write under it, not even root."""
    (tmp_path / "home").write_text("")
    code = """
        import sys
        from pathlib import Path
        from types import SimpleNamespace
        import pandas as pd
        from decoder.config import TrainConfig
        from decoder.training.tracking import Tracker, log_result
        from fabricated_runs import result
        tracker = Tracker(TrainConfig(), Path("run"))
        tracker.log_metrics({"val/id/loss": 1.0}, step=1)
        print(log_result(SimpleNamespace(loggers=[tracker]), result(1, 1, 0), pd.DataFrame({"predicted": ["Paris"]}), None))
    """
    (tmp_path / "run").mkdir()
    (tmp_path / "tmp").mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "WANDB_"))}
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests" / "unit" / "helpers")))
    own = {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "tmp"), "PYTHONPATH": paths, "MPLCONFIGDIR": str(tmp_path / "tmp")}
    line = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(line, cwd=tmp_path, env=kept | own, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.strip() == "{}", done.stdout + done.stderr
    assert files_of(tmp_path / "run") and (tmp_path / "run" / "wandb" / "cache").is_dir()
    assert {path.name for path in tmp_path.iterdir()} == {"home", "run", "tmp"}


def test_who_has_no_home_has_one_in_the_run_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    keep_inside(tmp_path)
    assert os.environ["HOME"] == str(tmp_path.resolve() / "wandb")
