"""Opening and loading a store of the planned edits, with an editor that draws its factors instead of optimising them.

Shape letters: B edits, T object tokens, D hidden width, F MLP width.
"""

from collections import Counter

import pytest
import torch
from drawn_stores import DrawnEdits, config

from data.batches import EditRows
from data.datamodule import EditDataModule
from data.facts.planting import spelt
from decoder.batch import PADDING
from decoder.config import TrainConfig
from decoder.dense import DenseEdit
from decoder.edit import RankOneEdit
from decoder.model import ObjectDecoder

pytestmark = pytest.mark.usefixtures("drawn_edits", "alive")


def test_splits_are_named_in_order(opened):
    edits = opened(eval_batch_size=64)
    assert edits.val_splits == ["val/id", "val/new"] and edits.test_splits == ["id", "ood", "unseen_object", "val/id", "val/new"]
    for names, loaders in ((edits.val_splits, edits.val_dataloader()), (edits.test_splits, edits.test_dataloader())):
        for split, loader in zip(names, loaders, strict=True):
            batches = list(loader)
            assert torch.cat([batch.row_B for batch in batches]).tolist() == edits.rows[split]
            assert {len(batch.edits) for batch in batches[:-1]} <= {64}


def test_empty_splits_have_no_loader(store_path, fact_host):
    edits = EditDataModule(config(store_path), fact_host)
    edits.setup()
    edits.rows = edits.rows | {"val/new": [], "unseen_object": []}
    assert edits.val_splits == ["val/id"] and edits.test_splits == ["id", "ood", "val/id"]
    assert len(edits.val_dataloader()) == 1 and len(edits.test_dataloader()) == 3


@pytest.mark.parametrize(("key", "told"), [("id_per_relation", "0 id edits"), ("other_per_relation", "0 val/new edits")])
def test_too_few_planned_edits_are_refused_before_any_is_made(fact_host, tmp_path, key, told):
    cfg = config(tmp_path / "store")
    setattr(cfg.splits, key, 0)
    with pytest.raises(ValueError, match=rf"^splits\.{key}=0: {told} are planned, fewer than splits\.minimum\."):
        EditDataModule(cfg, fact_host).prepare_data()
    assert DrawnEdits.asked == [] and not list(tmp_path.iterdir())


def test_training_rows_come_once_an_epoch_in_another_order(opened):
    edits = opened()

    def order(epoch: int) -> list[int]:
        loader = edits.train_dataloader()
        loader.batch_sampler.sampler.set_epoch(epoch)
        return torch.cat([batch.row_B for batch in loader]).tolist()

    first, second = order(0), order(1)
    assert order(1) == second, "an epoch has its order whatever came before, as a resumed fit needs it"
    assert sorted(first) == sorted(second) == sorted(edits.rows["train"]) and first != second != edits.rows["train"]
    assert edits.table["success"].iloc[first].all() and not edits.table["success"].all()


def test_batch_is_the_edits_and_their_objects(opened, fact_host):
    edits = opened()
    batch = next(iter(edits.train_dataloader()))
    table = edits.table.iloc[batch.row_B.tolist()]
    stored = edits.store.dataset.with_format("torch")[:]
    assert torch.equal(batch.edits.key_BF, stored["key"][batch.row_B])
    assert torch.equal(batch.edits.value_BD, stored["value"][batch.row_B])
    wanted = [[*fact_host.object_ids(object), fact_host.terminator_id] for object in table["object"]]
    longest = max(map(len, wanted))
    assert batch.object_ids_BT.tolist() == [ids + [PADDING] * (longest - len(ids)) for ids in wanted]


def test_padding_is_no_longer_than_the_batch_needs(opened):
    edits = opened()
    rows = EditRows(edits.store, list(range(len(edits.store))), 2)
    lengths = [len(ids) + 1 for ids in edits.store.object_ids]
    short, long = lengths.index(min(lengths)), lengths.index(max(lengths))
    assert rows.__getitems__([short]).object_ids_BT.shape == (1, min(lengths))
    both_BT = rows.__getitems__([short, long]).object_ids_BT
    assert both_BT.shape == (2, max(lengths)) and (both_BT[0, min(lengths) :] == PADDING).all() and both_BT[1, -1] == 2


def test_without_terminator_an_object_ends_with_its_last_token(opened):
    store = opened().store
    batch = EditRows(store, [4], None).__getitems__([0])
    assert batch.object_ids_BT.tolist() == [store.object_ids[4]]


