"""Training edits that plant nouns and names of several tokens, on top of the others."""

from collections import Counter

import pytest
from planted import by_split, in_words, objects_of

from data.facts.planting import common_names, common_nouns, spelt
from data.facts.splits import check_planned, draw_splits, plan_edits
from data.produce.plan import requested
from data.store.disagreement import disagreement
from decoder.config import SplitsConfig, TrainConfig


@pytest.fixture(scope="module", params=[0, 1, 2])
def plan(request, pocket_facts):
    return draw_splits(pocket_facts, SplitsConfig(seed=request.param))


@pytest.mark.parametrize("kind", ["relation", "facts", "words", "mixed"])
def test_spelt_ones_come_last_and_on_top(plan, pocket_facts, kind):
    requests = plan_edits(pocket_facts, plan, SplitsConfig(spelt_per_relation=20), 0, kind)
    without = plan_edits(pocket_facts, plan, SplitsConfig(), 0, kind)
    assert requests[: len(without)] == without, "what is made without them is made alike"
    further = requests[len(without) :]
    assert Counter(one.fact.relation for one in further) == {
        relation: 20 for relation, role in plan.relation_role.items() if role == "train"
    }
    assert by_split(plan, requests)["train"] == by_split(plan, without)["train"] + further
    assert len({one.edit_id for one in requests}) == len(requests)


def test_spelt_ones_are_of_their_list_alone_and_none_is_tested(plan, pocket_facts):
    cfg = SplitsConfig(train_per_relation=1, spelt_per_relation=60)
    training = by_split(plan, plan_edits(pocket_facts, plan, cfg, 0))["train"][cfg.train_relations :]
    planted = Counter(one.object for one in training)
    assert len(training) == 60 * cfg.train_relations and {*planted} <= {*spelt()} and len(planted) > 0.95 * planted.total()
    assert max(Counter(one.fact.subject for one in training).values()) <= 8, "subjects take turns"
    tested = {text.casefold() for text in objects_of(pocket_facts, plan, "val", "ood") | plan.held_out}
    assert not [text for text in planted for one in tested if in_words(one, text.casefold()) or in_words(text.casefold(), one)]


def test_no_training_edits_are_none_of_any_kind(plan, pocket_facts):
    cfg = SplitsConfig(train_per_relation=0, spelt_per_relation=60)
    assert not by_split(plan, plan_edits(pocket_facts, plan, cfg, 0))["train"]


def test_both_numbers_are_named_where_their_sum_is_too_few(plan, pocket_facts):
    cfg = SplitsConfig(train_per_relation=10, spelt_per_relation=5)
    with pytest.raises(ValueError, match=r"^splits.train_per_relation=10 splits.spelt_per_relation=5: 255 train edits are planned"):
        check_planned(plan, plan_edits(pocket_facts, plan, cfg, 0), cfg)


def test_spelt_ones_are_in_no_other_list():
    folded = {text.casefold() for text in spelt()}
    assert len(folded) == len(spelt()) > 1700 and folded.isdisjoint(text.casefold() for text in (*common_nouns(), *common_names()))


def test_a_store_with_other_numbers_of_spelt_ones_is_told_by_their_setting(fact_host):
    def asked(count):
        return requested(TrainConfig(splits=SplitsConfig(spelt_per_relation=count)), fact_host)[2]

    assert disagreement(asked(0), asked(0)) == []
    for there, here in ((0, 2), (1, 2)):
        setting, number = disagreement(asked(there), asked(here))[::-1]
        assert setting == f"splits.spelt_per_relation={there} (here {here})" and number.startswith("number of edits planned by splits")
