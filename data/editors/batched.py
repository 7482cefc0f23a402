"""What editors that optimise many requests together share: batches as large as the memory allows, and the arithmetic of the search."""

import gc
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from data.editors.half import HalfProducts
from data.editors.prefix_cache import Suffixes
from data.editors.value_search import Job
from data.facts.fact import EditRequest
from decoder.config.editors import EditsConfig
from decoder.host import Host

log = logging.getLogger(__name__)


class Batched(ABC):
    """An editor of one layer that makes its edits `batch_size` together.

    Attributes:
        batch_size: edits made together from here on: `cfg.batch_size`, halved whenever that is too much for the memory.

    Raises:
        ValueError: a precision the device has not.
    """

    def __init__(self, host: Host, edited_layer: int, cfg: EditsConfig) -> None:
        if cfg.precision == "tf32" and host.device.type != "cuda":
            raise ValueError(f"edits.precision=tf32 is a mode of NVIDIA GPUs, the host is on {host.device.type}. Use float32 or bf16")
        self.host, self.edited_layer, self.cfg, self.batch_size = host, edited_layer, cfg, cfg.batch_size
        self._shortcut: bool | None = None
        self._half: HalfProducts | None = None

    @abstractmethod
    def _job(self, index: int, request: EditRequest) -> Job:
        """The rows of a request; raises ValueError if it cannot be made."""

    @abstractmethod
    def _solve(self, jobs: Sequence[Job]) -> tuple[Tensor, ...]:
        """What is found for a batch of jobs, each tensor with the jobs first."""

    def jobs(self, requests: Sequence[EditRequest]) -> tuple[list[Job], list[tuple[str, str]]]:
        jobs, skipped = [], []
        for index, request in enumerate(requests):
            try:
                jobs.append(self._job(index, request))
            except ValueError as error:
                skipped.append((request.edit_id, str(error)))
        return jobs, skipped

    def solved(self, jobs: list[Job], advance: Callable[[int], None] | None) -> tuple[Tensor, ...] | None:
        """What `_solve` finds for all jobs, which are put in the order of the result; None if there is no job.

        Raises:
            RuntimeError, MemoryError: what the device raises if not even one job fits.
        """
        # Neighbours of like length share a batch, so that little of it is padding.
        jobs.sort(key=lambda job: job.size)
        found: list[tuple[Tensor, ...]] = []
        start = 0
        while start < len(jobs):
            batch = jobs[start : start + self.batch_size]
            # Tried in a call of its own: what a failed batch has taken is free again before the next one starts.
            if (part := self._try(batch)) is None:
                self._halve(len(batch))
                continue
            found.append(part)
            start += len(batch)
            if advance:
                advance(len(batch))
        return tuple(torch.cat(parts) for parts in zip(*found, strict=True)) if found else None

    def _try(self, jobs: Sequence[Job]) -> tuple[Tensor, ...] | None:
        """What `_solve` gives, or None if several jobs are too many for the memory."""
        try:
            return self._solve(jobs)
        except (RuntimeError, MemoryError) as error:
            if len(jobs) == 1 or not out_of_memory(error):
                raise
            return None

    def _halve(self, failed: int) -> None:
        self.batch_size = failed // 2
        gc.collect()
        if self.host.device.type == "cuda":
            torch.cuda.empty_cache()
        log.warning("edits.batch_size: %d edits together do not fit into memory, %d from here on", failed, self.batch_size)

    def _products(self) -> AbstractContextManager[None]:
        """The arithmetic of the search; keys and clean outputs stay exact."""
        if self.cfg.precision != "bf16":
            return nullcontext()
        self._half = self._half or HalfProducts(self.host, self.edited_layer)
        return self._half.in_place()

    def _by_shortcut(self, suffixes: Suffixes, first: int) -> Suffixes:
        """The rows by the shortcut if it holds, which the `first` of them show once."""
        if self._shortcut is None:
            self._shortcut = suffixes.select(range(first)).shortcut_holds()
            if not self._shortcut:
                log.warning(
                    "%s: adding a value above block %d changes more; every block runs at each step", self.host.name, self.edited_layer
                )
        return suffixes.above() if self._shortcut else suffixes


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on any device; on the CPU torch has no class for it."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
