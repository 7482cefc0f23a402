"""A grid on Ray: hosts and edits first, then one task a run.

A run whose worker dies is started again; the others go on. What runs leave lies in their folders as always, and a run whose
result is there is never done again, whatever became of its worker.
"""

import importlib
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from data.produce.on_ray import produce_on_ray
from data.produce.ray_cluster import Surroundings, get, resources
from decoder.config.identity import edits_of
from launcher.attempt import Outcome, attempt, lost
from launcher.grid import Run, by_edits


def on_ray(runs: list[Run], script: Path, room: int, out: Console) -> Iterator[Outcome]:
    """Does runs on the cluster that is connected; `script` is the program whose `run` does one, `room` how many fit there now."""
    import ray

    launcher = runs[0].config.launcher
    here = Surroundings.here(launcher, script)
    task = ray.remote(max_retries=0, **resources(launcher))(_run)
    unmade = _prepare(runs, here, room, out)
    waiting = deque((run, launcher.retries) for run in runs)
    going: dict[Any, tuple[Run, int]] = {}
    while waiting or going:
        while waiting and len(going) < (launcher.jobs or len(runs)):
            run, retries = waiting.popleft()
            if edits_of(run.config) in unmade:
                yield run, lost(run, unmade[edits_of(run.config)])
            else:
                going[task.remote(run, script.stem, here)] = run, retries
        if not going:
            continue
        (ended, *_), _ = ray.wait(list(going))
        run, retries = going.pop(ended)
        try:
            yield run, get(ended)
        except ray.exceptions.RayError as error:
            if result := run.finished():
                yield run, result
            elif retries:
                out.print(f"{run.folder}: its worker died; it is started again", markup=False, style="dim")
                waiting.appendleft((run, retries - 1))
            else:
                yield run, lost(run, f"{type(error).__name__}: its worker died {launcher.retries + 1} times, see {run.folder / 'log.txt'}")
        except Exception as error:  # it did not come as far as the run itself
            yield run, lost(run, error)


def _prepare(runs: list[Run], here: Surroundings, room: int, out: Console) -> dict[str, str]:
    """Makes hosts and edits; returns why, by `edits_of`, where they cannot be made. Runs that made them together would do it twice."""
    unmade = {}
    for key, (run, *_) in by_edits(runs).items():
        try:
            produce_on_ray(run.config, here, lambda line: out.print(line, style="dim"), room)
        except Exception as error:
            unmade[key] = f"{type(error).__name__}: {error}"
    return unmade


def _run(run: Run, program: str, here: Surroundings) -> dict[str, Any]:
    """In a worker: one run; returns its result."""
    here.enter()
    from data.workspace import own_workspace

    return attempt(run, importlib.import_module(program).run, own_workspace())
