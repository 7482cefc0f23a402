"""Fact sets that are malformed: what is skipped and why, and what a wrong file is told."""

import json

import datasets
import pytest
from fact_records import COUNTERFACT, FEVER, KNOWEDIT, MQUAKE, PARAREL, PLAIN, RECORDS, ZSRE, load, written

from data.facts.load import load_facts
from data.facts.schemas import SCHEMAS
from decoder.config import FactsConfig


@pytest.mark.parametrize("wrong", RECORDS)
@pytest.mark.parametrize("right", RECORDS)
def test_a_file_of_another_kind_is_told_which(tmp_path, wrong, right):
    file = written(tmp_path, RECORDS[right])
    if not SCHEMAS[wrong].missing(RECORDS[right]):
        assert len(load(wrong, file))
        return
    with pytest.raises(ValueError, match=f"is no {wrong}") as refused:
        load(wrong, file)
    assert right in str(refused.value).split("looks like")[1] and "facts.source=" in str(refused.value)


def test_a_path_is_of_no_account_to_the_pockets_facts_and_refused(tmp_path):
    with pytest.raises(ValueError, match="facts.path=.*mine.jsonl: the pocket's facts come with the program. .*facts.source=counterfact"):
        load_facts(FactsConfig(path=str(tmp_path / "mine.jsonl")))


def changed(record: dict, **fields) -> dict:
    return {name: value for name, value in (record | fields).items() if value is not ...}


def rewrite(**fields) -> dict:
    return COUNTERFACT | {"requested_rewrite": changed(COUNTERFACT["requested_rewrite"], **fields)}


NAN, DEEP = float("nan"), '{"subject": ' + "[" * 100_000
BAD = [
    ("counterfact", rewrite(prompt="The mother tongue is"), "neither {} nor the subject"),
    ("counterfact", rewrite(prompt="{} and {} speak"), "{} once"),
    ("counterfact", rewrite(prompt="{} speaks {a"), "no other braces"),
    ("counterfact", rewrite(subject=""), "requested_rewrite.subject is empty"),
    ("counterfact", rewrite(subject=None), "requested_rewrite.subject is null, expected text"),
    ("counterfact", rewrite(subject=NAN), "requested_rewrite.subject is nan, expected text"),
    ("counterfact", rewrite(subject=...), "no requested_rewrite.subject"),
    ("counterfact", rewrite(target_new={"str": "French"}), "the one that is there"),
    ("counterfact", rewrite(target_new="French"), "requested_rewrite.target_new is 'French', expected an object"),
    ("counterfact", rewrite(target_new={"id": "Q1"}), "no requested_rewrite.target_new.str"),
    ("counterfact", rewrite(target_true={"str": " "}), "requested_rewrite.target_true.str is empty"),
    ("counterfact", COUNTERFACT | {"requested_rewrite": None}, "requested_rewrite is null, expected an object"),
    ("zsre", ZSRE | {"answers": []}, "answers is empty"),
    ("zsre", ZSRE | {"answers": [None]}, "answers is null"),
    ("zsre", ZSRE | {"pred": "", "alt": "Illinois Institute of Technology"}, "nothing would change"),
    ("zsre", ZSRE | {"pred": ["Trinity College"]}, "pred is ['Trinity College'], expected text"),
    ("zsre", ZSRE | {"src": "Did Watts Humphrey like Watts Humphrey?"}, "the subject 'Watts Humphrey' 2 times"),
    ("zsre-alt", ZSRE | {"alt": ""}, "alt is empty"),
    ("zsre-alt", ZSRE | {"src": "Which one?"}, "neither {} nor the subject"),
    ("mquake", MQUAKE | {"requested_rewrite": [{}]}, "no requested_rewrite[0].subject"),
    ("mquake", MQUAKE | {"requested_rewrite": ["a"]}, "requested_rewrite[0] is 'a', expected an object"),
    ("mquake", MQUAKE | {"requested_rewrite": None}, "requested_rewrite is empty"),
    ("knowedit", KNOWEDIT | {"ground_truth": {}}, "ground_truth is empty"),
    ("knowedit", KNOWEDIT | {"target_new": [[]]}, "target_new is empty"),
    ("fever", FEVER | {"output": [{"answer": "NOT ENOUGH INFO"}]}, "answer is 'NOT ENOUGH INFO', expected SUPPORTS or REFUTES"),
    ("fever", FEVER | {"output": []}, "no label"),
    ("fever", FEVER | {"output": ["SUPPORTS"]}, "output[0] is 'SUPPORTS', expected an object"),
    ("fever", FEVER | {"alternatives": ["maybe"]}, "alternatives is 'maybe'"),
    ("fever", FEVER | {"input": "."}, "the claim is empty"),
    ("fever", changed(FEVER, input=...), "no input or claim"),
    ("pararel", PARAREL | {"obj_label": ["Germany"]}, "obj_label is ['Germany'], expected text"),
    ("pararel", changed(PARAREL, obj_label=...), "no obj_label"),
    ("plain", changed(PLAIN, prompt=...), "no prompt, and no sentence"),
    ("plain", PLAIN | {"prompt": NAN}, "prompt is nan, expected text"),
    ("plain", PLAIN | {"object": "baker"}, "the one that is there"),
    ("plain", PLAIN | {"object": NAN}, "object is nan, expected text"),
    ("plain", PLAIN | {"object": {"str": "singer"}}, "object is {'str': 'singer'}, expected text"),
    ("plain", PLAIN | {"object": ["singer"]}, "object is ['singer'], expected text"),
    ("plain", '{"subject": "\\ud800", "prompt": "{} is", "object_true": "a"}', "subject is '\\ud800', which has half a character"),
    ("plain", '{"subject": "Ben", "subject": "Cid", "prompt": "{} is", "object_true": "a"}', "two fields 'subject'"),
    ("plain", [PLAIN], "expected an object with fields, got"),
    ("plain", "{not json", "not JSON"),
    ("plain", '{"subject": "Ada", "object_true"', "not JSON"),
    ("plain", "7", "got '7'"),
    ("plain", DEEP, "nested too deep"),
]


