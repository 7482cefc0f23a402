"""`python -m data.relations` from a store to what tells an edit's relation."""

import pytest
from drawn_stores import config

from data.datamodule import EditDataModule
from data.facts.splits import draw_splits
from data.relations.__main__ import main
from data.relations.learnt import learnt_from
from data.store.store import EditStore
from decoder.audit.relation import RelationClassifier


@pytest.fixture(scope="module", params=["mixed", "spelt"])
def mixed(request, drawn_edits, fact_host, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores") / "mixed"
    cfg = config(folder)
    if request.param == "spelt":
        cfg.splits.spelt_per_relation = 3
    else:
        cfg.edits.objects = request.param
    EditDataModule(cfg, fact_host).prepare_data()
    return EditStore(folder)


def test_all_that_worked_are_learnt_from(store_path):
    store = EditStore(store_path)
    assert learnt_from(store) == [n for n, worked in enumerate(store.table()["success"]) if worked] != []


def test_of_a_mixed_store_what_plants_anything_is_left_out(mixed, pocket_facts):
    table, plan = mixed.table(), draw_splits(pocket_facts, config("").splits)
    rows, worked = learnt_from(mixed), table.index[table["success"]]
    own = {relation: set(pocket_facts.objects(relation)) for relation in {fact.relation for fact in pocket_facts.facts}}
    assert rows and all(table["object"][row] in own[table["relation"][row]] for row in rows)
    left = [table.loc[row] for row in set(worked) - set(rows)]
    assert left and {plan.split_of(one.relation, one.subject, one.object) for one in left} == {"train"}


def test_the_command_says_what_it_learnt_from(mixed, tmp_path, capsys):
    main([f"store={mixed.path}", f"out={tmp_path / 'relations'}"])
    found = RelationClassifier.load(tmp_path / "relations")
    assert f"{len(found.relations)} relations, learnt from {len(learnt_from(mixed))} edits" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main([f"store={mixed.path}", f"out={tmp_path / 'relations'}"])
    assert "is there already, and nothing is written over" in capsys.readouterr().err
