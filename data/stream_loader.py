"""Batches out of a stream of edits: shuffled in a buffer, cut to size, read ahead by a thread.

Shape letters: B edits in a batch, N edits of a split, T object tokens, D hidden width, F MLP width.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from data.batches import own_share, without_common_padding
from data.store.parquet import EditStream, Vectors, joined
from decoder.batch import EditBatch
from decoder.dense import applied
from decoder.edit import LayerEdits

T = TypeVar("T")


@dataclass(eq=False)
class StreamLoader:
    """Batches of some rows of a stream, read ahead by a thread.

    Args:
        object_ids_NT: what each of the rows planted, as `padded_objects` gives it.
        shuffle: seed and buffer size of a shuffled pass: files come in a drawn order, and rows are drawn from a buffer. It follows from
            seed and epoch alone.
        prefetch: batches that are ready before they are asked for.
        rank, world: which share of every batch this process has.
    """

    stream: EditStream
    rows: list[int]
    object_ids_NT: Tensor
    batch_size: int
    _: KW_ONLY
    shuffle: tuple[int, int] | None = None
    weight_DF: Tensor | Mapping[int, Tensor] | None = None
    prefetch: int = 2
    rank: int = 0
    world: int = 1
    epoch: int = 0

    batch_sampler = None  # Lightning looks here, then at `sampler`

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    @property
    def sampler(self) -> "StreamLoader":
        """Where Lightning looks for `set_epoch`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[EditBatch]:
        return ahead(self._batches(), self.prefetch)

    def _batches(self) -> Iterator[EditBatch]:
        if self.shuffle is None:
            parts = self.stream.vectors(self.rows)
        else:
            seed, size = self.shuffle
            rng = np.random.default_rng((seed, self.epoch))
            parts = shuffled(self.stream.vectors(self.rows, self.stream.file_order(rng)), size, rng)
        rows = torch.tensor(self.rows)
        for part in cut(parts, self.batch_size):
            own = part[own_share(list(range(len(part.place_B))), self.rank, self.world)]
            edits = self.stream.built(own)
            if isinstance(self.weight_DF, Mapping):
                edits = LayerEdits({layer: applied(terms, self.weight_DF[layer]) for layer, terms in edits.by_layer.items()})
            elif self.weight_DF is not None:
                edits = applied(edits, self.weight_DF)
            yield EditBatch(edits, without_common_padding(self.object_ids_NT[own.place_B]), rows[own.place_B])


def shuffled(parts: Iterable[Vectors], size: int, rng: np.random.Generator) -> Iterator[Vectors]:
    """The same edits, each drawn from the `size` that were read before it."""
    buffer = None
    for part in (read[start : start + size] for read in parts for start in range(0, len(read.place_B), size)):
        if buffer is None or len(buffer.place_B) < size:
            buffer = part if buffer is None else joined([buffer, part])
            continue
        drawn = rng.choice(len(buffer.place_B), len(part.place_B), replace=False)
        out = buffer[drawn]
        for held, new in zip((buffer.place_B, *buffer.columns), (part.place_B, *part.columns), strict=True):
            held[drawn] = new
        yield out
    if buffer is not None:
        yield buffer[rng.permutation(len(buffer.place_B))]


def cut(parts: Iterable[Vectors], size: int) -> Iterator[Vectors]:
    """The same edits in the same order, `size` at a time; fewer at the end."""
    held: list[Vectors] = []
    for part in parts:
        held.append(part)
        while sum(len(part.place_B) for part in held) >= size:
            whole = joined(held)
            yield whole[:size]
            held = [whole[size:]]
    if held and len((rest := joined(held)).place_B):
        yield rest


def ahead(items: Iterable[T], count: int) -> Iterator[T]:
    """The same items, up to `count` of them made by a thread before they are asked for."""
    source, end, made = iter(items), object(), deque()
    thread = ThreadPoolExecutor(1, thread_name_prefix="reads ahead")
    try:
        while True:
            made.extend(thread.submit(next, source, end) for _ in range(count - len(made)))
            if (item := made.popleft().result()) is end:
                return
            yield item
    finally:
        thread.shutdown(wait=False, cancel_futures=True)
