"""How time and memory of loading grow with the number of edits, their width, and the number of layers.

python benchmarks/scale.py                     100,000 edits of GPT2-XL width; needs 8 GB of disk for a while
python benchmarks/scale.py edits=10000 out=scale.json

Ours is the loader that training uses: batches read by rows from the mapped store, shuffled. The reference is the plain way to read the
same store: `datasets` in torch format behind a shuffling `DataLoader`. Memory is anonymous memory (RssAnon) of a fresh process: pages of
the mapped file can be dropped at any time and do not count.

Shape letters: D hidden width, F MLP width.
"""

import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import Common, Row, compare, measure_rates, quartile_distance, settings, write
from datasets import disable_progress_bars, load_from_disk
from torch.utils.data import DataLoader

from data.batches import EditRows, EpochShuffle, SharedBatches, as_is, padded_objects
from data.store.parquet import EditStream, write_parquet
from data.store.store import SCORE_COLUMNS, TEXT_COLUMNS, EditStore
from data.store.writer import StoreWriter
from data.stream_loader import StreamLoader
from decoder.utils.errors import run_command

WIDTHS = {"gpt2": (3072, 768), "gpt2-xl": (6400, 1600), "llama-3-8b": (14336, 4096)}
SHARD = 2000
REFERENCE_BATCHES = 60  # the reference is slow: its rate shows in a few
END = 3
GIB = 2**30


@dataclass
class Settings(Common):
    edits: int = 100_000  # largest store
    batch: int = 32  # edits in a batch
    folder: str = ""  # where the stores are written for a while; empty is the system's temporary folder


def make_store(path: Path, count: int, mlp_size: int, hidden_size: int) -> Path:
    """A store of random edits."""
    described = {"host": {"fingerprint": "drawn"}, "layer": 0, "terminator_id": END, "editor": {"name": "drawn"}}
    writer, generator = StoreWriter(path, described, SHARD), torch.Generator().manual_seed(0)
    starts = range(0, count, SHARD)
    for index, start in enumerate(starts):
        rows = min(SHARD, count - start)
        columns: dict[str, Any] = {name: [f"{name} {start + row}" for row in range(rows)] for name in TEXT_COLUMNS}
        columns |= {name: [1.0] * rows for name in SCORE_COLUMNS}
        columns |= {"object_ids": [[5 + row % 7] * (1 + row % 2) for row in range(rows)], "success": [True] * rows}
        columns |= {"key": torch.randn(rows, mlp_size, generator=generator), "value": torch.randn(rows, hidden_size, generator=generator)}
        writer.write_shard(index, columns, [])
    return writer.finish(len(starts), []).path


def mapped(path: Path, batch: int, workers: int = 0) -> Iterator[Any]:
    """What training reads, beside the table of texts and scores that it holds."""
    store = EditStore(path)
    table = store.table()
    rows = EditRows(store, list(range(len(table))), END)
    batches = SharedBatches(EpochShuffle(len(rows), seed=0), batch, rank=0, world=1)
    yield from DataLoader(rows, batch_sampler=batches, collate_fn=as_is, num_workers=workers)


def streamed(path: Path, batch: int) -> Iterator[Any]:
    stream = EditStream(str(path))
    rows = list(range(len(stream)))
    return iter(StreamLoader(stream, rows, padded_objects(stream, rows, END), batch, shuffle=(0, 4096)))


def plain(path: Path, batch: int) -> Iterator[Any]:
    """The readable reference."""
    dataset = load_from_disk(str(path)).select_columns(["key", "value"]).with_format("torch")
    return iter(DataLoader(dataset, batch, shuffle=True))


def all_layers(paths: list[Path], batch: int) -> Iterator[Any]:
    """Passes over the stores of several layers, each still open when the last one ends."""
    passes = [mapped(path, batch) for path in paths]
    for batches in zip(*passes, strict=True):
        yield from batches


def anonymous() -> int:
    """RssAnon of this process and its children in bytes."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="utf-8").split()
    total = 0
    for process in ("self", *children):
        try:
            lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))
    return total


@contextmanager
def peak() -> Iterator[list[int]]:
    """The highest anonymous memory while the block runs, as the list's last item."""
    seen, over = [anonymous()], threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            seen[0] = max(seen[0], anonymous())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    yield seen
    over.set()
    thread.join()
    seen[0] = max(seen[0], anonymous())


def one_pass(reads: Callable[[], Iterator[Any]], most: int | None, cold: list[Path]) -> dict[str, float]:
    """Seconds to open, seconds for (at most `most` batches of) a pass, batches, and by how much anonymous memory grew at most."""
    for folder in cold:
        forget(folder)
    before = anonymous()
    with peak() as highest:
        start = time.perf_counter()
        batches = reads()
        first = next(batches)
        opened, count = time.perf_counter(), 1
        checksum = float(first[0].key_BF[0, 0]) if hasattr(first, "edits") else 0.0
        for batch in batches:
            count += 1
            checksum += float(batch.edits.key_BF[0, 0]) if hasattr(batch, "edits") else 0.0
            if most and count >= most:
                break
        end = time.perf_counter()
    return {"open": opened - start, "pass": (end - opened) * count / max(1, count - 1), "batches": count, "grown": highest[0] - before}


