"""One run of a grid, as every launcher does it: what it prints goes to its log.txt, and one that breaks stops nothing but itself."""

import contextlib
from collections.abc import Callable
from typing import Any

from decoder.config.compose import to_dict
from decoder.report.results import failed, is_finished, write_result
from launcher.grid import Run

Outcome = tuple[Run, dict[str, Any]]
RunOne = Callable[[Run, Any], dict[str, Any]]
"""Does a run on a workspace that it shares with others; returns its result."""


def attempt(run: Run, run_one: RunOne, workspace: Any) -> dict[str, Any]:
    """The result of a run; one that breaks leaves `status: failed` and the next can start."""
    from decoder.training.tracking import close_run

    run.folder.mkdir(parents=True, exist_ok=True)
    with (run.folder / "log.txt").open("a", encoding="utf-8") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        try:
            return run_one(run, workspace)
        except Exception as error:
            close_run(exit_code=1)
            return failed(to_dict(run.config), error)


def lost(run: Run, why: str | BaseException) -> dict[str, Any]:
    """The result of a run that ended before it could leave one. It is written down, but not over a finished run that still lies there."""
    result = failed(to_dict(run.config), why)
    if not is_finished(run.folder):
        run.folder.mkdir(parents=True, exist_ok=True)
        write_result(run.folder, result)
    return result
