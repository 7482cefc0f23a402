"""A program that is killed loses nothing it had finished."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from data.store import EditStore

ROOT = Path(__file__).parents[2]
MINIATURE = ["experiment=smoke", "edits.shard_size=16"]


@pytest.mark.slow
def test_killed_production_goes_on_at_its_next_shard(cache, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    line = [sys.executable, "-m", "data.produce", *MINIATURE, f"cache_dir={cache}"]
    subprocess.run([*line, f"store={whole}"], check=True, capture_output=True, timeout=300)

    process = subprocess.Popen([*line, f"store={killed}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    first = killed.with_name("killed.partial") / "shard-00000"
    deadline = time.monotonic() + 200
    while not first.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert first.exists() and not killed.exists()

    subprocess.run([*line, f"store={killed}"], check=True, capture_output=True, timeout=300)
    resumed, reference = EditStore(killed), EditStore(whole)
    assert resumed.table()["edit_id"].tolist() == reference.table()["edit_id"].tolist()
    assert torch.equal(resumed.value_ND, reference.value_ND) and torch.equal(resumed.key_NF, reference.key_NF)


@pytest.mark.slow
def test_killed_fit_resumes_to_the_same_numbers(cache, command, tmp_path):
    miniature = ["experiment=smoke", "optim.epochs=12", "wandb.mode=disabled"]
    whole, killed = (tmp_path / name / "smoke" / "pocket" / "rome-e1-t1-s0" for name in ("whole", "killed"))
    assert command("train.py", *miniature, f"runs={tmp_path / 'whole'}").returncode == 0

    line = [sys.executable, str(ROOT / "train.py"), *miniature, f"runs={tmp_path / 'killed'}", f"cache_dir={cache}"]
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while not (killed / "checkpoints" / "last.ckpt").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.5)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert (killed / "checkpoints" / "last.ckpt").exists() and not (killed / "predictions.parquet").exists()

    assert command("train.py", *miniature, f"runs={tmp_path / 'killed'}", "resume=true").returncode == 0
    pd.testing.assert_frame_equal(*(pd.read_parquet(folder / "predictions.parquet") for folder in (whole, killed)))
    results = [json.loads((folder / "result.json").read_text()) for folder in (whole, killed)]
    assert results[0]["test"] == results[1]["test"] and results[0]["fit"] == results[1]["fit"]
