"""Ray as launcher, on a cluster of two workers that the tests start; workers are killed in the middle of their work."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch

from data.store.store import EditStore

ROOT = Path(__file__).parents[2]
EDITS = ["experiment=smoke", "edits.shard_size=16"]
RUNS = [*EDITS, "-m", "seed=0,1,2", "optim.epochs=6", "wandb.mode=disabled"]
PATIENCE = 600
STARTED: list[subprocess.Popen] = []


@pytest.fixture(scope="module")
def alone() -> dict[str, str]:
    """An environment with one thread a process, as a worker of one core has it."""
    return os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def cluster(alone, tmp_path_factory):
    """Two machines of one core each, as far as Ray knows; gives the environment of a user of theirs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    # A socket's path has at most 107 letters, which pytest's own folders leave no room for.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        environment = alone | {"RAY_ADDRESS": address, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
        common = ["--block", "--num-cpus=1", f"--object-store-memory={100 * 2**20}"]
        head = ["--head", f"--port={address.partition(':')[2]}", "--include-dashboard=false", f"--temp-dir={folder}"]
        nodes = []
        try:
            # One after the other: nodes that start together take each other's sockets.
            for number, own in enumerate((head, [f"--address={address}"])):
                log = tmp_path_factory.mktemp("node") / f"{number}.txt"
                line = [Path(sys.executable).parent / "ray", "start", *own, *common]
                # Not in the folder of the tests: a cluster stands where its administrator started it.
                nodes.append(subprocess.Popen(line, env=environment, stdout=log.open("w"), stderr=subprocess.STDOUT, cwd=log.parent))
                wait_for(lambda log=log: "Ray runtime started" in log.read_text())
            yield environment
        finally:
            for program in STARTED:
                program.kill()
            for node in reversed(nodes):
                node.terminate()
            for node in nodes:
                node.wait(60)


def wait_for(condition: Callable[[], object]) -> object:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.02)
    raise TimeoutError


def workers(task: str) -> Iterator[psutil.Process]:
    """The processes of these tests' cluster that are at a task."""
    for process in psutil.Process().children(recursive=True):
        try:
            if "".join(process.cmdline()[:1]).startswith(f"ray::{task}"):
                yield process
        except psutil.Error:
            pass


def maker(partial: Path) -> psutil.Process | None:
    """A worker that makes edits, once some are made."""
    return next(workers("MapWorker"), None) if len(list(partial.glob("shard-*"))) >= 3 else None


def runner() -> psutil.Process | None:
    """A worker that has begun to train."""
    for process in workers("_run"):
        logs = [Path(file.path) for file in process.open_files() if file.path.endswith("log.txt")]
        if any((log.parent / "metrics.csv").exists() for log in logs):
            return process
    return None


def kill(find: Callable[[], psutil.Process | None], program: subprocess.Popen) -> None:
    victim = wait_for(lambda: find() or program.poll() is not None)
    assert program.poll() is None, "it was over before anything was killed"
    victim.send_signal(signal.SIGKILL)


def start(environment: dict[str, str], *line: str) -> subprocess.Popen:
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    STARTED.append(subprocess.Popen([sys.executable, *line], env=environment, cwd=environment["HERE"], **output))
    return STARTED[-1]


def ended(program: subprocess.Popen) -> str:
    shown, _ = program.communicate(timeout=PATIENCE)
    assert program.returncode == 0, shown
    return shown


@pytest.mark.slow
def test_edits_made_on_ray_are_those_made_here_though_a_worker_is_killed(cluster, alone, cache, tmp_path):
    here, (ours, theirs) = {"HERE": str(tmp_path)}, (tmp_path / name for name in ("ours", "theirs"))
    make = ["-m", "data.produce", *EDITS, f"cache_dir={cache}"]
    ended(start(alone | here, *make, f"store={ours}"))

    # A folder as it was typed: workers must find it from where the user stands.
    program = start(cluster | here, *make, "store=theirs", "launcher=ray")
    kill(lambda: maker(theirs.with_name("theirs.partial")), program)
    shown = ended(program)

    assert shown.split()[-1] == "theirs"
    found, expected = EditStore(theirs), EditStore(ours)
    assert found.table().equals(expected.table()) and len(expected) > 100
    edits, wanted = (store.edits(torch.arange(len(store))) for store in (found, expected))
    assert torch.equal(edits.key_BF, wanted.key_BF) and torch.equal(edits.value_BD, wanted.value_BD)
    assert found.fingerprint == expected.fingerprint


@pytest.mark.slow
def test_a_grid_on_ray_gives_the_numbers_of_this_process_though_a_worker_is_killed(cluster, alone, cache, tmp_path):
    here, ours, theirs = {"HERE": str(tmp_path)}, tmp_path / "ours", tmp_path / "theirs"
    grid = [str(ROOT / "train.py"), *RUNS, f"cache_dir={cache}"]
    ended(start(alone | here, *grid, "runs=ours"))

    program = start(cluster | here, *grid, "runs=theirs", "launcher=ray")
    kill(runner, program)
    shown = ended(program)
    assert shown.count("its worker died; it is started again") == 1
    starts = [file.read_text().count("Palimpsest: read") for file in theirs.rglob("log.txt")]
    assert sorted(starts) == [1, 1, 2], "one run is done twice, the others once"

    for file in (expected := sorted(ours.rglob("result.json"))):
        one, other = (json.loads(path.read_text()) for path in (file, theirs / file.relative_to(ours)))
        for part in ("fit", "edits", "test", "validation", "baselines", "calibration"):
            assert_close(other[part], one[part])
    assert len(expected) == 3

    again = ended(start(cluster | here, *grid, "runs=theirs", "launcher=ray"))
    assert "Nothing to run" in again


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")])
def test_a_grid_on_ray_that_is_told_to_end_does_and_leaves_nobody_at_work(cluster, cache, tmp_path, number, code, word):
    grid = [
        str(ROOT / "train.py"),
        *EDITS,
        "-m",
        "seed=0,1,2",
        "optim.epochs=500",
        "optim.patience=500",
        "wandb.mode=disabled",
        f"cache_dir={cache}",
    ]
    program = start(cluster | {"HERE": str(tmp_path)}, *grid, "runs=runs", "launcher=ray")
    wait_for(lambda: runner() or program.poll() is not None)
    program.send_signal(number)
    shown, _ = program.communicate(timeout=60)
    assert program.returncode == code, shown
    assert "the same command goes on" in shown and word in shown and "Traceback" not in shown
    wait_for(lambda: not list(workers("_run")))


def assert_close(found: object, expected: object) -> None:
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_close(found[key], expected[key])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for pair in zip(found, expected, strict=True):
            assert_close(*pair)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, abs=1e-6)
    else:
        assert found == expected
