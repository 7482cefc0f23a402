"""Making a store of the planned edits: what is in it, resuming, sharing the work between parts and processes.

The editor draws its factors instead of optimising them.
"""

import json
import os
import threading
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from drawn_stores import SHARD, DrawnEdits, config, planned, skips

from data.datamodule import EditDataModule
from data.produce.__main__ import main, read_part
from data.produce.plan import is_produced
from data.produce.shards import ShardMaker, produce
from data.store.store import EditStore, partial_folder
from decoder.utils.errors import UserError

pytestmark = pytest.mark.usefixtures("drawn_edits", "alive")


def test_store_holds_every_planned_edit_or_why_not(store_path, pocket_facts):
    store, wanted = EditStore(store_path), planned(pocket_facts, config(store_path))
    skipped = [edit_id for edit_id, _ in store.manifest["skipped"]]
    assert store.table()["edit_id"].tolist() == [edit_id for edit_id in wanted if not skips(edit_id)]
    assert skipped == [edit_id for edit_id in wanted if skips(edit_id)] and skipped
    assert store.manifest["counts"]["rows"] + len(skipped) == len(wanted)


def test_store_that_is_there_is_opened(opened):
    edits = opened()
    edits.prepare_data()
    edits.setup()
    rows = edits.rows
    edits.setup("test")
    assert DrawnEdits.asked == [] and edits.rows is rows


def test_setup_in_a_process_of_its_own_opens_the_store(store_path, fact_host):
    edits = EditDataModule(config(store_path), fact_host)
    edits.setup("fit")
    assert DrawnEdits.asked == [] and edits.val_splits


def test_killed_run_goes_on_at_the_next_shard(store_path, fact_host, pocket_facts, tmp_path):
    cfg = config(tmp_path / "store")
    DrawnEdits.killed_at = 3 * SHARD - 1
    with pytest.raises(KeyboardInterrupt):
        EditDataModule(cfg, fact_host).prepare_data()
    assert not (tmp_path / "store").exists() and len(DrawnEdits.asked) == 2 * SHARD
    DrawnEdits.asked, DrawnEdits.killed_at = [], 10**9
    EditDataModule(cfg, fact_host).prepare_data()
    assert DrawnEdits.asked == planned(pocket_facts, cfg)[2 * SHARD :]
    assert EditStore(tmp_path / "store").fingerprint == EditStore(store_path).fingerprint


def test_killed_run_goes_on_with_shards_of_another_size(store_path, fact_host, tmp_path):
    cfg = config(tmp_path / "store")
    DrawnEdits.killed_at = 3 * SHARD - 1
    with pytest.raises(KeyboardInterrupt):
        EditDataModule(cfg, fact_host).prepare_data()
    cfg.edits.shard_size, DrawnEdits.killed_at = SHARD // 2, 10**9
    try:
        EditDataModule(cfg, fact_host).prepare_data()
    except ValueError as refusal:
        assert "shard_size" in str(refusal)
    else:
        assert EditStore(tmp_path / "store").table().equals(EditStore(store_path).table())


@pytest.mark.parametrize(
    ("group", "field", "value", "named"),
    [
        ("edits", "seed", 1, r"edits\.seed=0 \(here 1\)\. "),
        ("edits", "steps", 3, r"edits\.steps=30 \(here 3\)\. "),
        ("splits", "seed", 1, r"(number of )?edits planned by splits\.\* and facts\.\*=\w+ \(here \w+\)\. "),
        ("splits", "ood_relations", 10, r"number of edits planned by splits\.\* and facts\.\*=\d+ \(here \d+\)\. "),
    ],
)
def test_store_made_for_something_else_is_refused(store_path, fact_host, group, field, value, named):
    cfg = config(store_path)
    setattr(getattr(cfg, group), field, value)
    with pytest.raises(ValueError, match=f"^store {store_path}: made with {named}Give these settings, another store=, or make it anew$"):
        produce(cfg, fact_host)
    assert EditStore(store_path), "it is kept"


