"""What making edits costs: seconds, and the most memory that was in use meanwhile."""

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

GIB = 2**30


@dataclass
class Cost:
    """Of what ran inside a block of `measured`.

    Attributes:
        seconds: by the wall clock.
        peak_memory: GiB in use at most, host and program included: of the device on a GPU, else of the process. Where a system tells only
            the most since the process began, it is that.
    """

    seconds: float = 0.0
    peak_memory: float = 0.0


@contextmanager
def measured(device: torch.device) -> Iterator[Cost]:
    """Measures a block; its cost is known when it ends."""
    cost, on_gpu = Cost(), device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    else:
        _forget_peak()
    start = time.perf_counter()
    yield cost
    if on_gpu:
        torch.cuda.synchronize(device)
    cost.seconds = time.perf_counter() - start
    cost.peak_memory = (torch.cuda.max_memory_allocated(device) if on_gpu else _peak()) / GIB


def _forget_peak() -> None:
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def _peak() -> int:
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
