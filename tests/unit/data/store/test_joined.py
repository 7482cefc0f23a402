"""Stores of several editors read as one.

Shape letters: B edits, R rank, D hidden width, F MLP width.
"""

import pytest
import torch
from torch.nn.functional import pad

from data.datamodule import EditDataModule
from data.produce.plan import settings_of
from data.produce.shards import produce
from data.store.joined import JoinedStores
from data.store.store import EditStore
from decoder.config import TrainConfig
from decoder.config.compose import compose
from decoder.config.identity import editor_of, run_folder
from decoder.dense import DenseEdit
from decoder.edit import LowRankEdit, RankOneEdit
from decoder.training.module import DecoderModule
from decoder.utils.errors import UserError

FEW = ["splits.train_relations=2", "splits.val_relations=1", "splits.ood_relations=1", "experiment=smoke", "edits.steps=2"]
FEW += ["splits.minimum.train=0", "splits.minimum.val_id=0", "splits.minimum.val_new=0", "splits.minimum.id=0"]
FEW += ["splits.minimum.ood=0", "splits.minimum.unseen_object=0", "edits.key_tokens=200"]


@pytest.fixture(scope="module")
def made(fact_host, tmp_path_factory):
    """Folders of stores of the same facts by an editor of rank one, another one, and one of whole matrices."""
    top = tmp_path_factory.mktemp("joined")
    argv = {name: [f"edits={name}", f"store={top / name}", *FEW] for name in ("rome", "memit", "ft")}
    for words in argv.values():
        produce(compose(TrainConfig, "train", words), fact_host)
    return top


@pytest.fixture()
def stores(made):
    return {name: EditStore(made / name) for name in ("rome", "memit", "ft")}


def datamodule(made, fact_host, monkeypatch, first, *others, **settings) -> EditDataModule:
    # Edits of two steps fail, and would be in no split.
    table = EditStore.table
    monkeypatch.setattr(EditStore, "table", lambda self: table(self).assign(success=True))
    more = [f"data.{name}={value}" for name, value in settings.items()]
    cfg = compose(TrainConfig, "train", [f"edits={first}", f"store={made / first}", also(made, *others), *more, *FEW])
    edits = EditDataModule(cfg, fact_host)
    edits.prepare_data()
    edits.setup()
    return edits


def also(made, *names):
    return f"data.also=[{','.join(str(made / name) for name in names)}]"


def test_rows_come_in_the_order_asked_for_from_whichever_store(stores):
    joined = JoinedStores([stores["rome"], stores["memit"]])
    count = len(stores["rome"])
    edits = joined.edits(torch.tensor([count + 2, 1, count, 0]))
    assert len(joined) == 2 * count and isinstance(edits, RankOneEdit)
    for name in ("key_BF", "value_BD"):
        rome, memit = (getattr(stores[editor].edits(torch.arange(3)), name) for editor in ("rome", "memit"))
        assert torch.equal(getattr(edits, name), torch.stack([memit[2], rome[1], memit[0], rome[0]]))
    assert joined.object_ids == stores["rome"].object_ids + stores["memit"].object_ids
    table = joined.table()
    assert table["edit_id"].tolist() == 2 * stores["rome"].table()["edit_id"].tolist()
    assert table["editor"].tolist() == ["rome"] * count + ["memit"] * count
    assert joined.facts(count + 1)[0]["edit_id"] == stores["memit"].facts(1)[0]["edit_id"] != joined.facts(count)[0]["edit_id"]
    assert joined.manifest["editor"]["name"] == "rome+memit" and joined.manifest["requests"]["count"] == 2 * count


def test_ranks_are_mixed_and_whole_matrices_are_read_where_a_row_needs_one(stores, fact_host):
    joined, weight_DF = JoinedStores([stores["rome"], stores["ft"]]), fact_host.weight_DF(1)
    count = len(stores["rome"])
    rows = torch.tensor([count + 1, 3])
    edits = joined.edits(rows)
    assert isinstance(edits, LowRankEdit) and edits.key_BRF.shape[1] == 8
    assert torch.equal(edits.key_BRF[0], stores["ft"].edits(torch.tensor([1])).key_BRF[0])
    assert torch.equal(edits.key_BRF[1], pad(stores["rome"].edits(torch.tensor([3])).key_BF, (0, 0, 0, 7)))
    whole = joined.whole_edits(rows, weight_DF)
    assert isinstance(whole, DenseEdit)
    for place, (name, row) in enumerate((("ft", 1), ("rome", 3))):
        assert torch.equal(whole.weight_BDF[place], stores[name].whole_edits(torch.tensor([row]), weight_DF).weight_BDF[0])
    assert isinstance(joined.whole_edits(torch.tensor([0, 3]), weight_DF), RankOneEdit)