def forget(folder: Path) -> None:
    """Drops a folder's files from the file cache."""
    for file in folder.iterdir():
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def fresh(*arguments: Any) -> dict[str, float]:
    """`one_pass` in a forked process, whose memory nothing else has used before."""
    receive, send = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=lambda: send.send(one_pass(*arguments)))
    process.start()
    send.close()
    try:
        return receive.recv()
    except EOFError:
        raise RuntimeError(f"the measuring process ended with code {process.exitcode}") from None
    finally:
        process.join()


def rows_of(case: str, amount: int, samples: list[dict[str, float]], floor: float, note: str = "") -> list[Row]:
    """Rate and memory of a case."""
    grown = [sample["grown"] / GIB for sample in samples]
    opened = f"opened in {statistics.median(sample['open'] for sample in samples):.2f} s"
    return [
        compare(case, [sample["pass"] for sample in samples], amount=amount, unit="edits/s", floor_seconds=floor, note=note),
        Row(f"{case}, memory", "GiB", ours=max(grown), spread=quartile_distance(grown), repeats=len(grown), note=opened),
    ]


class Bench:
    """The passes of one run, all of batches of the same size, and what the machine could do at best."""

    def __init__(self, cfg: Settings, root: Path) -> None:
        self.cfg, self.root = cfg, root
        self.rates = measure_rates(width=256 if cfg.miniature else 2048)

    def floor(self, count: int, widths: tuple[int, int]) -> float:
        """Seconds in which so many edits can be read from the mapped file and written into batches."""
        return self.rates.floor_seconds(0, 2.0 * count * 4 * sum(widths))

    def rows(self, case: str, amount: int, reads: Callable[[], Iterator[Any]], widths: tuple[int, int] = WIDTHS["gpt2-xl"]) -> list[Row]:
        return rows_of(case, amount, [fresh(reads, None, []) for _ in range(self.cfg.repeats)], self.floor(amount, widths))

    def figure(self, path: Path) -> list[Row]:
        """The largest store: ours and the reference in turns."""
        count, batch = self.cfg.edits, self.cfg.batch
        ours, reference = [], []
        for _ in range(self.cfg.repeats):
            ours.append(fresh(lambda: mapped(path, batch), None, []))
            reference.append(fresh(lambda: plain(path, batch), REFERENCE_BATCHES, []))
        plain_seconds = [sample["pass"] * count / (sample["batches"] * batch) for sample in reference]
        floor, note = self.floor(count, WIDTHS["gpt2-xl"]), f"{count:,} edits of GPT2-XL width, batch {batch}, shuffled"
        rate, memory = rows_of("figure/loader", count, ours, floor, note)
        return [compare("figure/loader", [s["pass"] for s in ours], plain_seconds, **_kept(rate, count, floor)), memory]

    def of_the_largest(self) -> list[Row]:
        count, batch = self.cfg.edits, self.cfg.batch
        path, parquet = make_store(self.root / "large", count, *WIDTHS["gpt2-xl"]), self.root / "parquet"
        rows = self.figure(path)
        uncached = fresh(lambda: mapped(path, batch), None, [path])
        rows += rows_of("files not cached", count, [uncached], self.floor(count, WIDTHS["gpt2-xl"]), "one pass")
        for workers in (1, 2):
            rows += self.rows(f"{workers} loader processes", count, lambda workers=workers: mapped(path, batch, workers))
        write_parquet(EditStore(path), parquet)
        shutil.rmtree(path)
        rows += self.rows("streamed from Parquet", count, lambda: streamed(parquet, batch))
        shutil.rmtree(parquet)
        return rows

    def by_count(self) -> list[Row]:
        rows = []
        for count in (self.cfg.edits // 100, self.cfg.edits // 10):
            path = make_store(self.root / str(count), count, *WIDTHS["gpt2-xl"])
            rows += self.rows(f"{count:,} edits", count, lambda path=path: mapped(path, self.cfg.batch))
            shutil.rmtree(path)
        return rows

    def by_width(self) -> list[Row]:
        rows, count = [], self.cfg.edits // 20
        for name, widths in WIDTHS.items():
            path = make_store(self.root / name, count, *widths)
            rows += self.rows(f"{count:,} edits, {name}", count, lambda path=path: mapped(path, self.cfg.batch), widths)
            shutil.rmtree(path)
        return rows

    def by_layers(self) -> list[Row]:
        count, rows = self.cfg.edits // 50, []
        path = make_store(self.root / "layer", count, *WIDTHS["gpt2-xl"])
        for layers in (1, 4, 12):
            rows += self.rows(f"{layers} layers of {count:,} edits", layers * count, partial(all_layers, [path] * layers, self.cfg.batch))
        return rows


def _kept(rate: Row, amount: int, floor: float) -> dict[str, Any]:
    return {"amount": amount, "unit": rate.unit, "floor_seconds": floor, "note": f"{rate.note}; reference: datasets in torch format"}


@run_command
def main(argv: list[str] | None = None) -> None:
    cfg = settings(Settings, sys.argv[1:] if argv is None else argv)
    cfg.edits = 2_000 if cfg.miniature else cfg.edits
    disable_progress_bars()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="palimpsest-scale-", dir=cfg.folder or None) as root:
        bench = Bench(cfg, Path(root))
        rows = bench.of_the_largest() + bench.by_count() + bench.by_width() + bench.by_layers()
    write("scale", rows, cfg.out)


if __name__ == "__main__":
    main()
