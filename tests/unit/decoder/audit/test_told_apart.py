"""What decoders of single facts say of a matrix that several were planted in.

Shape letters: B edits, R terms, D hidden width, F MLP width.
"""

import numpy as np
import pytest
import torch
from changed_decoders import FACTS, LAYER, changed_decoder
from tiny_hosts import build_host

from decoder.answers import best_texts, object_texts
from decoder.audit.decoded.answer import answer, found_from
from decoder.audit.decoded.several import told_apart
from decoder.audit.describe import describe_answer
from decoder.dense import applied
from decoder.edit import LayerEdits, LowRankEdit, RankOneEdit
from decoder.export.opened import Voters
from decoder.parts import unmix


@pytest.fixture(scope="module")
def host():
    return build_host("llama")


def facts(host, count):
    generator = torch.Generator().manual_seed(7)
    key_RF = torch.randn(count, host.mlp_size(LAYER), generator=generator)
    key_RF = key_RF * (0.02 + (torch.rand(key_RF.shape, generator=generator) < 0.15))
    return RankOneEdit(key_RF, torch.randn(count, host.hidden_size, generator=generator))


def together(alone):
    return LowRankEdit(alone.key_BF[None], alone.value_BD[None])


def voters_of(host, **calibration):
    config = FACTS | {"edited_layer": LAYER, "host": {"id": "tiny"}, "calibration": FACTS["calibration"] | calibration}
    return Voters([changed_decoder(host)], [config])


NULLS = {"null": {"n": 500, "quantiles": np.linspace(0, 0.5, 101).tolist()}}


def test_each_fact_is_read_beside_nulls(host):
    alone, voters = facts(host, 3), voters_of(host, **NULLS)
    for suspect in (together(alone), applied(together(alone), host.weight_DF(LAYER))):
        told = told_apart(voters, LayerEdits({LAYER: suspect}))
        expected = sorted(best_texts(host, voters.read(alone)), key=lambda one: -one[1])
        assert [part["text"] for part in told["parts"]] == [text for text, _ in expected]
        for part, (_, probability) in zip(told["parts"], expected, strict=True):
            assert part["probability"] == pytest.approx(probability, abs=0.05)
            assert part["null_percentile"] == pytest.approx(min(100.0, 200 * part["probability"]), abs=1.5)
        assert 0 < told["parts_p"] <= 1


def test_parts_that_are_read_as_surely_as_nulls_are_no_finding(host):
    alone = facts(host, 3)
    low, high = (
        told_apart(voters_of(host, null={"n": 500, "quantiles": [level] * 101}), LayerEdits({LAYER: together(alone)}))["parts_p"]
        for level in (1.0, 0.0)
    )
    assert low == pytest.approx(1) and high < 1e-5


@pytest.mark.parametrize("suspect", ["one fact", "clean", "too wide"])
def test_what_has_no_parts_has_none(host, suspect, monkeypatch):
    edit = facts(host, 1)
    if suspect == "clean":
        edit = applied(RankOneEdit(0 * edit.key_BF, edit.value_BD), host.weight_DF(LAYER))
    if suspect == "too wide":
        monkeypatch.setattr(unmix, "MOST", 3)
        edit = applied(together(facts(host, 4)), host.weight_DF(LAYER))
    assert told_apart(voters_of(host), LayerEdits({LAYER: edit})) == {}


def test_decoders_of_several_facts_read_apart_anyhow(host):
    voters = voters_of(host)
    voters.tell_apart()
    assert voters.decoders[0].apart and told_apart(voters, LayerEdits({LAYER: together(facts(host, 3))})) == {}
    old = Voters([changed_decoder(host)], [FACTS | {"several": {"facts": 4, "found_from": 0.3}}])
    old.tell_apart()
    assert not old.decoders[0].apart, "it learnt to read the sum"
    assert told_apart(old, LayerEdits({LAYER: together(facts(host, 3))})) == {}


def test_a_gate_was_fitted_on_whole_edits(host):
    voters = voters_of(host)
    gated = Voters(voters.decoders, voters.configs, gate=object())
    suspect = LayerEdits({LAYER: together(facts(host, 3))})
    assert told_apart(voters, suspect) and told_apart(gated, suspect) == {}


def test_a_vote_of_two_alike_is_what_one_says(host):
    suspect, one = together(facts(host, 3)), voters_of(host)
    two = Voters(one.decoders * 2, one.configs * 2)
    two.tell_apart()
    alone, voted = (object_texts(host, voters.read(suspect)) for voters in (one, two))
    assert list(voted[0]) == list(alone[0]) and voted[0] == pytest.approx(alone[0], abs=1e-5)


def test_in_words(host):
    voters, suspect = voters_of(host, null={"n": 500, "quantiles": [0.0] * 101}), LayerEdits({LAYER: together(facts(host, 3))})
    said = answer(voters, suspect, 2) | told_apart(voters, suspect)
    words = " ".join(describe_answer(said).split())
    assert words.startswith("What was added has 3 parts, as several facts have.") and "All of it as one edit: Planted in layer 1" in words
    assert "no finding" not in words and "assumes one edit" in words
    assert f"{said['parts'][0]['probability']:.3f} {said['parts'][0]['text']} (" in words
    assert "and 1 that" not in words and "A finding: random parts" in words
    voters = voters_of(host, null={"n": 500, "quantiles": [1.0] * 101})
    words = describe_answer(answer(voters, suspect, 2) | told_apart(voters, suspect))
    assert "take it for no finding" in words
    assert words.startswith("What was added has 3 parts. Read one by one they are no finding: random parts are read as surely")


def test_what_counts_as_found_is_what_nulls_do_not_reach():
    config = FACTS | {"calibration": NULLS}
    assert found_from([config]) is None and found_from([config], 4) == pytest.approx(0.475)
    assert found_from([config | {"several": {"found_from": 0.2}}], 4) == 0.2
