"""How far something is that takes minutes, and how long the rest will take: a bar in a terminal, a line a minute elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from decoder.utils.terminal import console

FIRST, EVERY = 10.0, 60.0  # seconds to the first line, and between lines


class Pace:
    """Says in a line, now and then, how many of `total` are done; `done` of them were there before it began."""

    def __init__(self, label: str, total: int, done: int = 0) -> None:
        self.label, self.total, self.done, self._before = label, total, done, done
        self._started = time.monotonic()
        self._next = self._started + FIRST

    def advance(self, count: int = 1) -> None:
        self.done += count
        now, left = time.monotonic(), self.total - self.done
        if now < self._next or left <= 0:
            return
        self._next = now + EVERY
        pace = (now - self._started) / (self.done - self._before)
        console().print(
            f"  {self.label}: {self.done:,} of {self.total:,}, about {duration(pace * left)} left", style="dim", highlight=False
        )


@contextmanager
def progress(label: str, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Yields what is told how many more are done."""
    if not console().is_terminal:
        yield Pace(label, total, done).advance
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("time left"), TimeRemainingColumn())
    with Progress(*columns, transient=True) as bar:
        task = bar.add_task(label, total=total, completed=done)
        yield lambda count: bar.update(task, advance=count)


def duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
