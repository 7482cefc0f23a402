"""Ray, where `launcher=ray` does its work: a cluster of this machine's own, or the one RAY_ADDRESS names.

Workers are told where the user stands (folder, caches, threads), so that relative paths mean there what they mean here: the
machines of a cluster share their folders. Nothing is reported to anybody: Ray's usage statistics and its dashboard stay off.
"""

import importlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import floor
from pathlib import Path
from typing import Any

from decoder.config import LauncherConfig, TrainConfig
from decoder.utils.cores import available_cores, worker_environment
from decoder.utils.errors import TERMINATED, UserError, debugging

ADDRESS = "RAY_ADDRESS"
PASSED_ON = ("XDG_CACHE_HOME", "WANDB_", "HF_", "OMP_", "MKL_", "OPENBLAS_", "PALIMPSEST_")
"""Beginnings of the environment variables a worker takes over from the user."""
SECRET = ("KEY", "TOKEN")
OBJECTS = 200 * 2**20
"""Bytes of shared memory for what goes between processes: command lines and scores."""


@dataclass(frozen=True)
class Surroundings:
    """What a worker takes over from the user's own process."""

    folder: str
    program: str
    """The folder the program's modules lie in."""
    environment: dict[str, str]

    @classmethod
    def here(cls, launcher: LauncherConfig, program: Path) -> "Surroundings":
        shared = worker_environment(0, 1, os.environ, launcher.cpus)
        kept = {name: text for name, text in shared.items() if name.startswith(PASSED_ON) and not any(word in name for word in SECRET)}
        return cls(os.getcwd(), str(program.resolve().parent), kept)

    def enter(self) -> None:
        """Makes this process stand where the user does.

        Raises:
            FileNotFoundError: this machine does not have the user's folder.
        """
        os.environ |= self.environment
        try:
            os.chdir(self.folder)
        except FileNotFoundError:
            told = f"{socket.gethostname()} has no folder {self.folder}; the machines of a cluster need the same folders at the same place"
            raise FileNotFoundError(told) from None
        if self.program not in sys.path and Path(self.program).is_dir():
            sys.path.append(self.program)
        import torch

        torch.set_num_threads(int(self.environment["OMP_NUM_THREADS"]))


@contextmanager
def connected(config: TrainConfig) -> Iterator[int]:
    """Holds a connection to Ray; gives how many runs there is room for now, at least 1.

    Raises:
        UserError: Ray is not installed, no cluster answers, or a run needs more than this machine has.
    """
    ray, launcher, address = import_ray(), config.launcher, os.environ.get(ADDRESS)
    sigterm = signal.getsignal(signal.SIGTERM)
    if config.trainer.accelerator in ("cuda", "gpu") and not launcher.gpus:
        raise UserError(
            f"trainer.accelerator={config.trainer.accelerator}: Ray gives these runs no GPU; add launcher.gpus=1, or a part as 0.5"
        )
    if not address and launcher.cpus > available_cores():
        raise UserError(f"launcher.cpus={launcher.cpus}: this machine has {available_cores()} cores; give fewer")
    own = {} if address else {"num_cpus": available_cores(), "include_dashboard": False, "object_store_memory": OBJECTS}
    try:
        with _silent():
            ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **own)
    except (ConnectionError, RuntimeError, ValueError, AssertionError, ray.exceptions.RayError) as error:
        asked = f"{ADDRESS}={address}" if address else "launcher=ray"
        raise UserError(f"{asked}: {' '.join(str(error).split())[:300]}; docs/clusters.md says how to start a cluster") from None
    try:
        room = _room(ray.nodes(), launcher)
        if not room and not address:
            gpus = floor(ray.cluster_resources().get("GPU", 0))
            raise UserError(f"launcher.gpus={launcher.gpus:g}: Ray finds {gpus} GPUs on this machine; give fewer")
        if not room:
            asked = f"launcher.cpus={launcher.cpus} launcher.gpus={launcher.gpus:g}"
            sys.stderr.write(f"{asked}: no machine of the cluster has that now; runs wait for one that has\n")
        with _terminable(sigterm):
            yield min(max(1, room), launcher.jobs or sys.maxsize)
    finally:
        ray.shutdown()


def import_ray() -> Any:
    """Ray, told to be quiet.

    Raises:
        UserError: it is not installed.
    """
    # Both are read when Ray is imported or started. Its C++ side calls ordinary things errors, and writes them to stderr.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    if not debugging():
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        return importlib.import_module("ray")
    except ImportError:
        raise UserError('launcher=ray: Ray is not installed; pip install "palimpsest-decoder[ray]"') from None


def resources(launcher: LauncherConfig) -> dict[str, float]:
    """What Ray sets aside for a run."""
    return {"num_cpus": launcher.cpus, "num_gpus": launcher.gpus}


def get(reference: Any) -> Any:
    """What a task returned; an error raised in it is raised here as it was there."""
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None


@contextmanager
def _silent() -> Iterator[None]:
    """Keeps what is not Python's from stderr: Ray announces there that it was told to be quiet."""
    if debugging():
        yield
        return
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextmanager
def _terminable(before: Any) -> Iterator[None]:
    """Inside the block SIGTERM unwinds the program as it does elsewhere; afterwards its handler is the given one.

    Ray's own handler ends the program at once, and so does Ray where it meets a SystemExit. A KeyboardInterrupt it lets through.
    """
    heard: list[int] = []

    def interrupt(number: int, frame: Any) -> None:
        heard.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        if heard:
            raise SystemExit(TERMINATED) from None
        raise
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _room(nodes: list[dict[str, Any]], launcher: LauncherConfig) -> int:
    """How many runs fit on the machines that are there; a run with part of a GPU stays on one."""
    found = 0
    for node in nodes:
        have = node["Resources"] if node["Alive"] else {}
        fit = floor(have.get("CPU", 0) / launcher.cpus)
        if 0 < launcher.gpus <= 1:
            fit = min(fit, floor(have.get("GPU", 0)) * floor(1 / launcher.gpus + 1e-9))
        elif launcher.gpus:
            fit = min(fit, floor(have.get("GPU", 0) / launcher.gpus))
        found += fit
    return found
