"""What follows from a planted object, as fact sets give it."""

import copy

import pytest
from fact_records import COUNTERFACT, KNOWEDIT, MQUAKE, PLAIN, RECORDS, ZSRE, load, written

from data.facts.fact import Consequence


def read(tmp_path, source, record):
    return load(source, written(tmp_path, record))


def test_knowedit_has_portability_by_its_sub_scores(tmp_path):
    record = KNOWEDIT | {
        "portability": {
            "Reasoning": [{"prompt": "The country where Leo Arons died is", "ground_truth": [["Germany", "FRG"], ["Germany"]]}],
            "Subject_Aliasing": [{"prompt": "Arons died in", "ground_truth": "Berlin"}],
            "Logical_Generalization": [],
        }
    }
    (fact,) = read(tmp_path, "knowedit", record).facts
    assert fact.consequences == (
        Consequence("Reasoning", ("The country where Leo Arons died is",), ("Germany", "FRG")),
        Consequence("Subject_Aliasing", ("Arons died in",), ("Berlin",)),
    )
    flat = {name: value for name, value in KNOWEDIT.items() if name != "portability"}
    (fact,) = read(tmp_path, "knowedit", flat | {"portability_prompt": "Arons died in", "portability_ground_truth": "Berlin"}).facts
    assert fact.consequences == (Consequence("portability", ("Arons died in",), ("Berlin",)),)


def test_mquake_has_several_hops_where_one_edit_makes_them(tmp_path):
    chain = {
        "new_answer_alias": ["Nippon", "Nihon"],
        "new_single_hops": [
            {"question": "Which sport?", "cloze": "The sport is", "answer": "basketball", "answer_alias": ["hoops"]},
            {"question": "Which country?", "cloze": "The country is", "answer": "Japan", "answer_alias": []},
        ],
    }
    facts = read(tmp_path, "mquake", MQUAKE | chain).facts
    assert [fact.consequences for fact in facts] == [
        (Consequence("one-hop", ("Which sport?",), ("basketball", "hoops")),),
        (Consequence("one-hop", ("Which country?",), ("Japan",)),),
    ]
    single = MQUAKE | chain | {"requested_rewrite": MQUAKE["requested_rewrite"][1:], "questions": ["Which?", "In which?", "Where?"]}
    (fact,) = read(tmp_path, "mquake", single).facts
    assert fact.consequences[1] == Consequence("multi-hop", ("Which?", "In which?", "Where?"), ("Japan", "Nippon", "Nihon"))


def test_zsre_has_a_new_question_where_the_alternative_is_planted(tmp_path):
    record = ZSRE | {"portability": {"Recalled Relation": "(a, b, c)", "New Question": "In which state?", "New Answer": "Michigan"}}
    (fact,) = read(tmp_path, "zsre-alt", record).facts
    assert fact.consequences == (Consequence("Reasoning", ("In which state?",), ("Michigan",)),)
    assert read(tmp_path, "zsre", record).facts[0].consequences == ()


def test_counterfact_has_openings_of_free_text(tmp_path):
    (fact,) = read(tmp_path, "counterfact", COUNTERFACT | {"generation_prompts": ["Danielle Darrieux was born in"] * 2}).facts
    assert fact.openings == ("Danielle Darrieux was born in",) * 2 and fact.consequences == ()


@pytest.mark.parametrize(
    ("source", "field", "value", "said"),
    [
        ("knowedit", "portability", "none", "portability is 'none', expected an object with fields"),
        ("knowedit", "portability", {"Reasoning": [{"prompt": "The country is"}]}, "no portability.Reasoning[0].ground_truth"),
        ("knowedit", "portability", {"Reasoning": [{"prompt": "It is", "ground_truth": [[{}, {"a": 1}]]}]}, "expected text"),
        ("knowedit", "portability_prompt", "Arons died in", "no portability_ground_truth"),
        ("mquake", "new_single_hops", [3], "new_single_hops[0] is '3', expected an object with fields"),
        ("counterfact", "generation_prompts", [["a"]], "generation_prompts[0] is ['a'], expected text"),
    ],
)
def test_what_cannot_be_read_costs_itself_only(tmp_path, source, field, value, said):
    found = read(tmp_path, source, copy.deepcopy(RECORDS[source]) | {field: value})
    assert len(found) >= 1 and any(said in left for entry in found.entries for left in entry.left_out), found.entries


def test_other_sets_have_none(tmp_path):
    (fact,) = read(tmp_path, "plain", PLAIN).facts
    assert fact.consequences == fact.openings == ()