def test_all_settings_that_a_store_was_made_with_are_named_at_once(store_path, fact_host):
    cfg = config(store_path)
    cfg.edits = replace(cfg.edits, seed=1, steps=3, layer=0, ridge=0.1, key_tokens=9)
    with pytest.raises(ValueError) as refused:
        produce(cfg, fact_host)
    told = str(refused.value).partition("made with ")[2].partition(". Give")[0]
    assert sorted(told.split(", ")) == [
        "edits.key_tokens=60000 (here 9)",
        "edits.layer=1 (here 0)",
        "edits.ridge=0.03 (here 0.1)",
        "edits.seed=0 (here 1)",
        "edits.steps=30 (here 3)",
    ]


def test_batch_size_of_the_editor_does_not_matter(store_path, fact_host):
    cfg = config(store_path)
    cfg.edits.batch_size = 3
    EditDataModule(cfg, fact_host).prepare_data()
    assert DrawnEdits.asked == []


# In parts


def test_parts_join_to_the_store_that_one_process_makes(store_path, fact_host, pocket_facts, tmp_path):
    cfg, made = config(tmp_path / "store"), []
    for part in (3, 1, 2):
        made += ShardMaker(cfg, fact_host).make_part(part, 3)
    assert sorted(made) == list(range(ShardMaker(cfg, fact_host).shards)) and not (tmp_path / "store").exists()
    assert sorted(DrawnEdits.asked) == sorted(planned(pocket_facts, cfg)), "no edit is made twice"
    joined = ShardMaker(cfg, fact_host).join()
    assert joined.fingerprint == EditStore(store_path).fingerprint and joined.manifest == EditStore(store_path).manifest
    assert not partial_folder(joined.path).exists()


def test_a_part_that_is_there_is_not_made_again(fact_host, tmp_path):
    for _ in range(2):
        ShardMaker(config(tmp_path / "store"), fact_host).make_part(1, 2)
    assert len(DrawnEdits.asked) == len(set(DrawnEdits.asked)) > 0


def test_missing_parts_are_named(fact_host, tmp_path):
    maker = ShardMaker(config(tmp_path / "store"), fact_host)
    assert maker.shards == 5
    maker.make_part(1, 4)
    with pytest.raises(ValueError, match=r"shards 1, 2, 3 of 5 are missing.*shard=2/4 and shard=3/4 and shard=4/4"):
        maker.join()
    maker.make(3)
    with pytest.raises(ValueError, match=r"shards 1, 2 of 5 .*shard=2/4 and shard=3/4$"):
        maker.join()


def test_without_parts_what_is_missing_is_made_and_joined(store_path, fact_host, pocket_facts, tmp_path):
    cfg = config(tmp_path / "store")
    ShardMaker(cfg, fact_host).make_part(2, 2)
    before = len(DrawnEdits.asked)
    assert produce(cfg, fact_host).fingerprint == EditStore(store_path).fingerprint
    assert before > 0 and sorted(DrawnEdits.asked) == sorted(planned(pocket_facts, cfg))


@pytest.mark.parametrize("text", ["0/4", "5/4", "a/b", "3", "1/0", "-1/4", "1/4/2", "join"])
def test_bad_parts_are_one_line(text, capsys):
    with pytest.raises(UserError, match=f"shard={text}: expected PART/PARTS"):
        read_part(text)
    with pytest.raises(SystemExit) as stop:
        main([f"shard={text}"])
    shown = capsys.readouterr().err
    assert stop.value.code == 2 and shown.count("\n") == 1 and f"shard={text}" in shown


def test_a_part_is_not_written_as_parquet(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["shard=1/2", f"parquet={tmp_path / 'out'}"])
    assert stop.value.code == 2 and "give parquet= with shard=merge" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_part_of_a_range():
    assert read_part("3/16") == (3, 16) and read_part("1/1") == (1, 1)


