"""What a trace leaves on disk while it goes on: a line a fact, beside its result, so that one that is killed need not begin anew.

Shape letters: P positions, L layers.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from data.causal_trace.trace import KINDS, Trace
from decoder.utils.files import short_hash, write_text


class Kept:
    """The traces of one command so far, told from those of other settings by the hash in their file's name.

    Args:
        folder: where the result will lie; is made with the first trace.
        follows_from: all that the traces follow from, the facts in their order among it.
    """

    def __init__(self, folder: Path, follows_from: Mapping[str, Any]) -> None:
        self.file = folder / f"causal_trace-{short_hash(follows_from)}.jsonl.partial"

    def left_by_a_kill(self) -> tuple[list[Trace], float]:
        """The traces of the first facts, and how many seconds they took; of a line that is damaged and those behind it none is there."""
        traces, seconds = [], 0.0
        # What is damaged is no more than what was never written.
        with suppress(FileNotFoundError, ValueError, KeyError, TypeError):
            for line in self.file.read_text(encoding="utf-8").splitlines():
                told = json.loads(line)
                restored = {kind: torch.tensor(told["restored"][kind]) for kind in KINDS}
                traces.append(Trace(told["clean"], told["corrupted"], restored))
                seconds = told["seconds"]
        return traces, seconds

    def write(self, traces: Sequence[Trace], seconds: float) -> None:
        """All traces of before, so that what is added stands behind whole lines."""
        if self.file.exists():
            write_text(self.file, "".join(_line(trace, seconds) for trace in traces))

    def add(self, trace: Trace, seconds: float) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a", encoding="utf-8") as lines:
            lines.write(_line(trace, seconds))

    def remove(self) -> None:
        self.file.unlink(missing_ok=True)


def _line(trace: Trace, seconds: float) -> str:
    """A float32 is the same when it is read again."""
    restored = {kind: restored_PL.tolist() for kind, restored_PL in trace.restored.items()}
    return json.dumps({"clean": trace.clean, "corrupted": trace.corrupted, "restored": restored, "seconds": seconds}) + "\n"
