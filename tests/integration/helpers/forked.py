"""Processes forked from one that has imported the libraries, so that they are at work at once."""

import multiprocessing
from collections.abc import Callable

FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(
    ["train", "data.produce.shards", "data.workspace", "decoder.training.module", "decoder.training.trainer", "decoder.export.save"]
)


def started(target: Callable, *arguments) -> multiprocessing.Process:
    process = FORKED.Process(target=target, args=arguments)
    process.start()
    return process