def test_of_two_that_ask_at_once_one_makes_the_store(store_path, fact_host, pocket_facts, tmp_path):
    cfg, found = config(tmp_path / "store"), []
    threads = [threading.Thread(target=lambda: found.append(produce(cfg, fact_host))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2 and {store.fingerprint for store in found} == {EditStore(store_path).fingerprint}
    assert sorted(DrawnEdits.asked) == sorted(planned(pocket_facts, cfg))


def test_what_a_killed_join_left_goes_when_the_store_is_opened(fact_host, tmp_path):
    cfg = config(tmp_path / "store")
    produce(cfg, fact_host)
    (partial_folder(tmp_path / "store") / "shard-00000").mkdir(parents=True)
    asked = len(DrawnEdits.asked)
    produce(cfg, fact_host)
    assert not partial_folder(tmp_path / "store").exists() and len(DrawnEdits.asked) == asked


def test_rows_of_many_record_batches_are_read_in_the_order_asked_for(store_path):
    store = EditStore(store_path)
    assert store.dataset.data.table["key"].num_chunks > 1
    rows = torch.randperm(len(store), generator=torch.Generator().manual_seed(0))
    found, stored = store.edits(rows), store.dataset.with_format("torch")[:]
    assert torch.equal(found.key_BF, stored["key"][rows]) and torch.equal(found.value_BD, stored["value"][rows])


# Made by an earlier version


def as_0_1_0(editor: dict) -> dict:
    """What 0.1.0 wrote of an editor: settings of the draw too, and precision only where it is not the default."""
    settings = {name: value for name, value in editor["settings"].items() if name != "precision"}
    return {"name": editor["name"], "settings": settings | {"key_tokens": 60000, "seed": 0, "train_per_relation": 55}}


@pytest.mark.parametrize("where", ["", ".partial"], ids=["in its place", "beside it"])
def test_of_a_store_that_is_refused_no_lock_stays(fact_host, tmp_path, where):
    lies = tmp_path / f"store{where}" / "asked.json"
    lies.parent.mkdir()
    lies.write_text("{}")
    with pytest.raises(ValueError, match="exists already|holds shards made with"):
        produce(config(tmp_path / "store"), fact_host)
    assert [*tmp_path.iterdir()] == [lies.parent]


def test_a_lock_that_others_wait_for_stays(fact_host, tmp_path, monkeypatch):
    """Who held a file that is gone and who made it anew would both go on."""
    lock, waiting = tmp_path / ".store.lock", []

    def refused(maker):
        waiting.append(lock.open())
        raise ValueError("made meanwhile for something else")

    monkeypatch.setattr(ShardMaker, "missing", refused)
    with pytest.raises(ValueError, match="made meanwhile"):
        produce(config(tmp_path / "store"), fact_host)
    with waiting[0] as file:
        assert os.path.samestat(os.fstat(file.fileno()), lock.stat())


def test_a_store_that_is_whole_by_the_time_it_is_refused_is_opened(store_path, fact_host, monkeypatch):
    finished, asked = ShardMaker.finished, []
    monkeypatch.setattr(ShardMaker, "finished", lambda maker: finished(maker) if asked else asked.append(maker))
    assert produce(config(store_path), fact_host).path == store_path and DrawnEdits.asked == []


@pytest.mark.parametrize("killed", [False, True])
def test_what_an_earlier_version_made_is_found_in_the_cache(fact_host, pocket_facts, tmp_path, killed):
    cfg = config("")
    cfg.store, cfg.cache_dir = None, str(tmp_path)
    DrawnEdits.killed_at = 3 * SHARD - 1 if killed else 10**9
    with pytest.raises(KeyboardInterrupt) if killed else nullcontext():
        produce(cfg, fact_host)
    place = ShardMaker(cfg, fact_host).path
    old = place.with_name("tiny-rome-e1-0123456789ab")
    (partial_folder if killed else Path)(place).rename((partial_folder if killed else Path)(old))
    file = partial_folder(old) / "asked.json" if killed else old / "manifest.json"
    manifest = json.loads(file.read_text())
    file.write_text(json.dumps(manifest | {"editor": as_0_1_0(manifest["editor"])}))
    DrawnEdits.asked, DrawnEdits.killed_at = [], 10**9
    store = produce(cfg, fact_host)
    assert store.path == old and DrawnEdits.asked == (planned(pocket_facts, cfg)[2 * SHARD :] if killed else [])
    cfg.edits.steps = 3
    assert not is_produced(cfg, fact_host) and ShardMaker(cfg, fact_host).path not in (old, place)
