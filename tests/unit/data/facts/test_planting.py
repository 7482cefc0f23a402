"""What training edits plant beside objects of their own relation, and that the tests stay what they are and honest."""

import json
from collections import Counter
from dataclasses import replace

import pandas as pd
import pytest
from fact_records import PLAIN, load, written
from places import ROOT
from planted import by_split, in_words, objects_of

from data.datamodule import mark_seen
from data.facts.planting import OtherObjects, _unlike, common_names, common_nouns, fact_objects
from data.facts.splits import SPLITS, SplitPlan, assign, draw_splits, plan_edits
from data.produce.plan import requested, store_path
from decoder.config import SplitsConfig, TrainConfig
from decoder.utils.files import short_hash

KINDS = ["relation", "facts", "words", "mixed"]


@pytest.fixture(scope="module", params=[0, 1, 2])
def drawn(request, pocket_facts):
    """A plan, and the requests of each kind by split."""
    plan = draw_splits(pocket_facts, SplitsConfig(seed=request.param))
    return plan, {kind: by_split(plan, plan_edits(pocket_facts, plan, SplitsConfig(), 0, kind)) for kind in KINDS}


def test_the_default_asks_for_what_it_always_did(pocket_facts):
    recorded = json.loads((ROOT / "tests/unit/helpers/recorded_settings.json").read_text())["manifest"]["requests"]
    requests = plan_edits(pocket_facts, draw_splits(pocket_facts, SplitsConfig()), SplitsConfig(), seed=0)
    assert recorded == {"count": len(requests), "sha256": short_hash([request.edit_id for request in requests])}


def test_other_splits_are_the_same_to_the_edit(drawn):
    _, found = drawn
    for split in SPLITS[1:]:
        assert all(found[kind][split] == found["relation"][split] != [] for kind in KINDS)


def test_training_has_the_same_facts_and_more_edits_where_a_relation_has_too_few_objects(drawn):
    plan, found = drawn
    facts = [Counter(one.fact.fact_id for one in found[kind]["train"]) for kind in KINDS]
    relations = [Counter(one.fact.relation for one in found[kind]["train"]) for kind in KINDS]
    assert all(counted >= facts[0] for counted in facts)
    assert all(set(counted.values()) == {SplitsConfig().train_per_relation} for counted in relations[1:])
    full = {relation for relation, count in relations[0].items() if count == SplitsConfig().train_per_relation}
    assert 0 < len(full) and all(
        counted[one.fact.fact_id] == facts[0][one.fact.fact_id]
        for counted, kind in zip(facts, KINDS, strict=True)
        for one in found[kind]["train"]
        if one.fact.relation in full
    )
    for kind in KINDS:
        training = found[kind]["train"]
        assert len({one.edit_id for one in training}) == len(training)
        assert all(one.object.casefold() not in (one.fact.object_true.casefold(), one.fact.subject.casefold()) for one in training)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_a_store_of_them_is_split_by_the_plan(drawn, kind):
    plan, found = drawn
    requests = [one for split in SPLITS for one in found[kind][split]]
    rows = [(one.fact.relation, one.fact.subject, one.object, True) for one in requests]
    table = pd.DataFrame(rows, columns=["relation", "subject", "object", "success"])
    minimum = replace(SplitsConfig().minimum, val_new=1, ood=1, unseen_object=1, id=1, val_id=1)
    rows = assign(plan, table, SplitsConfig(minimum=minimum))
    assert [requests[row] for row in rows["train"]] == found[kind]["train"]
    assert sum(map(len, rows.values())) == len(requests)


def test_facts_are_objects_of_any_training_relation_in_even_shares(drawn, pocket_facts):
    plan, found = drawn
    planted = Counter(one.object for one in found["facts"]["train"])
    assert set(planted) == set(fact_objects(pocket_facts, plan)) == objects_of(pocket_facts, plan, "train") - plan.held_out
    assert max(planted.values()) - min(planted.values()) <= 2
    foreign = [one for one in found["facts"]["train"] if one.object not in pocket_facts.objects(one.fact.relation)]
    assert len(foreign) > 0.8 * planted.total()