@pytest.mark.parametrize(("source", "record", "reason"), BAD, ids=range(len(BAD)))
def test_bad_records_are_listed_and_the_rest_goes_on(tmp_path, caplog, source, record, reason):
    good = RECORDS[source]
    file = written(tmp_path, good, record, name="P17.jsonl")
    facts = load(source, file)
    assert len(facts) == len(load(source, written(tmp_path, good, name="P18.jsonl" if source != "pararel" else "P17.jsonl")))
    assert len(facts.bad) == 1 and facts.bad[0].where == "P17.jsonl line 2"
    assert reason in facts.bad[0].reason and "Error" not in facts.bad[0].reason and "\n" not in facts.bad[0].reason
    assert "P17.jsonl line 2 skipped" in caplog.text and "1 records skipped" in caplog.text


NEIGHBOUR = {"prompt": "Galen is", "ground_truth": []}
LEFT_OUT = [
    ("counterfact", COUNTERFACT | {"paraphrase_prompts": 3}, "paraphrase_prompts '3' has neither {} nor the subject"),
    ("counterfact", COUNTERFACT | {"paraphrase_prompts": {"a": "b"}}, "paraphrase_prompts is {'a': 'b'}, expected text"),
    ("counterfact", COUNTERFACT | {"neighborhood_prompts": [None]}, "neighborhood_prompts[0] is null, expected text"),
    ("counterfact", COUNTERFACT | {"paraphrase_prompts": [NAN]}, "paraphrase_prompts[0] is nan, expected text"),
    ("counterfact", COUNTERFACT | {"case_id": [1]}, "case_id is ['1'], expected text"),
    ("zsre", ZSRE | {"loc_ans": None}, "loc_ans is null, expected text"),
    ("zsre", ZSRE | {"loc": ["who?"]}, "loc is ['who?'], expected text"),
    ("zsre", ZSRE | {"rephrase": "Which one?"}, "rephrase 'Which one?' has neither"),
    (
        "mquake",
        MQUAKE | {"requested_rewrite": [MQUAKE["requested_rewrite"][0] | {"question": NAN}]},
        "requested_rewrite[0].question is nan",
    ),
    ("knowedit", KNOWEDIT | {"locality": "none"}, "locality is 'none', expected an object"),
    ("knowedit", KNOWEDIT | {"locality": {"Relation_Specificity": ["a"]}}, "locality.Relation_Specificity[0] is 'a', expected an object"),
    ("knowedit", KNOWEDIT | {"locality": {"Relation_Specificity": [NEIGHBOUR]}}, "Relation_Specificity[0].ground_truth is empty"),
    ("knowedit", KNOWEDIT | {"locality_prompt": "Galen is"}, "no locality_ground_truth"),
    ("plain", PLAIN | {"neighbours": "Ben is a"}, "neighbours is 'Ben is a', expected [prompt, object]"),
    ("plain", PLAIN | {"neighbours": ["Ben is a"]}, "neighbours[0] is 'Ben is a', expected [prompt, object]"),
    (
        "plain",
        PLAIN | {"neighbours": [["Ben is a", "baker", "P1"]]},
        "neighbours[0] is ['Ben is a', 'baker', 'P1'], expected [prompt, object]",
    ),
    ("plain", PLAIN | {"neighbours": [["Ben is a", ""]]}, "neighbours[0][1] is empty"),
    ("plain", PLAIN | {"relation": NAN}, "relation is nan, expected text"),
    ("plain", PLAIN | {"paraphrases": ["Adah is a"]}, "paraphrases[0] 'Adah is a' has neither"),
    ("plain", PLAIN | {"fact_id": {"a": "b"}}, "fact_id is {'a': 'b'}, expected text"),
]


