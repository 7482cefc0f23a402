"""The processes of one run on several devices: which of them this one is, and what all of them have together.

Lightning starts a process for every device, and each runs the whole program. They share fitting and scoring; the first alone makes
edits, speaks and writes.
"""

import os
from typing import TypeVar

from decoder.config import TrainConfig

T = TypeVar("T")


def is_distributed(cfg: TrainConfig) -> bool:
    """Whether a config may ask for more than one process; `auto` and -1 may."""
    devices = cfg.trainer.devices
    return cfg.trainer.num_nodes > 1 or not (devices == 1 or (isinstance(devices, list) and len(devices) == 1))


def is_first(cfg: TrainConfig) -> bool:
    """Whether this process speaks and writes for its run; known before the processes have met."""
    if not is_distributed(cfg):
        # A rank in the environment is that of something else, as a grid on a cluster.
        return True
    if "RANK" in os.environ:
        return os.environ["RANK"] == "0"
    return all(os.environ.get(name, "0") == "0" for name in ("LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))


def own_device(cfg: TrainConfig) -> int:
    """Index, among the devices of this machine, of the one that this process runs on."""
    devices = cfg.trainer.devices
    place = int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", 0))) if is_distributed(cfg) else 0
    return devices[place] if isinstance(devices, list) else place


def gathered(items: list[T]) -> list[T]:
    """The items of all processes, in order of rank; every process gets them. Alone, its own."""
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return items
    parts: list[list[T]] = [[] for _ in range(distributed.get_world_size())]
    distributed.all_gather_object(parts, items)
    return [item for part in parts for item in part]
