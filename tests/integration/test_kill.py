"""A program that is killed loses nothing it had finished."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from data.store import EditStore

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
