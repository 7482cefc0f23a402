"""Which edits make up a batch, and on which process.

Shape letters: B edits in a batch, N edits of a split, T object tokens.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from data.store.store import EditStore
from decoder.batch import PADDING, EditBatch


class EditRows(Dataset):
    """Some rows of a store; a list of indices gives a whole `EditBatch`, read in one piece.

    Args:
        weight_DF: the host's W_V, of several layers by layer; given, batches carry whole matrices W'_V instead of factors.
        planted: rows whose objects are the targets, if not the rows themselves (the shuffled-label control).
    """

    def __init__(
        self,
        store: EditStore,
        rows: list[int],
        terminator_id: int | None,
        weight_DF: Tensor | Mapping[int, Tensor] | None = None,
        planted: list[int] | None = None,
    ) -> None:
        self.store, self.rows, self.weight_DF = store, torch.tensor(rows, dtype=torch.long), weight_DF
        self.object_ids_NT = padded_objects(store, planted or rows, terminator_id)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: list[int]) -> EditBatch:
        rows_B = self.rows[indices]
        edits = self.store.edits(rows_B) if self.weight_DF is None else self.store.whole_edits(rows_B, self.weight_DF)
        return EditBatch(edits, without_common_padding(self.object_ids_NT[indices]), rows_B)


def padded_objects(store: EditStore, rows: list[int], terminator_id: int | None) -> Tensor:
    """Object tokens (N, T) of some rows, each with its terminator if the host has one, then `PADDING`."""
    end = [] if terminator_id is None else [terminator_id]
    objects = [store.object_ids[row] + end for row in rows]
    ids_NT = np.full((len(objects), max(map(len, objects), default=0)), PADDING, dtype=np.int64)
    for place, ids in enumerate(objects):
        ids_NT[place, : len(ids)] = ids
    return torch.from_numpy(ids_NT)


def without_common_padding(object_ids_BT: Tensor) -> Tensor:
    return object_ids_BT[:, : int((object_ids_BT != PADDING).sum(1).max())]


class EpochShuffle(Sampler[int]):
    """Rows in an order that follows from seed and epoch alone, so that a resumed fit sees what it would have seen."""

    def __init__(self, length: int, seed: int) -> None:
        self.length, self.seed, self.epoch = length, seed, 0

    def __len__(self) -> int:
        return self.length

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before every epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.length)
        return iter(order.tolist())


class SharedBatches(Sampler[list[int]]):
    """What one of `world` processes has of every batch of `batch_size` edits; together they see what a single process would.

    All processes get as many batches. A last batch that is too small to be shared is read whole by every one of them, which gives
    the same mean gradient.

    Args:
        group_N: given, no batch has edits of two groups; the batches of all groups are spread over the epoch.
    """

    def __init__(self, sampler: EpochShuffle, batch_size: int, rank: int, world: int, group_N: Sequence[int] | None = None) -> None:
        self.sampler, self.batch_size, self.rank, self.world = sampler, batch_size, rank, world
        self.group_N = group_N or [0] * len(sampler)

    def __len__(self) -> int:
        return sum(-(-size // self.batch_size) for size in Counter(self.group_N).values())

    def __iter__(self) -> Iterator[list[int]]:
        by_group: dict[int, list[int]] = {}
        for index in self.sampler:
            by_group.setdefault(self.group_N[index], []).append(index)
        placed = [
            (start / len(order), order[start : start + self.batch_size])
            for order in by_group.values()
            for start in range(0, len(order), self.batch_size)
        ]
        for _, batch in sorted(placed, key=itemgetter(0)):
            yield own_share(batch, self.rank, self.world)


def own_share(batch: list[int], rank: int, world: int) -> list[int]:
    return batch[rank::world] if len(batch) >= world else batch


def as_is(batch: EditBatch) -> EditBatch:
    """The datasets read whole batches, so there is nothing left to collate."""
    return batch
