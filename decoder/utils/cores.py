"""The cores of this machine, and a worker's share of them."""

import os
from collections.abc import Mapping

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def worker_environment(index: int, jobs: int, environment: Mapping[str, str] = os.environ, cores: int | None = None) -> dict[str, str]:
    """The environment of worker `index` of `jobs`: its share of the cores, fewer if the user says so, and one of several GPUs."""
    share = max(1, (cores or available_cores()) // jobs)
    threads = {name: str(min(share, int(environment[name])) if environment.get(name, "").isdigit() else share) for name in THREADS}
    devices = [device for device in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if device]
    visible = {"CUDA_VISIBLE_DEVICES": devices[index % len(devices)]} if len(devices) > 1 else {}
    return dict(environment) | threads | visible


def available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
