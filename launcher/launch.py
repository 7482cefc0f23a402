"""Runs a grid: the plan, what is finished already, one run after the other, and what went wrong.

A launcher yields each run with its result as it ends: `in_process` here, `in_processes` of `launcher/workers.py`. SLURM gets a
script. Nothing here imports torch before there is something to run.
"""

import contextlib
import sys
import time
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from decoder.scores import TEST_SPLITS
from decoder.utils.errors import is_interruption
from decoder.utils.progress import duration
from decoder.utils.terminal import Terminal
from launcher.attempt import Outcome, RunOne, attempt
from launcher.grid import Grid, Run, by_edits, refuse_several, refuse_to_replace, seconds_of


def launch(grid: Grid, run_one: RunOne, script: Path) -> None:
    """Runs what is not finished of a grid and says how it went; `script` is the program a worker process starts.

    Raises:
        UserError: a run would replace a finished one of other settings.
        SystemExit: code 1, after all runs were tried and some failed.
    """
    refuse_several(grid.runs)
    refuse_to_replace(grid.runs)
    config = grid.runs[0].config
    if config.launcher.name == "slurm":
        from launcher.slurm import sbatch_script

        sys.stdout.write(sbatch_script(grid) or _nothing(grid))
        return
    # The file is named: a console asks for sys.stdout at every line, which is a run's log.txt while a run goes on.
    out = Terminal(file=sys.stdout, highlight=False, soft_wrap=True)
    finished = {run.folder: result for run in grid.runs if (result := run.finished())}
    left = [run for run in grid.runs if run.folder not in finished]
    out.print(plan(grid, finished))
    out.print(_estimate([seconds_of(result) for result in finished.values()], len(left), config.launcher.jobs or 1))
    if not left:
        out.print(_nothing(grid), end="", markup=False)
        return
    try:
        with _launcher(left, run_one, script, out) as (outcomes, jobs), contextlib.closing(outcomes):
            failed = _follow(outcomes, len(left), jobs, out)
    except BaseException as error:
        if is_interruption(error):
            out.print("What is finished is kept; the same command goes on with the rest.")
            if any(run.finished() for run in grid.runs):
                _compare(grid, out, is_news=False)
        raise
    if failed:
        out.print(f"\n{len(failed)} of {len(grid.runs)} runs failed; the same command tries them again:", style="bold")
        for run, result in failed:
            out.print(f"  {run.folder}: {result['error']}", markup=False)
    _compare(grid, out, is_news=len(failed) < len(left))
    if failed:
        raise SystemExit(1)


@contextlib.contextmanager
def _launcher(runs: list[Run], run_one: RunOne, script: Path, out: Console) -> Iterator[tuple[Iterator[Outcome], int]]:
    """The outcomes of runs as they end, and how many run at a time."""
    launcher = runs[0].config.launcher
    if launcher.name == "ray":
        from data.produce.ray_cluster import connected
        from launcher.on_ray import on_ray

        with connected(runs[0].config) as room:
            yield on_ray(runs, script, room, out), min(room, len(runs))
    elif (jobs := min(launcher.jobs or 1, len(runs))) > 1:
        from launcher.workers import in_processes

        yield in_processes(runs, script, jobs, out), jobs
    else:
        yield in_process(runs, run_one, out), 1


def plan(grid: Grid, finished: dict[Path, dict[str, Any]]) -> Table:
    """The runs by host and edited layer, and how many are finished."""
    axes = " × ".join(f"{key} ({len(values)})" for key, values in grid.axes.items())
    title = f"{grid.runs[0].config.experiment}: {len(grid.runs)} runs" + (f", {axes}" if axes else "")
    table = Table(
        "host", "edited layer", "trained layers", "seeds", box=box.HORIZONTALS, title=title, title_justify="left", title_style="bold"
    )
    table.add_column("runs", justify="right")
    table.add_column("finished", justify="right")
    for (host, edited), members in groupby(grid.runs, key=lambda run: (run.config.host.name, "+".join(map(str, run.config.edits.layers)))):
        runs = list(members)
        trained = dict.fromkeys("+".join(map(str, run.config.decoder.layers)) for run in runs)
        seeds = dict.fromkeys(str(run.config.seed) for run in runs)
        done = sum(run.folder in finished for run in runs)
        table.add_row(host, edited, _short(trained), _short(seeds), str(len(runs)), str(done))
    return table


