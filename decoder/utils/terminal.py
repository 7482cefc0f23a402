"""What a program shows in the terminal, and what of it goes to a run's log.txt."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from rich.console import Console

from decoder.utils.errors import lasting, leave_closed_pipe

TABLE_WIDTH = 120
EXPECTED_WARNINGS = (
    ".*LeafSpec.*is deprecated.*",
    ".*does not have many workers.*",
    ".*number of training batches .* is smaller than the logging interval.*",
    ".*in eval mode at the start.*",  # the host's own modules inside the trained layer
    ".*Experiment logs directory.*",  # a run of the same name is replaced
    ".*Checkpoint directory .* exists and is not empty.*",  # a killed fit goes on
    ".*``compute`` method of metric MeanMetric was called before.*",  # another device had all edits of a small split
    ".*across ranks is zero, but local rank has zero.*",
    ".*recommended to use.*sync_dist=True.*",  # every process logs what all of them counted
)

log = logging.getLogger(__name__)


@contextmanager
def silence() -> Iterator[None]:
    """What a process shows that shares a run with others: warnings and errors, nothing else."""
    quiet()
    with open(os.devnull, "w", encoding="utf-8") as nothing, redirect_stdout(nothing):
        yield


class RunLog(logging.FileHandler):
    """A run's log.txt, which gets log lines and what the run says in the terminal."""


class Terminal(Console):
    """Standard output; what is said there is written down where a `RunLog` is set up. Where nobody reads it any more, work goes on."""

    def on_broken_pipe(self) -> None:
        leave_closed_pipe()
        log.warning("standard output was closed; the run goes on, and what it says is here")

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*objects, **options)
        for handler in logging.getLogger().handlers:
            if isinstance(handler, RunLog):
                Console(file=handler.stream, width=TABLE_WIDTH).print(*objects, **options)


def console() -> Console:
    """The terminal; wide enough for the table of scores also where output goes to a file."""
    found = Terminal()
    return found if found.is_terminal else Terminal(width=max(found.width, TABLE_WIDTH))


def log_to(file: Path) -> None:
    # In a grid standard output is that file already.
    kind = logging.FileHandler if getattr(sys.stdout, "name", None) == str(file) else RunLog
    handler = kind(file, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


def quiet() -> None:
    """Libraries speak up only when something is wrong."""
    with lasting():
        import lightning  # noqa: F401  sets its own log level when it is imported
        from datasets import disable_progress_bars
        from transformers.utils import logging as transformers_logging

    for name in ("lightning.pytorch", "lightning.fabric", "httpx", "datasets"):
        logging.getLogger(name).setLevel(logging.WARNING)
    disable_progress_bars()
    transformers_logging.disable_progress_bar()
    os.environ.setdefault("WANDB_SILENT", "true")
    for message in EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message)
