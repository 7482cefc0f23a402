"""The draw of relations, subjects and objects on the real facts."""

import dataclasses

import pandas as pd
import pytest

from data.facts.fact import EditRequest
from data.facts.load import load_facts
from data.facts.splits import SPLITS, assign, check_disjoint, draw_splits, plan_edits
from decoder.config import FactsConfig, MinimumConfig, SplitsConfig

SEEDS = [0, 1, 2, 3, 4]


@pytest.fixture(scope="module")
def facts():
    return load_facts(FactsConfig())


@pytest.fixture(scope="module", params=SEEDS)
def drawn(request, facts):
    """A plan, the planned edits as a store's table in which all succeeded, and the rows of each split."""
    plan = draw_splits(facts, SplitsConfig(seed=request.param))
    table = as_table(plan_edits(facts, plan, SplitsConfig(), seed=0))
    rows = {
        split: [i for i, edit in enumerate(table.itertuples()) if plan.split_of(edit.relation, edit.subject, edit.object) == split]
        for split in SPLITS
    }
    return plan, table, rows


def as_table(requests: list[EditRequest]) -> pd.DataFrame:
    rows = [(r.edit_id, r.fact.relation, r.fact.subject, r.fact.object_true, r.object, True) for r in requests]
    return pd.DataFrame(rows, columns=["edit_id", "relation", "subject", "object_true", "object", "success"])


def values(table: pd.DataFrame, rows: list[int], column: str) -> set[str]:
    return set(table[column].iloc[rows])


def test_no_subject_of_another_split_is_trained_on(drawn):
    _, table, rows = drawn
    training = values(table, rows["train"], "subject")
    assert training
    for split in SPLITS[1:]:
        assert rows[split] and not training & values(table, rows[split], "subject"), split


def test_validation_subjects_are_in_no_test_of_training_relations(drawn):
    _, table, rows = drawn
    for split in ("id", "unseen_object"):
        assert not values(table, rows["val/id"], "subject") & values(table, rows[split], "subject")


def test_relations_are_apart(drawn):
    _, table, rows = drawn
    relations = {split: values(table, rows[split], "relation") for split in SPLITS}
    assert [len(relations[split]) for split in ("train", "val/new", "ood")] == [17, 3, 11]
    assert (
        not relations["train"] & relations["val/new"]
        and not relations["train"] & relations["ood"]
        and not relations["val/new"] & relations["ood"]
    )
    assert (
        relations["val/id"] <= relations["train"]
        and relations["id"] <= relations["train"]
        and relations["unseen_object"] <= relations["train"]
    )


def test_held_out_objects_are_tested_only(drawn):
    plan, table, rows = drawn
    assert plan.held_out
    for split in ("train", "val/id", "val/new", "id"):
        assert not plan.held_out & values(table, rows[split], "object"), split
    assert values(table, rows["unseen_object"], "object") <= plan.held_out


def test_edits_change_something_and_are_made_once(drawn):
    _, table, rows = drawn
    assert (table["object"] != table["object_true"]).all() and table["edit_id"].is_unique
    assert sum(map(len, rows.values())) == len(table), "nothing is made that no split uses"


def test_quotas_are_kept(drawn):
    _, table, rows = drawn
    cfg = SplitsConfig()
    for split, quota in {"train": cfg.train_per_relation, "id": cfg.id_per_relation, "ood": cfg.other_per_relation}.items():
        assert table.iloc[rows[split]].groupby("relation").size().max() == quota


def test_objects_take_turns(drawn, facts):
    plan, table, rows = drawn
    training = table.iloc[rows["train"]]
    for relation, part in training.groupby("relation"):
        subjects = [fact for fact in facts.by_relation[relation] if plan.subject_role[fact.subject] == "train"]
        chosen = part["object"].value_counts()
        for object, count in chosen.items():
            exhausted = count == sum(fact.object_true != object for fact in subjects)
            assert exhausted or count >= chosen.max() - 1, (relation, object)


@pytest.mark.parametrize("seed", SEEDS)
def test_share_of_held_out_objects_and_subjects(facts, seed):
    cfg = SplitsConfig(seed=seed)
    plan = draw_splits(facts, cfg)
    training = [relation for relation, role in plan.relation_role.items() if role == "train"]
    objects = {object for relation in training for object in facts.objects(relation)}
    assert plan.held_out <= objects and len(plan.held_out) == round(cfg.held_out_objects * len(objects))
    roles = pd.Series(plan.subject_role).value_counts(normalize=True)
    assert roles["val"] == pytest.approx(cfg.val_subjects, abs=0.04) and roles["test"] == pytest.approx(cfg.test_subjects, abs=0.06)


