"""What the benchmarks share: timing ways of doing one thing in turns, the machine's own speed, the table and the JSON.

A benchmark is a script with a dataclass of settings (`Common` and its own) that ends with `write`. Its JSON holds
`{machine, versions, rows}`; a row is a `Row`. `python benchmarks/common.py FILE` prints such a file as a Markdown table.
"""

import dataclasses
import gc
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from decoder.scores import versions, wilson
from decoder.utils.errors import did_you_mean

RESULTS = Path(__file__).parent / "results"
SHORTEST_SAMPLE = 0.05  # seconds; faster ways are called several times a sample

S = TypeVar("S")


@dataclass
class Common:
    """Settings every benchmark has; given as `key=value`."""

    out: str = ""  # file of the JSON; empty is benchmarks/results/<name>.json
    repeats: int = 5  # samples a way, taken in turns
    miniature: bool = False  # tiny sizes that only show that the script runs


@dataclass(frozen=True)
class Row:
    """One line of a benchmark.

    Attributes:
        ours, reference: medians over the repeats, in `unit`; None where nothing was measured, `note` says why.
        ratio: how many times better ours is, the median over the repeats, each of which measured both.
        spread: distance between the quartiles of that ratio (of `ours`, as a share of it, where there is no reference).
        floor: what this machine could do in `unit` if it did nothing but the necessary operations at the rates measured.
        distance: how many times ours is away from the floor.
    """

    case: str
    unit: str
    ours: float | None = None
    reference: float | None = None
    ratio: float | None = None
    spread: float | None = None
    repeats: int = 0
    floor: float | None = None
    distance: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Rates:
    """What the machine can do: multiply-adds count as two operations, copied bytes as read and written."""

    operations: float  # a second, in a square matrix product
    bytes: float  # a second, in a copy

    def floor_seconds(self, operations: float, bytes_moved: float = 0.0) -> float:
        """Seconds that neither the operations nor the traffic can go below."""
        return max(operations / self.operations, bytes_moved / self.bytes)


def settings(kind: type[S], argv: Sequence[str]) -> S:
    """A dataclass of settings filled from `key=value` arguments.

    Raises:
        ValueError: an argument is no `key=value`, or the key does not exist.
    """
    known = [field.name for field in dataclasses.fields(kind)]
    for argument in argv:
        key, equals, _ = argument.partition("=")
        if not equals or key not in known:
            raise ValueError(f"{argument}: no such setting; {did_you_mean(key, known)}. Give settings as key=value")
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), OmegaConf.from_dotlist(list(argv))))


def alternate(ways: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of one call of each way, `repeats` samples of each, taken in turns so that they share the machine's moods.

    Every way is called before, untimed; a way faster than `SHORTEST_SAMPLE` is called several times a sample.
    """
    calls = {}
    for name, way in ways.items():
        slow = _seconds(way, 1) > 10 * SHORTEST_SAMPLE  # however cold
        calls[name] = 1 if slow else max(1, round(SHORTEST_SAMPLE / max(_seconds(way, 1), 1e-9)))
    samples: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            samples[name].append(_seconds(way, calls[name]))
    return samples


def _seconds(way: Callable[[], object], calls: int) -> float:
    gc.collect()
    _synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        way()
    _synchronize()
    return (time.perf_counter() - start) / calls


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def compare(
    case: str,
    ours: Sequence[float],
    reference: Sequence[float] | None = None,
    *,
    amount: float = 1.0,
    unit: str = "1/s",
    floor_seconds: float | None = None,
    note: str = "",
) -> Row:
    """A row of rates out of the seconds that `alternate` measured.

    Args:
        amount: what one call does, in the unit's numerator (edits, steps).
        floor_seconds: as `Rates.floor_seconds` gives it for one call.
    """
    seconds = statistics.median(ours)
    ratios = [theirs / own for own, theirs in zip(ours, reference, strict=True)] if reference else None
    return Row(
        case,
        unit,
        ours=amount / seconds,
        reference=amount / statistics.median(reference) if reference else None,
        ratio=statistics.median(ratios) if ratios else None,
        spread=quartile_distance(ratios or [own / seconds for own in ours]),
        repeats=len(ours),
        floor=amount / floor_seconds if floor_seconds else None,
        distance=seconds / floor_seconds if floor_seconds else None,
        note=note,
    )


def not_measured(case: str, unit: str, why: str) -> Row:
    """A row that says what this machine could not measure."""
    return Row(case, unit, note=f"not measured: {why}")


def quartile_distance(values: Sequence[float]) -> float:
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return high - low


def measure_rates(device: str = "cpu", dtype: torch.dtype = torch.float32, width: int = 2048, repeats: int = 5) -> Rates:
    """The best of `repeats` square products and of `repeats` copies of 256 MiB."""
    left, right = (torch.randn(width, width, device=device, dtype=dtype) for _ in range(2))
    source = torch.ones(1 << 26, device=device)
    target = torch.empty_like(source)
    seconds = alternate({"product": lambda: left @ right, "copy": lambda: target.copy_(source)}, repeats)
    return Rates(2 * width**3 / min(seconds["product"]), 2 * source.nbytes / min(seconds["copy"]))


def machine() -> dict[str, object]:
    """The machine in words that name nobody: cores used and there, memory, processor, graphics processor."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"threads": torch.get_num_threads(), "cores": os.cpu_count(), "memory_gib": round(memory), "cpu": _processor(), "gpu": gpu}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def write(name: str, rows: Sequence[Row], out: str = "", **more: object) -> Path:
    """Prints the table and writes the JSON; `more` goes beside machine, versions and rows."""
    result = {"machine": machine(), "versions": versions(), "rows": [dataclasses.asdict(row) for row in rows], **more}
    file = Path(out) if out else RESULTS / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result, indent=2) + "\n")
    console = Console()
    (console if console.is_terminal else Console(width=160)).print(table(name, rows))
    console.print(f"{file}", highlight=False)
    return file


def table(name: str, rows: Sequence[Row]) -> Table:
    found = Table(title=name, title_justify="left")
    for column in ("case", "unit", "ours", "reference", "ratio", "spread", "repeats", "floor", "distance", "note"):
        found.add_column(column, justify="left" if column in ("case", "unit", "note") else "right")
    for row in rows:
        found.add_row(*(_cell(value) for value in dataclasses.astuple(row)))
    return found


def markdown(result: Mapping[str, Any]) -> str:
    """The rows as a Markdown table, below a line that names the machine."""
    columns = ["case", "unit", "ours", "reference", "ratio", "spread", "floor", "distance", "note"]
    about = result["machine"]
    lines = [
        f"{about['cpu']}, {about['threads']} of {about['cores']} cores, {about['memory_gib']} GiB, {about['gpu'] or 'no GPU'}; "
        f"torch {result['versions']['torch']}, transformers {result['versions']['transformers']}; "
        f"medians over {max(row['repeats'] for row in result['rows'])} repeats.",
        "",
        f"| {' | '.join(columns)} |",
        f"| {' | '.join('---' if column in ('case', 'unit', 'note') else '---:' for column in columns)} |",
    ]
    return "\n".join(lines + [f"| {' | '.join(_cell(row[column]) for column in columns)} |" for row in result["rows"]])


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) and abs(value) < 1000 else f"{value:,.0f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    print(markdown(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))


def rate(hits: Sequence[bool], digits: int = 3) -> str:
    """The share of hits in figures, with its 95 % interval; a dash where there is nothing to count."""
    if not len(hits):
        return "-"
    count = int(sum(hits))
    low, high = wilson(count, len(hits))
    return f"{count / len(hits):.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
