"""A grid on several processes of one machine: each has a workspace of its own and its share of the cores.

A worker is this program with `--worker`. It reads one JSON line a run from its stdin and answers with one; a worker that dies takes
its own run with it and nothing else.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from decoder.report.results import failed
from decoder.utils.cores import worker_environment
from decoder.utils.errors import TERMINATED
from launcher.attempt import Outcome, RunOne, attempt, lost
from launcher.grid import Run, by_edits, read_grid

PATIENCE = 10  # seconds a worker has to end


def in_processes(runs: list[Run], script: Path, jobs: int, out: Console) -> Iterator[Outcome]:
    """Shares runs between `jobs` workers, in order; hosts and edits are made first, by one worker that has all cores."""
    _prepare(runs, script, out)
    waiting: queue.SimpleQueue[Run] = queue.SimpleQueue()
    for run in runs:
        waiting.put(run)
    ended: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
    workers = [Worker(script, worker_environment(index, jobs)) for index in range(jobs)]
    for worker in workers:
        threading.Thread(target=_work, args=(worker, waiting, ended), daemon=True).start()
    try:
        for _ in runs:
            yield ended.get()
    finally:
        for worker in workers:
            worker.stop()


class Worker:
    """One process that does runs one after the other, started when it is first asked."""

    def __init__(self, script: Path, environment: dict[str, str]) -> None:
        self._line, self._environment = [sys.executable, str(script), "--worker"], environment
        self._process: subprocess.Popen[str] | None = None
        self._stopped = False

    def ask(self, task: str, run: Run) -> dict[str, Any]:
        """The worker's answer; a result with `status: failed` if it died over it. The next question starts a new one."""
        if self._stopped:
            raise Stopped
        if self._process is None:
            self._process = subprocess.Popen(
                self._line, env=self._environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
            )
        process = self._process
        try:
            process.stdin.write(json.dumps({"task": task, "argv": run.argv}) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if answer:
            return json.loads(answer)
        if self._stopped:
            raise Stopped
        self._process = None
        code = process.wait()
        error = f"WorkerDied: its process ended with code {code}, see {run.folder / 'log.txt'}"
        # One that was told to end says nothing about its run.
        return lost(run, error) if task == "run" and code != TERMINATED else failed({}, error)

    def stop(self) -> None:
        """Ends the process, in the middle of a run if need be."""
        self._stopped = True
        if (process := self._process) is None:
            return
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Stopped(Exception):
    """A worker was asked for a run, or was at one, when all of them were told to end."""


def serve(run_one: RunOne) -> None:
    """What a worker does: tasks from stdin, answers to stdout, and everything else that is printed to stderr."""
    _end_with(os.getppid())
    channel = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    from data.workspace import own_workspace

    workspace = own_workspace()
    for line in sys.stdin:
        task = json.loads(line)
        (run,) = read_grid(task["argv"]).runs
        if task["task"] == "describe":
            answer = {"status": "ok", "line": workspace.describe(run.config)}
        elif task["task"] == "prepare":
            answer = attempt(run, lambda run, workspace: {"status": "ok", "edits": len(workspace.edits(run.config).table)}, workspace)
        else:
            answer = attempt(run, run_one, workspace)
        channel.write(json.dumps(answer) + "\n")


def _end_with(parent: int) -> None:
    """Ctrl-C, which a terminal sends to all of them, is the parent's to hear; its SIGTERM, or its death, ends this process at once."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(TERMINATED))

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(TERMINATED)

    threading.Thread(target=watch, daemon=True).start()


def _prepare(runs: list[Run], script: Path, out: Console) -> None:
    worker = Worker(script, dict(os.environ))
    try:
        for run, *_ in by_edits(runs).values():
            if line := worker.ask("describe", run).get("line"):
                out.print(line, style="dim", markup=False)
            # If it cannot be made, the runs themselves will say why.
            worker.ask("prepare", run)
    finally:
        worker.stop()


def _work(worker: Worker, waiting: "queue.SimpleQueue[Run]", ended: "queue.SimpleQueue[Outcome]") -> None:
    while True:
        try:
            run = waiting.get_nowait()
        except queue.Empty:
            return
        try:
            ended.put((run, worker.ask("run", run)))
        except Stopped:
            return
        except Exception as error:  # an outcome must come for every run, or the grid would wait for ever
            ended.put((run, lost(run, error)))
