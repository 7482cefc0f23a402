"""Which edits make up a batch: orders, shares of several processes, loader processes, page-locked memory.

Shape letters: B edits, T object tokens.
"""

from types import SimpleNamespace

import pytest
import torch

from data.batches import EpochShuffle, SharedBatches
from decoder.batch import EditBatch
from decoder.edit import RankOneEdit

pytestmark = pytest.mark.usefixtures("drawn_edits", "alive")


@pytest.mark.parametrize(("length", "size", "world"), [(100, 32, 2), (97, 32, 2), (33, 32, 2), (34, 32, 3), (5, 8, 4), (7, 3, 8)])
def test_processes_share_the_batches_of_one(length, size, world):
    order = EpochShuffle(length, seed=3)
    order.set_epoch(2)
    alone = list(SharedBatches(order, size, 0, 1))
    shares = [list(SharedBatches(order, size, rank, world)) for rank in range(world)]
    assert [len(batch) for batch in alone] == [size] * (length // size) + [length % size] * (length % size > 0)
    assert {len(share) for share in shares} == {len(alone)} == {len(SharedBatches(order, size, 0, 1))}
    for whole, *parts in zip(alone, *shares, strict=True):
        assert all(parts), "a process without edits would leave the others waiting"
        if len(whole) >= world:
            assert sorted(row for part in parts for row in part) == sorted(whole)
            assert max(map(len, parts)) - min(map(len, parts)) <= 1
        else:
            assert all(part == whole for part in parts)


def as_process(edits, rank, world):
    edits.trainer = SimpleNamespace(global_rank=rank, world_size=world)
    return edits


def test_every_tested_edit_is_scored_once_by_three_processes(opened):
    edits = opened(eval_batch_size=50)
    edits.rows["unseen_object"] = edits.rows["unseen_object"][:2]
    for place, split in enumerate(edits.test_splits):
        loaders = [as_process(edits, rank, 3).test_dataloader()[place] for rank in range(3)]
        rows = [batch.row_B for loader in loaders for batch in loader]
        assert sorted(torch.cat(rows).tolist()) == sorted(edits.rows[split]), split
    assert len(loaders[2]) > 0 and len(as_process(edits, 2, 3).test_dataloader()[2]) == 0, "two edits for three processes"


def test_training_batches_of_two_processes_are_those_of_one(opened):
    alone = [batch.row_B.tolist() for batch in opened(batch_size=32).train_dataloader()]
    first, second = ([b.row_B.tolist() for b in as_process(opened(batch_size=32), rank, 2).train_dataloader()] for rank in range(2))
    assert [sorted(a + b) for a, b in zip(first, second, strict=True)] == [sorted(batch) for batch in alone]


def test_loader_processes_read_the_same(opened):
    own, others = opened(eval_batch_size=64), opened(eval_batch_size=64, workers=2, prefetch=3)
    (loader,) = others.val_dataloader()[:1]
    assert loader.num_workers == 2 and loader.prefetch_factor == 3 and loader.persistent_workers
    for ours, theirs in zip(own.val_dataloader()[0], loader, strict=True):
        assert torch.equal(ours.edits.key_BF, theirs.edits.key_BF) and torch.equal(ours.edits.value_BD, theirs.edits.value_BD)
        assert torch.equal(ours.object_ids_BT, theirs.object_ids_BT) and torch.equal(ours.row_B, theirs.row_B)


def test_memory_is_pinned_where_there_is_a_gpu(opened, monkeypatch):
    assert not opened().val_dataloader()[0].pin_memory or torch.cuda.is_available()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert opened().val_dataloader()[0].pin_memory and not opened(pin_memory=False).val_dataloader()[0].pin_memory


@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory needs a GPU")
def test_pinned_batches_arrive_as_they_were(opened):
    edits = opened()
    for pinned, plain in zip(edits.val_dataloader()[0], opened(pin_memory=False).val_dataloader()[0], strict=True):
        assert pinned.edits.key_BF.is_pinned() and pinned.object_ids_BT.is_pinned()
        there = edits.transfer_batch_to_device(pinned, torch.device("cuda"), 0)
        assert torch.equal(there.edits.value_BD.cpu(), plain.edits.value_BD) and there.row_B.device.type == "cuda"


def test_batch_moves_whole():
    batch = EditBatch(RankOneEdit(torch.randn(2, 3), torch.randn(2, 4)), torch.ones(2, 1, dtype=torch.long), torch.arange(2))
    moved = batch.on(torch.device("meta"))
    assert {part.device.type for part in (moved.edits.key_BF, moved.edits.value_BD, moved.object_ids_BT, moved.row_B)} == {"meta"}


def test_large_splits_are_cut_for_what_is_held_in_memory(opened, monkeypatch):
    edits = opened()
    whole = edits.factors("train")
    monkeypatch.setattr("data.datamodule.MOST_IN_MEMORY", 100)
    some = edits.factors("train")
    assert len(whole.edits) == len(edits.rows["train"]) > len(some.edits) == 100
    per_relation = edits.table.iloc[some.row_B.tolist()]["relation"].value_counts()
    assert len(per_relation) == 17 and per_relation.max() - per_relation.min() <= 1
