"""One run on two processes (gloo, CPU) gives what one process gives, and evaluates every edit once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]
# What a process draws to vary its edits is its own: without it, training gives the same numbers on any number of devices.
ALONE = (
    "experiment=smoke",
    "optim.epochs=3",
    "optim.recombined=0",
    "optim.value_noise=0",
    "wandb.mode=disabled",
    "trainer.accelerator=cpu",
)
TWO = (*ALONE, "trainer.devices=2")


def run_folder(runs: Path) -> Path:
    return runs / "smoke" / "pocket" / "rome-e1-t1-s0"


def read(folder: Path) -> tuple[dict, pd.DataFrame]:
    return json.loads((folder / "result.json").read_text()), pd.read_parquet(folder / "predictions.parquet")


@pytest.fixture(scope="module")
def alone(command, tmp_path_factory) -> Path:
    runs = tmp_path_factory.mktemp("alone")
    done = command("train.py", *ALONE, f"runs={runs}")
    assert done.returncode == 0, done.stderr
    return run_folder(runs)


def assert_same(found: Path, reference: Path) -> None:
    (result, predictions), (wanted, readings) = read(found), read(reference)
    assert predictions["edit_id"].tolist() == readings["edit_id"].tolist() and predictions["edit_id"].is_unique
    assert predictions["predicted"].tolist() == readings["predicted"].tolist()
    # Batches differ, and with them the order of float32 sums.
    np.testing.assert_allclose(predictions["probability"], readings["probability"], atol=1e-4)
    for split, scores in wanted["test"].items():
        for metric in ("first_token", "exact_match"):
            assert abs(result["test"][split][metric]["value"] - scores[metric]["value"]) < 1e-4
    assert abs(result["fit"]["best_val_loss"] - wanted["fit"]["best_val_loss"]) < 1e-4
    assert result["fit"]["epochs"] == wanted["fit"]["epochs"] and result["baselines"].keys() == wanted["baselines"].keys()
    curves, expected = (pd.read_csv(folder / "metrics.csv") for folder in (found, reference))
    np.testing.assert_allclose(curves["val/id/loss"], expected["val/id/loss"], atol=1e-4)
    np.testing.assert_allclose(curves["train/loss"], expected["train/loss"], atol=1e-2)


@pytest.mark.slow
def test_two_processes_that_lightning_starts(command, alone, tmp_path):
    done = command("train.py", *TWO, "trainer.strategy=ddp", f"runs={tmp_path}", timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Run folder: ") == 2 and done.stdout.count("decoder says:") == 8, "one process speaks"
    assert_same(run_folder(tmp_path), alone)


@pytest.mark.slow
def test_two_processes_that_torchrun_starts_make_the_edits_once(cache, alone, tmp_path):
    # A store of its own: both processes find it missing.
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(ROOT / "train.py")]
    line += [*TWO, f"runs={tmp_path}", f"cache_dir={cache}", f"store={tmp_path / 'store'}"]
    done = subprocess.run(line, env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("decoder says:") == 8
    assert_same(run_folder(tmp_path), alone)


def test_a_grid_on_several_devices_is_refused_in_one_line(command):
    done = command("train.py", "-m", "seed=0,1", "experiment=smoke", "trainer.devices=2", "trainer.accelerator=cpu")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "trainer.devices=2" in done.stderr and "launcher.jobs" in done.stderr
