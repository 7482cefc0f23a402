"""Processes forked from one that has imported the libraries, so that they are at work at once."""

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(
    [
        "train",
        "evaluate",
        "data.produce.shards",
        "data.workspace",
        "decoder.audit.decoded.answer",
        "decoder.training.module",
        "decoder.training.trainer",
        "decoder.export.save",
    ]
)


def started(target: Callable, *arguments) -> multiprocessing.Process:
    process = FORKED.Process(target=target, args=arguments)
    process.start()
    return process


def ended(folder: Path, target: Callable, *arguments) -> CompletedProcess:
    """How a program ends, and what it says; the folder is for that."""
    process = started(_heard, folder, target, *arguments)
    process.join(300)
    process.kill()
    return CompletedProcess(arguments, process.exitcode, *((folder / name).read_text() for name in ("stdout", "stderr")))


def _heard(folder: Path, target: Callable, *arguments) -> None:
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / name, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), descriptor)
    target(*arguments)
