"""What is refused before the first edit is made, and leaves nothing that stands in the way of the next try."""

import pytest
from drawn_stores import DrawnEdits, config

import data.hosts
from data.produce.__main__ import main
from data.produce.shards import ShardMaker, produce
from data.store.store import partial_folder

pytestmark = pytest.mark.usefixtures("drawn_edits", "alive")


@pytest.mark.parametrize("part", [False, True])
def test_what_is_refused_before_the_first_edit_leaves_nothing_that_blocks_another_try(fact_host, pocket_facts, tmp_path, monkeypatch, part):
    """What an editor or its text is refused for is told before the folder says whom it is kept for."""
    cfg, other = config(tmp_path / "store"), config(tmp_path / "store")
    other.edits.steps = 3
    ask = (lambda cfg: ShardMaker(cfg, fact_host).make_part(1, 2)) if part else (lambda cfg: produce(cfg, fact_host))

    def refused(host, cfg, texts, statistics):
        raise ValueError("no null space")

    with monkeypatch.context() as patch:
        patch.setattr(DrawnEdits, "prepare", refused)
        with pytest.raises(ValueError, match="no null space"):
            ask(cfg)
    cfg.edits.broken_from = 2.0
    with pytest.raises(ValueError, match="neutral text: 0 tokens"):
        ask(cfg)
    assert not partial_folder(tmp_path / "store").exists() and DrawnEdits.asked == []
    ask(other)
    assert DrawnEdits.asked


def test_asking_what_is_missing_or_joining_nothing_blocks_no_other_settings(fact_host, tmp_path):
    with pytest.raises(ValueError, match="shards 0, 1, 2, 3, 4 of 5 are missing"):
        ShardMaker(config(tmp_path / "store"), fact_host).join()
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["edits.facts_per_host=2"], "edits.facts_per_host=2: several facts a host are read from their own store only. Leave out parquet="),
        (["edits=ft"], "ft makes whole matrices, which are read from their own store only. Leave out parquet="),
        ([], "the folder is not empty. Give a new one"),
    ],
)
def test_what_cannot_be_parquet_is_refused_before_an_edit_is_made(fact_host, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.setattr(data.hosts, "open_host", lambda cfg: fact_host)
    folder = tmp_path / "parquet"
    if not words:
        (folder / "other").mkdir(parents=True)
    with pytest.raises(SystemExit) as stop:
        main([f"store={tmp_path / 'store'}", f"parquet={folder}", *words])
    shown = capsys.readouterr().err
    assert stop.value.code == 2 and message in shown and shown.count("\n") == 1
    assert DrawnEdits.asked == [] and [*tmp_path.iterdir()] == ([] if words else [folder])