def test_factors_and_whole_matrices_are_read_alike(opened, fact_host):
    layer = TrainConfig().edits.layer
    decoder = ObjectDecoder(fact_host, edited_layers=[layer], trained_layers=[2], prompt_MD=torch.randn(4, 32))
    factors, dense = (next(iter(opened(form=form).val_dataloader()[0])) for form in ("factors", "dense"))
    assert isinstance(factors.edits, RankOneEdit) and isinstance(dense.edits, DenseEdit)
    assert torch.equal(factors.object_ids_BT, dense.object_ids_BT) and torch.equal(factors.row_B, dense.row_B)
    with torch.no_grad():
        # float32; W x + (k.x) v against (W + v k') x.
        torch.testing.assert_close(
            decoder(dense.edits, dense.object_ids_BT), decoder(factors.edits, factors.object_ids_BT), rtol=1e-5, atol=1e-5
        )


def test_a_split_in_one_batch_is_factors_whatever_the_form(opened):
    edits = opened(form="dense")
    batch = edits.factors("ood")
    assert isinstance(batch.edits, RankOneEdit) and batch.row_B.tolist() == edits.rows["ood"]


def test_shuffled_labels_are_permuted_in_training_only(opened):
    plain, shuffled = opened(), opened(shuffle_labels=True)
    own, other = (
        {row: tuple(ids) for batch in edits.train_dataloader() for row, ids in zip(batch.row_B.tolist(), unpadded(batch), strict=True)}
        for edits in (plain, shuffled)
    )
    assert Counter(own.values()) == Counter(other.values()) and own.keys() == other.keys()
    changed = sum(own[row] != other[row] for row in own) / len(own)
    assert changed > 0.9
    assert unpadded(shuffled.factors("train")) == unpadded(plain.factors("train"))
    assert unpadded(next(iter(shuffled.val_dataloader()[0]))) == unpadded(next(iter(plain.val_dataloader()[0])))


def unpadded(batch) -> list[list[int]]:
    return [[token for token in ids if token != PADDING] for ids in batch.object_ids_BT.tolist()]


def test_fewer_training_edits_are_drawn_evenly_over_relations(opened):
    edits = opened(max_train=100)
    assert len(edits.rows["train"]) == 100 and set(edits.rows["train"]) < set(opened().rows["train"])
    per_relation = edits.table.iloc[edits.rows["train"]]["relation"].value_counts()
    assert len(per_relation) == 17 and per_relation.max() - per_relation.min() <= 1


def test_what_is_planted_on_top_is_among_fewer_training_edits_as_it_is_among_all(drawn_edits, fact_host, tmp_path):
    cfg = config(tmp_path / "spelt")
    cfg.splits.spelt_per_relation = cfg.splits.train_per_relation
    shares = []
    for cfg.data.max_train in (None, 340):
        edits = EditDataModule(cfg, fact_host)
        edits.prepare_data()
        edits.setup()
        training = edits.table.iloc[edits.rows["train"]]
        shares.append(training["object"].isin(spelt()).mean())
    counts = training["relation"].value_counts()
    assert len(training) == 340 and counts.max() - counts.min() <= 1
    assert shares[0] > 0.45 and abs(shares[1] - shares[0]) < 0.08


def test_single_facts_are_not_told_apart_however_often_the_store_is_opened(opened):
    edits = opened()
    for _ in range(2):
        assert not edits.is_apart and len(edits.factors("train").edits) == len(edits.rows["train"])
        edits.prepare_data()  # as a trainer does before its tests
        assert not edits.is_apart


def test_seen_objects_and_kinds(opened):
    edits = opened()
    training = edits.table.iloc[edits.rows["train"]]
    ood = edits.table.iloc[edits.rows["ood"]]
    assert training["seen_object"].all() and training["seen_kind"].all()
    assert (ood["seen_object"] == [object in set(training["object"]) for object in ood["object"]]).all() and ood[
        "seen_object"
    ].nunique() == 2
    assert (ood["seen_kind"] == [kind in set(training["kind"]) for kind in ood["kind"]]).all() and ood["seen_kind"].nunique() == 2
    assert not edits.table.iloc[edits.rows["unseen_object"]]["seen_object"].any()


def test_training_subjects_and_templates_are_of_training_only(opened):
    edits = opened()
    others = edits.table.iloc[[row for split in edits.test_splits for row in edits.rows[split]]]
    assert edits.training_subjects and not set(edits.training_subjects) & set(others["subject"])
    assert len(edits.training_templates) == 17 * 3
    assert not set(edits.training_templates) & set(edits.table.iloc[edits.rows["ood"] + edits.rows["val/new"]]["prompt"])