def test_what_ood_has_seen_is_what_it_would_have_seen(drawn, pocket_facts):
    """`facts` lets no object be seen that training relations do not have, `words` neither."""
    plan, found = drawn
    usable = objects_of(pocket_facts, plan, "train") - plan.held_out
    for kind in KINDS:
        requests = found[kind]["train"] + found[kind]["ood"]
        table = pd.DataFrame([(one.object, one.fact.kind) for one in requests], columns=["object", "kind"])
        mark_seen(table, list(range(len(found[kind]["train"]))))
        seen = {object for object, is_seen in zip(table["object"], table["seen_object"], strict=True) if is_seen}
        assert seen & objects_of(pocket_facts, plan, "ood") <= usable
        assert not seen & plan.held_out


def test_words_are_objects_nouns_and_names_of_two_kinds_in_turns(drawn, pocket_facts):
    plan, found = drawn
    training = [one.object for one in found["words"]["train"]]
    names = {subject for subject, role in plan.subject_role.items() if role == "train"}
    pools = {"object": set(fact_objects(pocket_facts, plan)), "noun": set(common_nouns()), "name": names}
    pools["any name"] = set(common_names()) - set.union(*pools.values())
    shares = {name: sum(text in pool for text in training) / len(training) for name, pool in pools.items()}
    assert all(share == pytest.approx(1 / 4, abs=0.04) for share in shares.values()), shares
    tested = {text.casefold() for text in objects_of(pocket_facts, plan, "val", "ood") | plan.held_out}
    words = [text.casefold() for text in training if text not in pools["object"]]
    told = [(text, one) for text in words for one in tested if in_words(one, text) or in_words(text, one)]
    assert not told
    others = {fact.subject.casefold() for fact in pocket_facts.facts} - {text.casefold() for text in names}
    assert not others.intersection(words)


@pytest.mark.parametrize(
    ("text", "left_out"),
    [
        ("Asia", True), ("asia minor", True), ("Asiatic", True), ("African", True), ("Buddhists", True), ("Portugal", True),
        ("York", True), ("New", True), ("York City", True), ("Port", True), ("Java", True), ("Javan", True),
        ("Asphalt", False), ("Jav", False), ("Yorick", False), ("News", False),
    ],
)  # fmt: skip
def test_forms_and_words_of_tested_objects_are_left_out(text, left_out):
    assert (_unlike([text], {"asia", "africa", "buddhism", "portuguese", "new york", "new york city", "java sea"}) == []) == left_out


def test_mixed_is_half_of_each(drawn):
    _, found = drawn
    own = {one.edit_id for one in found["relation"]["train"]}
    for kind, share in (("mixed", 0.5), ("words", 0.0)):
        kept = sum(one.edit_id in own for one in found[kind]["train"]) / len(found[kind]["train"])
        assert share <= kept < share + 0.06


def test_words_make_up_for_what_relations_lack(pocket_facts):
    plan, cfg = draw_splits(pocket_facts, SplitsConfig()), SplitsConfig(train_per_relation=400)
    own, mixed = (by_split(plan, plan_edits(pocket_facts, plan, cfg, 0, kind))["train"] for kind in ("relation", "mixed"))
    assert len(own) < 0.5 * 400 * cfg.train_relations and len(mixed) == len({one.edit_id for one in mixed}) == 400 * cfg.train_relations
    assert len({one.object for one in mixed}) > 1500


