"""What is known of Ray before a cluster is there: resources, what workers take over, and errors in one line."""

import os
import subprocess
import sys

import pytest
from places import ROOT

from data.produce.ray_cluster import Surroundings, _room
from decoder.config import LauncherConfig, TrainConfig
from decoder.config.compose import compose
from decoder.utils.errors import UserError
from launcher.grid import read_grid


def program(*argv: str, before: str = "pass", **environment: str) -> subprocess.CompletedProcess:
    code = f"import os, sys; {before}; import train; train.main({list(argv)})"
    shown = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run([sys.executable, "-c", code], env=shown, capture_output=True, text=True, timeout=200)


def test_without_ray_one_line_says_what_to_install(tmp_path):
    done = program("-m", "seed=0,1", "launcher=ray", f"runs={tmp_path}", before="sys.modules['ray'] = None")
    assert done.returncode == 2 and done.stderr == 'error: launcher=ray: Ray is not installed; pip install "palimpsest-decoder[ray]"\n'
    assert not list(tmp_path.iterdir())


def test_a_run_of_more_cores_than_there_are_is_refused(tmp_path):
    done = program("-m", "seed=0,1", "launcher=ray", "launcher.cpus=5000", f"runs={tmp_path}", RAY_ADDRESS="")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "launcher.cpus=5000: this machine has" in done.stderr and "give fewer" in done.stderr


def test_cuda_without_a_gpu_of_ray_is_refused(tmp_path):
    done = program("-m", "seed=0,1", "launcher=ray", "trainer.accelerator=cuda", f"runs={tmp_path}")
    assert done.returncode == 2 and "add launcher.gpus=1" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("cpus", "gpus", "room"),
    [(1, 0, 18), (4, 0, 4), (1, 1, 3), (1, 0.5, 6), (1, 0.4, 6), (4, 0.5, 4), (1, 2, 1), (32, 0, 0), (1, 4, 0)],
)
def test_room_is_counted_machine_by_machine(cpus, gpus, room):
    nodes = [
        {"Alive": True, "Resources": {"CPU": 16.0, "GPU": 2.0}},
        {"Alive": True, "Resources": {"CPU": 2.0, "GPU": 1.0}},
        {"Alive": True, "Resources": {"memory": 1.0}},
        {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}},
    ]
    # The second machine's two cores are too few for four.
    assert _room(nodes, LauncherConfig(cpus=cpus, gpus=gpus)) == room


def test_workers_take_over_folders_and_threads_but_no_secrets(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/shared/cache")
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    monkeypatch.setenv("WANDB_API_KEY", "x")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    here = Surroundings.here(LauncherConfig(cpus=3), ROOT / "train.py")
    assert here.folder == os.getcwd() and here.program == str(ROOT)
    assert {"XDG_CACHE_HOME": "/shared/cache", "WANDB_MODE": "offline", "OMP_NUM_THREADS": "3"}.items() <= here.environment.items()
    assert not {"HF_TOKEN", "WANDB_API_KEY", "PATH"} & here.environment.keys()


def test_a_machine_without_the_users_folder_says_so(tmp_path):
    here = Surroundings(str(tmp_path / "nowhere"), str(ROOT), {"OMP_NUM_THREADS": "1"})
    with pytest.raises(FileNotFoundError, match="nowhere; the machines of a cluster need the same folders"):
        here.enter()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["launcher.gpus=1.5"], "launcher.gpus=1.5: expected a whole number, or a part of one"),
        (["launcher=slurm", "launcher.gpus=0.5"], "launcher.gpus=0.5: expected a whole number$"),
        (["launcher.jobs=0"], "launcher.jobs=0: expected a number from 1 up"),
        (["launcher.retries=-1"], "launcher.retries=-1"),
    ],
)
def test_impossible_resources_are_one_line(argv, message):
    with pytest.raises(UserError, match=message):
        compose(TrainConfig, "train", argv)


def test_a_single_run_goes_where_the_launcher_says():
    assert read_grid(["seed=1"]).is_one_run
    assert not read_grid(["seed=1", "launcher=ray"]).is_one_run and not read_grid(["seed=1", "launcher=slurm"]).is_one_run
