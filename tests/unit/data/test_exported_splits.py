"""An exported decoder's tests over its own store and over others: which edits are shown, and in which precision.

Shape letters: N edits, D hidden width, F MLP width.
"""

import json

import pytest
import torch
from changed_decoders import FACTS
from mean_of_texts import mean_of_texts

import evaluate
from data.exported_splits import exported_splits
from data.store.store import SCORE_COLUMNS, TEXT_COLUMNS, EditStore
from data.store.writer import StoreWriter
from decoder import scores
from decoder.answers import object_texts
from decoder.audit.decoded.answer import read_splits
from decoder.checkpoint.rounding import PRECISIONS
from decoder.dense import DenseEdit
from decoder.edit import RankOneEdit
from decoder.export.opened import Voters
from decoder.export.save import save_decoder
from decoder.host import Host
from decoder.model import ObjectDecoder

LAYER = 1
IDS = [f"P1-{n:03d}-x" for n in range(12)]
SPLITS = {"train": IDS[:4], "id": IDS[4:7], "ood": IDS[7:11], "unseen_object": [], "val/id": IDS[11:]}


def written(host, path, ids=IDS, failed=(), editor="rome", seed=0) -> EditStore:
    """A store of drawn factors, those of one edit the same in every store of a seed."""
    generator = torch.Generator().manual_seed(seed)
    key_NF, value_ND = torch.randn(12, host.mlp_size(LAYER), generator=generator), torch.randn(12, host.hidden_size, generator=generator)
    rows = [IDS.index(edit_id) for edit_id in ids]
    columns = {name: [f"{name} {row}" for row in rows] for name in TEXT_COLUMNS} | {name: [1.0] * len(rows) for name in SCORE_COLUMNS}
    columns |= {"edit_id": list(ids), "object": ["Oslo"] * len(rows), "object_ids": [host.object_ids("Oslo")] * len(rows)}
    columns |= {"key": key_NF[rows], "value": 0.3 * value_ND[rows], "success": [edit_id not in failed for edit_id in ids]}
    manifest = {"editor": {"name": editor}, "layer": LAYER, "host": {"fingerprint": host.fingerprint}}
    writer = StoreWriter(path, manifest, 12)
    writer.write_shard(0, columns, [])
    return writer.finish(1, [])


@pytest.fixture
def host(host_of):
    return host_of("llama")


@pytest.fixture
def own(host, tmp_path) -> EditStore:
    return written(host, tmp_path / "own")


def config(store: EditStore) -> dict:
    return {"store": store.fingerprint, "splits": SPLITS, "edited_layer": LAYER, "search": {"beams": 2, "max_object_tokens": 3}}


def shown(splits) -> dict[str, list[str]]:
    ids = splits.table["edit_id"]
    return {name: ids.iloc[torch.cat([batch.row_B for batch in loader]).tolist()].tolist() for name, loader in splits.loaders.items()}


def test_own_store_shows_exactly_what_was_exported(own, host):
    splits = exported_splits(own, config(own), host)
    assert shown(splits) == {"id": SPLITS["id"], "ood": SPLITS["ood"]} and not splits.left_out
    assert splits.table["seen_object"].all() and set(splits.table.columns) >= {"seen_object", "seen_kind"}
    with pytest.raises(ValueError, match="lacks 1 of the decoder's id edits, P0-x first"):
        exported_splits(own, config(own) | {"splits": SPLITS | {"id": [*SPLITS["id"], "P0-x"]}}, host)


def test_another_editors_store_shows_the_same_edits_that_it_made(own, host, tmp_path):
    """In another order, one missing, one that failed there: both are counted, none is scored."""
    ids = [edit_id for edit_id in reversed(IDS) if edit_id != SPLITS["id"][0]]
    other = written(host, tmp_path / "other", ids, failed=[SPLITS["ood"][1]], editor="r-rome", seed=1)
    splits = exported_splits(other, config(own), host)
    assert shown(splits) == {"id": SPLITS["id"][1:], "ood": [SPLITS["ood"][0], *SPLITS["ood"][2:]]}
    assert splits.left_out == {"id": 1, "ood": 1}


def test_a_store_without_training_edits_does_not_say_which_objects_training_had(own, host, tmp_path):
    decoder = ObjectDecoder(host, edited_layers=[LAYER], trained_layers=[], prompt_MD=torch.randn(3, host.hidden_size))
    tests = written(host, tmp_path / "tests", [*SPLITS["id"], *SPLITS["ood"]], editor="memit")
    for store, cells in ((own, {"ood_seen_object"}), (tests, set())):
        splits = exported_splits(store, config(own), host)
        readings = read_splits(Voters([decoder], [config(own)]), splits.loaders, splits.table)
        assert {name for name in scores.test_scores(readings) if name in scores.OOD_CELLS} == cells