def test_what_is_dealt_is_not_what_stands_beside_it(tmp_path):
    facts = load("plain", written(tmp_path, PLAIN, PLAIN | {"subject": "Ben", "object": "baker", "object_true": "singer"}))
    plan = draw_splits(facts, SplitsConfig(train_relations=1, val_relations=0, ood_relations=0, held_out_objects=0))
    ben = facts.facts[1]
    pool = fact_objects(facts, plan)
    assert len(pool) == 2 and OtherObjects(facts, plan, "facts", 0).dealt([(ben, "x")], beside=[(ben, one) for one in pool]) == [(ben, "x")]


def test_few_objects_make_few_edits_and_none_twice(tmp_path):
    names = ["Ada", "Ben", "Cleo", "Dan"]
    records = [
        PLAIN | {"subject": name, "object": None, "object_true": own} for name, own in zip(names, ["ox", "elk", "emu", "ox"], strict=True)
    ]
    facts = load("plain", written(tmp_path, *records))
    cfg = SplitsConfig(
        train_relations=1, val_relations=0, ood_relations=0, held_out_objects=0, val_subjects=0, test_subjects=0, train_per_relation=50
    )
    requests = plan_edits(facts, draw_splits(facts, cfg), cfg, 0, "facts")
    assert len(requests) == len({one.edit_id for one in requests}) == 8, "two other objects for each of four subjects"


def test_seed_decides(pocket_facts):
    plan = draw_splits(pocket_facts, SplitsConfig())
    first, again, other = (plan_edits(pocket_facts, plan, SplitsConfig(), seed, "words") for seed in (0, 0, 1))
    assert first == again != other


def test_case_tells_no_objects_apart_and_relations_without_a_role_may_lend_theirs(tmp_path):
    objects = {"a": ["piano", "Ulm", "Bonn"], "b": ["Violin", "ulm"], "c": ["drum"], "d": ["violin", "BONN", "Drum", "harp", "ULM"]}
    records = [
        PLAIN | {"subject": f"{relation} {object}", "relation": relation, "prompt": "{} is", "object_true": object, "object": None}
        for relation, known in objects.items()
        for object in known
    ]
    facts = load("plain", written(tmp_path, *records))
    plan = SplitPlan({"a": "train", "b": "ood", "c": "val"}, {}, frozenset(["Bonn"]))
    assert fact_objects(facts, plan) == ["ULM", "Ulm", "harp", "piano"]


def test_a_fact_that_no_object_is_left_for_keeps_its_own(tmp_path):
    facts = load("plain", written(tmp_path, PLAIN, PLAIN | {"subject": "Ben", "object": "baker", "object_true": "singer"}))
    plan = draw_splits(facts, SplitsConfig(train_relations=1, val_relations=0, ood_relations=0, held_out_objects=0))
    ada, ben = facts.facts
    dealt = OtherObjects(facts, plan, "facts", 0).dealt([(ada, "singer"), (ada, "cook"), (ben, "baker")])
    assert dealt == [(ada, "singer"), (ada, "cook"), (ben, "baker")]


def test_common_nouns_are_words_of_their_own():
    assert len(common_nouns()) > 500 and len(set(common_nouns())) == len(common_nouns()) and "ice cream" in common_nouns()
    assert all(text == text.strip().lower() and text.replace(" ", "").isalpha() for text in common_nouns())


def test_stores_say_what_training_edits_plant_where_it_is_not_the_usual(fact_host):
    paths, said = [], []
    for kind, spelt_ones in [*((kind, 0) for kind in KINDS), ("relation", 1), ("relation", 2)]:
        cfg = TrainConfig(cache_dir="cache")
        cfg.edits.objects, cfg.splits.spelt_per_relation = kind, spelt_ones
        asked = requested(cfg, fact_host)[2]
        paths.append(store_path(cfg, fact_host, asked))
        said.append((asked.get("objects"), asked.get("spelt")))
        assert "objects" not in asked["editor"]["settings"]
    assert said == [(None, None), *((kind, None) for kind in KINDS[1:]), (None, 1), (None, 2)] and len(set(paths)) == len(said)