def test_a_batch_has_edits_of_one_editor_and_an_epoch_all_of_them(made, fact_host, monkeypatch):
    edits = datamodule(made, fact_host, monkeypatch, "rome", "ft", batch_size=3)
    batches = list(edits.train_dataloader())
    editors = [edits.table["editor"].iloc[batch.row_B.tolist()].unique().tolist() for batch in batches]
    assert all(len(names) == 1 for names in editors) and {names[0] for names in editors} == {"rome", "ft"}
    assert [names[0] for names in editors] != sorted(names[0] for names in editors), "they take turns"
    assert sorted(torch.cat([batch.row_B for batch in batches]).tolist()) == sorted(edits.rows["train"])
    assert len(edits.train_dataloader()) == len(batches)
    for names, batch in zip(editors, batches, strict=True):
        assert isinstance(batch.edits, DenseEdit if names == ["ft"] else RankOneEdit)
    few = datamodule(made, fact_host, monkeypatch, "rome", "ft", max_train=4)
    assert few.table["editor"].iloc[few.rows["train"]].value_counts().tolist() == [2, 2]


def test_every_editor_has_its_keys_and_whole_matrices_are_trained_on_as_they_are(made, fact_host, monkeypatch):
    edits = datamodule(made, fact_host, monkeypatch, "rome", "memit", "ft", made_up_keys=5)
    assert (edits.cfg.optim.recombined, edits.cfg.optim.value_noise) == (0.3, 0.3)
    rome_KF, memit_KF, ft_KF = (keys[1] for keys in edits.probe_keys())
    assert torch.equal(rome_KF, memit_KF) and ft_KF.shape == rome_KF.shape and not torch.allclose(ft_KF, rome_KF)
    module = DecoderModule(edits.cfg, fact_host)
    module._trainer = None
    monkeypatch.setattr(DecoderModule, "current_epoch", 0)
    monkeypatch.setattr(DecoderModule, "global_rank", 0)
    by_kind = {type(batch.edits): batch for batch in edits.train_dataloader()}
    assert module._varied(by_kind[DenseEdit], 0) is by_kind[DenseEdit].edits
    assert not torch.equal(module._varied(by_kind[RankOneEdit], 0).value_BD, by_kind[RankOneEdit].edits.value_BD)


def test_what_cannot_be_joined_is_refused_in_one_line(stores, made, tmp_path):
    with pytest.raises(ValueError, match="has the edits of another. Leave it out"):
        JoinedStores([stores["rome"], stores["rome"]])
    stores["memit"].manifest["layer"] = 0
    with pytest.raises(ValueError, match=r"made with edits\.layer=0 \(here 1\)"):
        JoinedStores([stores["rome"], stores["memit"]])
    stores["ft"].manifest["editor"]["name"] = "imported"
    with pytest.raises(ValueError, match="holds edits of other tools"):
        JoinedStores([stores["rome"], stores["ft"]])
    for more in ("data.streaming=true", "data.form=dense"):
        with pytest.raises(UserError, match="Leave out data.streaming and data.form=dense"):
            compose(TrainConfig, "train", [also(made, "memit"), more, "optim.recombined=0", "optim.value_noise=0"])


def test_a_run_is_named_by_all_its_editors_and_the_settings_of_a_store_come_back(made):
    cfg = compose(TrainConfig, "train", ["edits=memit", also(made, "rome", "ft")])
    assert editor_of(cfg) == "memit+rome+ft" and run_folder(cfg).name == "memit+rome+ft-e1-t1-s0"
    asked = compose(TrainConfig, "train", ["edits=ft", *FEW]).edits
    found = settings_of(EditStore(made / "ft").manifest)
    assert (type(found), found.steps, found.rank, found.layer) == (type(asked), 2, 8, 1)
    assert settings_of(EditStore(made / "memit").manifest).key_tokens == 200
