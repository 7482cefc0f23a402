"""One miniature run of the main job for all integration tests, with the pocket host from the user's cache (built if missing)."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from data.hosts import pocket_folder
from decoder.config import TrainConfig
from decoder.utils.files import cache_root

ROOT = Path(__file__).parents[2]
# A user meets no warning; what Python itself shows nobody (a library's temporary folders) is none.
STRICT = {"PYTHONWARNINGS": "error,ignore::ResourceWarning"}


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    """A cache of its own that shares the hosts of the user's."""
    pocket_folder(TrainConfig())
    cache = tmp_path_factory.mktemp("cache")
    (cache / "hosts").symlink_to(cache_root(None) / "hosts")
    return cache


@pytest.fixture(scope="session")
def command(tmp_path_factory, cache) -> Callable[..., subprocess.CompletedProcess]:
    """Runs a program of the project as a user would, away from the clone, with nothing sent anywhere and every warning an error."""
    home = tmp_path_factory.mktemp("home")
    private = {name: str(home / name) for name in ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR")}
    wandb = {"WANDB_MODE": "offline", "WANDB_API_KEY": "nobody"}
    environment = os.environ | private | STRICT | wandb | {"HF_HUB_OFFLINE": "1", "COLUMNS": "140"}

    def run(program: str, *arguments: str, timeout: int = 300) -> subprocess.CompletedProcess:
        script = ["-m", program] if "." in program and not program.endswith(".py") else [str(ROOT / program)]
        line = [sys.executable, *script, *arguments, f"cache_dir={cache}"]
        return subprocess.run(line, cwd=home, env=environment, capture_output=True, text=True, timeout=timeout)

    return run


@pytest.fixture(scope="session")
def smoke(command, tmp_path_factory) -> tuple[Path, str]:
    """Run folder and terminal output of `train.py experiment=smoke`."""
    runs = tmp_path_factory.mktemp("runs")
    done = command("train.py", "experiment=smoke", f"runs={runs}")
    assert done.returncode == 0 and not done.stderr, done.stderr
    return runs / "smoke" / "pocket" / "rome-e1-t1-s0", done.stdout