def test_planned_edits_of_seed_0_leave_room_for_failures(facts):
    cfg = SplitsConfig()
    plan = draw_splits(facts, cfg)
    table = as_table(plan_edits(facts, plan, SplitsConfig(), seed=0))
    planned = [plan.split_of(edit.relation, edit.subject, edit.object) for edit in table.itertuples()]
    for split in SPLITS:
        assert planned.count(split) >= getattr(cfg.minimum, split.replace("/", "_")), split
    assert planned.count("train") >= 800


def test_seed_decides(facts):
    first, again, other = (draw_splits(facts, SplitsConfig(seed=seed)) for seed in (0, 0, 1))
    assert first == again
    assert first.relation_role != other.relation_role and first.held_out != other.held_out
    requests, repeated = plan_edits(facts, first, SplitsConfig(), seed=0), plan_edits(facts, again, SplitsConfig(), seed=0)
    assert requests == repeated != plan_edits(facts, first, SplitsConfig(), seed=1)


def test_too_many_relations_are_refused(facts):
    with pytest.raises(ValueError, match=r"32 relations, pocket has 31"):
        draw_splits(facts, SplitsConfig(train_relations=18))


def test_fewer_relations_leave_the_others_out(facts):
    plan = draw_splits(facts, SplitsConfig(train_relations=2, val_relations=1, ood_relations=1))
    assert len(plan.relation_role) == 4
    assert {request.fact.relation for request in plan_edits(facts, plan, SplitsConfig(), seed=0)} <= set(plan.relation_role)
    whole = as_table(plan_edits(facts, draw_splits(facts, SplitsConfig()), SplitsConfig(), seed=0))
    few = SplitsConfig(minimum=MinimumConfig(**{field.name: 0 for field in dataclasses.fields(MinimumConfig)}))
    rows = assign(plan, whole, few)
    assert set(whole["relation"].iloc[[row for split in rows.values() for row in split]]) <= set(plan.relation_role)


@pytest.fixture()
def doctored(facts):
    plan = draw_splits(facts, SplitsConfig())
    table = as_table(plan_edits(facts, plan, SplitsConfig(), seed=0))
    return plan, table, assign(plan, table, SplitsConfig())


def test_assign_follows_the_plan_and_drops_failures(doctored):
    plan, table, rows = doctored
    table.loc[rows["train"][:20], "success"] = False
    found = assign(plan, table, SplitsConfig())
    assert found["train"] == rows["train"][20:] and found["ood"] == rows["ood"]
    table.loc[len(table)] = ("x", "P9999", "Ada", "red", "blue", True)
    assert assign(plan, table, SplitsConfig()) == found, "a relation without a role is in no split"


@pytest.mark.parametrize("split", SPLITS)
def test_split_below_its_minimum_is_named(doctored, split):
    plan, table, rows = doctored
    key = split.replace("/", "_")
    table.loc[rows[split][3:], "success"] = False
    with pytest.raises(ValueError, match=rf"split {split} has 3 successful edits, splits\.minimum\.{key}="):
        assign(plan, table, SplitsConfig())


@pytest.mark.parametrize("split", ["train", "val/id"])
def test_what_a_fit_needs_has_an_edit_whatever_the_minimum(doctored, split):
    plan, table, rows = doctored
    table.loc[rows[split], "success"] = False
    few = SplitsConfig(minimum=MinimumConfig(**{field.name: 0 for field in dataclasses.fields(MinimumConfig)}))
    with pytest.raises(ValueError, match=rf"split {split} has 0 successful edits, and training needs one"):
        assign(plan, table, few)


def test_a_plan_without_edits_is_refused(facts):
    none = SplitsConfig(
        train_per_relation=0, val_per_relation=0, id_per_relation=0, unseen_per_relation=0, other_per_relation=0, held_out_objects=0
    )
    with pytest.raises(ValueError, match=r"^splits ask for no edit of pocket: .*Raise splits\.\*_per_relation"):
        plan_edits(facts, draw_splits(facts, none), none, seed=0)


@pytest.mark.parametrize("split", SPLITS[1:])
def test_shared_subject_is_named(doctored, split):
    plan, table, rows = doctored
    check_disjoint(rows, table, plan.held_out)
    subject = table["subject"].iloc[rows["train"][5]]
    table.loc[rows[split][0], "subject"] = subject
    with pytest.raises(ValueError) as refusal:
        check_disjoint(rows, table, plan.held_out)
    assert repr(subject) in str(refusal.value) and f"in {split}:" in str(refusal.value)


@pytest.mark.parametrize("split", ["train", "val/id", "val/new"])
def test_leaked_object_is_named(doctored, split):
    plan, table, rows = doctored
    leaked = min(plan.held_out)
    table.loc[rows[split][0], "object"] = leaked
    with pytest.raises(ValueError) as refusal:
        check_disjoint(rows, table, plan.held_out)
    assert repr(leaked) in str(refusal.value) and f"in {split}:" in str(refusal.value)