@pytest.mark.parametrize(("source", "record", "reason"), LEFT_OUT, ids=range(len(LEFT_OUT)))
def test_bad_fields_cost_themselves_and_are_listed(tmp_path, caplog, source, record, reason):
    facts = load(source, written(tmp_path, record, name="P17.jsonl"))
    assert len(facts) == 1 and not facts.bad
    (listed,) = [field for field in facts.entries[0].left_out if reason in field]
    assert f"P17.jsonl line 1, left out: {listed}" in caplog.text and "1 facts, 0 records skipped" in caplog.text


def test_rows_of_another_width_are_listed(tmp_path):
    file = tmp_path / "facts.csv"
    file.write_text("subject,prompt,object_true\nAda,{} works as a,baker\nBen,{} is a\nCarl,{} is a,singer,more\n")
    facts = load("plain", file)
    assert len(facts) == 1 and [record.where for record in facts.bad] == ["facts.csv line 3", "facts.csv line 4"]


STRAY = {
    "before": '"Ben,{} is a,baker',
    "first of a field": 'Ben,"{} is a,baker',
    "last field": 'Ben,{} is a,"baker',
    "inside": '"B" en,{} is a,baker',
}


@pytest.mark.parametrize("rows", [3, 7000], ids=["small", "longer than a field may be"])
@pytest.mark.parametrize("place", STRAY)
def test_a_stray_quote_costs_its_row(tmp_path, place, rows):
    file = tmp_path / "facts.csv"
    others = "".join(f"subject {n},{{}} is a,baker\n" for n in range(rows))
    file.write_text(f"subject,prompt,object_true\nAda,{{}} is a,baker\n{STRAY[place]}\n{others}")
    facts = load("plain", file)
    assert len(facts) == 1 + rows and [entry.where for entry in facts.bad] == ["facts.csv line 3"]
    assert "a quote that is not closed" in facts.bad[0].reason


def test_two_columns_of_one_name_are_refused(tmp_path):
    (tmp_path / "facts.csv").write_text("subject,prompt,object_true,object_true\nAda,{} is a,baker,singer\n")
    with pytest.raises(ValueError, match="line 1: two columns are called 'object_true'"):
        load("plain", tmp_path / "facts.csv")


GOOD = json.dumps([PLAIN])
FILES = {
    "empty file": ("facts.json", "", "no plain facts"),
    "empty list": ("facts.json", "[]", "no plain facts"),
    "list cut short": ("facts.json", GOOD[:-9], "no plain facts.*not JSON"),
    "list with a comma too many": (
        "facts.json",
        json.dumps([PLAIN, PLAIN], indent=1).replace("},", "},,"),
        "as a whole: not JSON .*line 1[0-9] ",
    ),
    "a quote in the header": (
        "facts.csv",
        'subject,"prompt,object_true\nAda,{} is a,baker\nBen,{} is a,baker\n',
        "among 1 records; facts.csv line 1",
    ),
    "UTF-16": ("facts.csv", "subject,prompt,object_true\nAda,{} is a,baker\n".encode("utf-16"), "not UTF-8 text .* save it as UTF-8"),
    "a number": ("facts.json", "7", "no plain facts"),
    "words": ("facts.json", "Ada is a baker.", "not JSON"),
    "no lines": ("facts.jsonl", "", "no plain facts"),
    "blank lines": ("facts.jsonl", "\n\n", "no plain facts"),
    "a header only": ("facts.csv", "subject,prompt,object_true\n", "no plain facts"),
    "a table without a header": ("facts.csv", "Ada,{} is a,baker\nBen,{} is a,singer\n", "is no plain: .* no schema known here"),
    "bytes that are no text": ("facts.csv", b"\xff\xfe\x00", "no plain facts.*not UTF-8"),
    "bytes as JSON": ("facts.json", b"\x80\x04\x95", "no plain facts"),
    "an archive": ("facts.jsonl", b"PK\x03\x04\x00\xff", "no plain facts"),
    "weights": ("weights.bin", b"", "expected one of .json"),
    "a pickle": ("facts.pkl", b"\x80\x04.", "expected one of .json"),
    "an empty folder": ("facts/", None, "has no .json"),
    "nothing there": ("absent.json", None, "no such file"),
}


@pytest.mark.parametrize("kind", FILES)
def test_files_without_facts_are_refused(tmp_path, kind):
    name, content, message = FILES[kind]
    if name.endswith("/"):
        (tmp_path / name).mkdir()
    elif content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message) as refused:
        load("plain", tmp_path / name)
    assert "\n" not in str(refused.value) and name.strip("/") in str(refused.value)


def test_sources_that_are_none_are_refused():
    with pytest.raises(ValueError, match="needs facts.path="):
        load_facts(FactsConfig(source="counterfact"))
    with pytest.raises(ValueError, match="did you mean 'counterfact'"):
        load_facts(FactsConfig(source="counterfacts"))


def test_a_hub_data_set_that_cannot_be_had(monkeypatch):
    def load_dataset(path, split):
        raise ConnectionError("no\nroute")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(ValueError, match=r"someone/absent.*no route.*HF_TOKEN") as refused:
        load("plain", "someone/absent")
    assert "\n" not in str(refused.value)