def test_a_store_of_other_facts_is_refused(own, host, tmp_path):
    other = written(host, tmp_path / "other", SPLITS["train"])
    with pytest.raises(ValueError, match="lacks 3 of the decoder's id edits.*same facts and splits") as refused:
        exported_splits(other, config(own), host)
    assert "\n" not in str(refused.value)


def test_edits_of_other_tools_are_one_split_unless_the_decoder_was_trained_on_them(host, tmp_path):
    imported = written(host, tmp_path / "imported", editor="imported")
    assert shown(exported_splits(imported, config(imported), host)) == {"id": SPLITS["id"], "ood": SPLITS["ood"]}
    assert shown(exported_splits(imported, config(imported) | {"store": "another"}, host)) == {"imported": IDS}


@pytest.mark.parametrize("name", PRECISIONS)
def test_precision_is_that_of_whole_matrices(own, host, name):
    splits = exported_splits(own, config(own), host, PRECISIONS[name])
    (batch,) = splits.loaders["ood"]
    assert isinstance(batch.edits, DenseEdit) and batch.edits.weight_BDF.dtype == torch.float32
    stored = own.dataset.with_format("torch")[batch.row_B.tolist()]
    outer_BDF = stored["value"].unsqueeze(2) * stored["key"].unsqueeze(1)
    assert torch.equal(batch.edits.weight_BDF, PRECISIONS[name](host.weight_DF(LAYER) + outer_BDF))
    (factors,) = exported_splits(own, config(own), host).loaders["ood"]
    assert isinstance(factors.edits, RankOneEdit)


def test_reading_whole_float32_matrices_is_reading_factors(own, host):
    decoder = ObjectDecoder(host, edited_layers=[LAYER], trained_layers=[], prompt_MD=torch.randn(3, host.hidden_size))
    tables = []
    for precision in (None, PRECISIONS["float32"]):
        splits = exported_splits(own, config(own), host, precision)
        tables.append(read_splits(Voters([decoder], [config(own)]), splits.loaders, splits.table))
    assert (tables[0]["predicted"] == tables[1]["predicted"]).all() and len(tables[0]) == 7
    torch.testing.assert_close(*(torch.tensor(table["probability"].tolist()) for table in tables), rtol=1e-4, atol=0)


def test_batches_of_whole_matrices_are_sized_by_memory(own, host, monkeypatch):
    monkeypatch.setattr("data.exported_splits.DENSE_BYTES", 2 * 4 * host.weight_DF(LAYER).numel())
    splits = exported_splits(own, config(own), host, PRECISIONS["int8"])
    assert [len(batch.edits) for batch in splits.loaders["ood"]] == [2, 2]


def drawn_decoder(host, seed):
    prompt_MD = torch.randn(3, host.hidden_size, generator=torch.Generator().manual_seed(seed))
    return ObjectDecoder(host, edited_layers=[LAYER], trained_layers=[], prompt_MD=3 * prompt_MD)


def test_a_vote_is_scored_on_the_mean_of_what_its_decoders_say(own, host, tmp_path, monkeypatch, capsys):
    decoders, search = [drawn_decoder(host, seed) for seed in (1, 2)], config(own)["search"]
    splits = exported_splits(own, config(own), host)
    table = read_splits(Voters(decoders, [config(own)] * len(decoders)), splits.loaders, splits.table)
    (batch,) = splits.loaders["ood"]
    read = zip(*(object_texts(host, decoder.read(batch.edits, **search)) for decoder in decoders), strict=True)
    expected = [mean_of_texts(said)[0] for said in read]
    found = table[table["split"] == "ood"]
    assert found["predicted"].tolist() == [text for text, _ in expected]
    assert found["probability"].tolist() == pytest.approx([probability for _, probability in expected], rel=1e-5)
    alone = [read_splits(Voters([decoder], [config(own)]), splits.loaders, splits.table)["predicted"].tolist() for decoder in decoders]
    assert table["predicted"].tolist() not in alone and alone[0] != alone[1], "else nobody is outvoted"

    monkeypatch.setattr(Host, "load", lambda *_, **__: host)
    for name, decoder in zip("ab", decoders, strict=True):
        save_decoder(tmp_path / name, decoder, FACTS | config(own))
    argv = [f"decoder={tmp_path / 'a'},{tmp_path / 'b'}", f"store={own.path}", "json=true"]
    evaluate.main(argv)
    told = json.loads(capsys.readouterr().out)
    assert told["test"] == json.loads(json.dumps(scores.test_scores(table))) and told["decoder"] == argv[0].removeprefix("decoder=")
    assert told["test"]["ood"]["n"] == 4
