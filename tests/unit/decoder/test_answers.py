"""What beams say in words: one text a candidate, however many token sequences spell it."""

import pandas as pd
import pytest
import torch
from mean_of_texts import mean_of_texts

from decoder.answers import each_by, object_texts, read_batch, vote
from decoder.audit.calibration import NULLS, calibrate
from decoder.audit.decoded.answer import answer
from decoder.batch import PADDING, EditBatch
from decoder.beam import Beams
from decoder.edit import RankOneEdit
from decoder.export.opened import Voters
from decoder.scores import answer_threshold, no_edit_scores, several_scores, share, wilson
from decoder.scores import test_scores as scores_of_tests

EDITS = RankOneEdit(torch.ones(2, 48), torch.ones(2, 32))


class Spelling:
    """A decoder that spells: in the second edit `red` comes twice, and twice together is more than the best beam has."""

    edited_layers = [1]

    def __init__(self, host) -> None:
        self.host = host
        red, oslo, silent = *(host.object_ids(word) for word in ("red", "Oslo")), [host.tokenizer.pad_token_id]
        self.red, self.oslo = red, oslo
        self.tokens = [[red, oslo, silent + red, oslo + silent], [oslo, red, red + silent, oslo + red]]
        self.probability_BK = torch.tensor([[0.5, 0.25, 0.125, 0.0625], [0.375, 0.25, 0.25, 0.125]])

    def beams(self, count: int) -> Beams:
        # The first token is of no account here.
        return Beams([self.tokens[b % 2] for b in range(count)], self.probability_BK[torch.arange(count) % 2], torch.eye(8)[[7] * count])

    def read(self, edits, *, beams, max_object_tokens) -> Beams:
        return self.beams(len(edits))


@pytest.fixture()
def decoder(host_of):
    return Spelling(host_of("llama"))


def test_a_text_comes_once_with_the_probability_of_all_its_spellings(decoder):
    first, second = object_texts(decoder.host, decoder.beams(2))
    assert list(first.items()) == [("red", 0.625), ("Oslo", 0.3125)]
    assert list(second.items()) == [("Oslo", 0.375), ("red", 0.5), ("Oslo red", 0.125)], "in the order of their best beams"


def test_exact_match_is_of_the_text_of_the_best_beam_alone(decoder):
    ids_BT = torch.tensor([[*decoder.red, decoder.host.terminator_id], [*decoder.red, decoder.host.terminator_id]])
    first, second = read_batch(decoder.host, decoder.beams(2), EditBatch(EDITS, ids_BT, torch.tensor([4, 9])))
    assert (first.row, first.predicted, first.probability, first.exact_match) == (4, "red", 0.625, True)
    assert (second.row, second.predicted, second.probability, second.exact_match) == (9, "Oslo", 0.375, False)
    end = decoder.host.terminator_id
    other_BT = torch.tensor([[decoder.host.tokenizer.pad_token_id, *decoder.red, end], [*decoder.oslo, end, PADDING]])
    readings = read_batch(decoder.host, decoder.beams(2), EditBatch(EDITS, other_BT, torch.tensor([0, 1])))
    assert [reading.exact_match for reading in readings] == [True, True], "another spelling is the same object"


def test_a_vote_is_the_mean_of_what_the_decoders_say(decoder):
    host, red, oslo = decoder.host, decoder.red, decoder.oslo
    other_BK = torch.tensor([[0.75, 0.125, 0.0625], [0.25, 0.1875, 0.0625]])
    other = Beams([[oslo + red, oslo, red], [red + red, oslo + red, red]], other_BK, torch.eye(8)[[5, 5]])
    found = [decoder.beams(2), other]
    told = object_texts(host, vote(host, found))
    for texts, said in zip(told, zip(*(object_texts(host, beams) for beams in found), strict=True), strict=True):
        assert list(texts.items()) == mean_of_texts(said), "exactly: these are sums of powers of two"
    assert [next(iter(texts)) for texts in told] == ["Oslo red", "red"], "the first of another than the first decoder; and of neither"
    ids_BT = torch.tensor([[*red, host.terminator_id]] * 2)
    readings = read_batch(host, vote(host, found), EditBatch(EDITS, ids_BT, torch.tensor([0, 1])))
    assert [(reading.predicted, reading.exact_match) for reading in readings] == [("Oslo red", False), ("red", True)]
    assert vote(host, found[:1]) is found[0], "and one decoder says what it always said"


def test_the_first_token_of_a_vote_is_that_of_the_mean_distribution(decoder):
    """Nobody's favourite may win, or the surer one's; scores that do not sum to one, as those less the prior, count no more."""
    first_BV = torch.tensor([[0.4, 0.35, 0.25], [0.9, 0.1, 1e-9]]).log() + 3
    second_BV = torch.tensor([[0.25, 0.35, 0.4], [0.001, 0.599, 0.4]]).log()
    found = [Beams([[decoder.red]] * 2, torch.ones(2, 1), logits_BV) for logits_BV in (first_BV, second_BV)]
    assert [beams.first_token_B.tolist() for beams in (*found, vote(decoder.host, found))] == [[0, 0], [2, 1], [1, 0]]