def in_process(runs: list[Run], run_one: RunOne, out: Console) -> Iterator[Outcome]:
    """One run after the other in this process, on one workspace; what a run prints goes to its log.txt."""
    from data.workspace import own_workspace

    workspace = own_workspace()
    for members in by_edits(runs).values():
        out.print(workspace.describe(members[0].config), style="dim")
        for run in members:
            yield run, attempt(run, run_one, workspace)


def _follow(outcomes: Iterator[Outcome], count: int, jobs: int, out: Console) -> list[Outcome]:
    """Shows a line and a bar as runs end; returns those that failed."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.fields[left]}"))
    failed, through, pace, first_end = [], 0, None, 0.0
    with Progress(*columns, console=out, transient=True, redirect_stdout=False) as bar:
        task = bar.add_task("runs", total=count, left="")
        for number, (run, result) in enumerate(outcomes, 1):
            ok = result["status"] == "ok"
            if not ok:
                failed.append((run, result))
            elif (through := through + 1) > 1:
                pace = (time.perf_counter() - first_end) / (through - 1)
            else:
                # Hosts and edits were made before it ended; from here on runs end at the pace of those that follow.
                first_end, pace = time.perf_counter(), seconds_of(result) / jobs
            left = f"about {duration(pace * (count - number))} left" if pace is not None and number < count else ""
            line = f"[{number}/{count}] {describe(run, result)}" + (f"  ({left})" if left else "")
            out.print(line, markup=False, style=None if ok else "red")
            bar.update(task, advance=1, left=left)
    return failed


def describe(run: Run, result: dict[str, Any]) -> str:
    """One line on how a run ended."""
    name = f"{run.config.host.name}/{run.folder.name}"
    if result["status"] != "ok":
        return f"{name}  failed: {result['error']}"
    scores = "  ".join(f"{split} {result['test'][split]['exact_match']['value']:.3f}" for split in TEST_SPLITS if split in result["test"])
    return f"{name}  {result['seconds']['total']:.0f} s  {scores}"


def _nothing(grid: Grid) -> str:
    return f"Nothing to run. Compare them:  python -m decoder.report {_common(grid)}\n"


def _estimate(seconds: list[float], left: int, jobs: int) -> str:
    if not left or not seconds:
        return f"{left} to run" + ("; how long it takes is known after the first" if left else "")
    each = sum(seconds) / len(seconds)
    return f"{left} to run, about {duration(each * left / jobs)} ({each:.0f} s a run)"


def _short(names: dict[str, None]) -> str:
    shown = list(names)
    return ", ".join(shown) if len(shown) <= 12 else f"{', '.join(shown[:4])}, ... {shown[-1]} ({len(shown)})"


def _common(grid: Grid) -> Path:
    """The folder above all runs of the grid."""
    config = grid.runs[0].config
    same = len({run.config.experiment for run in grid.runs}) == 1
    return Path(config.runs) / config.experiment if same else Path(config.runs)


def _compare(grid: Grid, out: Console, is_news: bool) -> None:
    """Writes the page of the comparison beside the runs, and a W&B report if a run went through. If it cannot, a line says why."""
    from decoder.report.compare_page import write_comparison
    from decoder.report.layer_curves import run_rows
    from decoder.report.results import find_runs
    from decoder.training.tracking import log_comparison

    try:
        found = find_runs([_common(grid)])
        out.print(f"\nComparison: {write_comparison(found, _common(grid))}", markup=False)
        if is_news:
            log_comparison(grid.runs[0].config, run_rows(found.finished), _common(grid))
    except Exception as error:  # the runs are what counts, and how they went has been said
        told = " ".join(str(error).split())
        out.print(
            f"\nThe comparison broke ({type(error).__name__}: {told}). Try: python -m decoder.report {_common(grid)}",
            markup=False,
            style="red",
        )