def test_of_several_facts_an_object_may_be_any_of_as_many_texts(decoder):
    end = decoder.host.terminator_id
    ids_BT = torch.tensor([[*decoder.oslo, end], [*decoder.red, end], [end, end], [*decoder.red, end]])
    batch = EditBatch(RankOneEdit(torch.ones(4, 48), torch.ones(4, 32)), ids_BT, torch.arange(4))
    readings = read_batch(decoder.host, decoder.beams(4), batch, facts=2)
    # "Oslo" is the second text of the first, and "red" of the second, however many beams spell the first ones.
    assert [reading.exact_match for reading in readings] == [True, True, False, True]
    assert [reading.first_token for reading in readings] == [True, True, False, True]
    assert readings[0].predicted == "Oslo" and readings[0].probability == readings[0].answers["Oslo"]
    alone = read_batch(decoder.host, decoder.beams(4), batch)
    assert [reading.exact_match for reading in alone] == [False] * 4 and [reading.answers for reading in alone] == [None] * 4
    # One that is not among them is read as the surest of them.
    assert readings[2].predicted == alone[2].predicted


def test_several_facts_are_answered_from_a_probability_that_validation_edits_set(decoder):
    def host(place, split, answers, planted):
        return [{"host": place, "split": split, "answers": answers, "planted": planted}] * 2

    validation = host(0, "val/id", {"red": 0.5, "Oslo": 0.3, "x": 0.1}, ["red", " oslo"]) + host(
        1, "val/new", {"a": 0.4, "b": 0.2}, ["a", "c"]
    )
    tested = host(2, "id", {"red": 0.6, "Red": 0.2, "y": 0.35, "z": 0.05}, ["red", "blue"]) + host(3, "id", {"y": 0.2, "u": 0.1}, ["u"])
    table = pd.DataFrame([*validation, *tested])
    # From there on three answers are kept, all of them right; a lower bound keeps wrong ones, a higher one fewer.
    assert answer_threshold(table) == 0.3
    assert answer_threshold(table.drop(columns="planted")) is None and answer_threshold(pd.DataFrame(tested)) is None
    found = several_scores(table[table["split"] == "id"], 0.3)
    assert (found["hosts"], found["threshold"]) == (2, 0.3)
    assert found["recall"] == {"value": 1 / 3, "ci95": wilson(1, 3)} and found["precision"]["value"] == 0.5
    assert found["first_object"]["value"] == 0.5
    assert found["count"] == {"planted": 1.5, "found": 1.0, "exact": share([True, False])}
    assert several_scores(table[table["host"] == 3], 0.9)["precision"] is None
    # An exported decoder knows that probability; where one fact was planted it asks for nothing.
    alone = pd.DataFrame(tested).assign(first_token=True, exact_match=True, kind="k", seen_object=True, seen_kind=True)
    alone = alone.assign(subject="s", relation="r", relation_name="r")
    assert scores_of_tests(alone, 0.3)["id"]["several"] == found and "several" not in scores_of_tests(alone)["id"]
    for without in (alone.drop(columns="planted"), alone.assign(answers=None)):
        assert "several" not in scores_of_tests(without, 0.3)["id"]
    assert no_edit_scores([{"a": 0.4, "b": 0.35}, {"a": 0.2}], 0.3) == {"n": 2, "found": 1.0, "none": share([False, True])}


def test_one_definition_of_confidence_in_readings_calibration_and_answers(decoder):
    found = calibrate(decoder, EDITS, [0.5] * 4, beams=4, max_object_tokens=2, seed=0)
    # A chunk of 125 has the first kind of beams 63 times, and the clean matrix has it too.
    assert found["null"]["n"] == NULLS + 1 and found["null"]["quantiles"][0] == 0.375 and found["null"]["quantiles"][-1] == 0.625
    assert found["clean_matrix"] == {"predicted": "red", "probability": 0.625, "null_percentile": pytest.approx(50, abs=3)}
    config = {
        "search": {"beams": 4, "max_object_tokens": 2},
        "calibration": found,
        "host": {"id": "llama"},
        "edited_layer": 1,
        "scores": {},
    }
    told = answer(Voters([decoder], [config]), EDITS[:1], top=4)
    assert told["objects"] == [{"text": "red", "probability": 0.625}, {"text": "Oslo", "probability": 0.3125}]
    assert told["null_percentile"] == found["clean_matrix"]["null_percentile"]


def test_each_edit_has_what_its_decoder_found():
    """Two decoders, the second with the wider search."""
    narrow = Beams([[[1], [2]], [[3], [4]]], torch.tensor([[0.5, 0.25], [0.75, 0.125]]), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    wide = Beams(
        [[[5], [6], [7]], [[8], [9], [10]]], torch.tensor([[0.6, 0.3, 0.1], [0.8, 0.1, 0.1]]), torch.tensor([[5.0, 6.0], [7.0, 8.0]])
    )
    found = each_by([narrow, wide], torch.tensor([1, 0]))
    assert found.tokens == [[[5], [6]], [[3], [4]]] and found.first_BV.tolist() == [[5.0, 6.0], [3.0, 4.0]]
    assert torch.equal(found.probability_BK, torch.tensor([[0.6, 0.3], [0.75, 0.125]]))
