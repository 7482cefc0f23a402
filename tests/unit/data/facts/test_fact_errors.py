"""Fact sets that are malformed: what is skipped and why, and what a wrong file is told."""

import json
import re

import datasets
import pytest
from fact_records import COUNTERFACT, KNOWEDIT, MQUAKE, PARAREL, PLAIN, RECORDS, ZSRE, load, written

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


def changed(record: dict, **fields) -> dict:
    return {name: value for name, value in (record | fields).items() if value is not ...}


def rewrite(**fields) -> dict:
    return COUNTERFACT | {"requested_rewrite": changed(COUNTERFACT["requested_rewrite"], **fields)}


BAD = [
    ("counterfact", rewrite(prompt="The mother tongue is"), "neither {} nor the subject"),
    ("counterfact", rewrite(prompt="{} and {} speak"), "{} once"),
    ("counterfact", rewrite(prompt="{} speaks {a"), "no other braces"),
    ("counterfact", rewrite(subject=""), "subject is ''"),
    ("counterfact", rewrite(subject=None), "subject is None"),
    ("counterfact", rewrite(subject=...), "KeyError: 'subject'"),
    ("counterfact", rewrite(target_new={"str": "French"}), "the one that is there"),
    ("counterfact", rewrite(target_new="French"), "TypeError"),
    ("counterfact", rewrite(target_true={"str": " "}), "str is ' '"),
    ("counterfact", COUNTERFACT | {"requested_rewrite": None}, "TypeError"),
    ("counterfact", COUNTERFACT | {"paraphrase_prompts": 3}, "TypeError"),
    ("zsre", ZSRE | {"answers": []}, "empty"),
    ("zsre", ZSRE | {"answers": [None]}, "None"),
    ("zsre", ZSRE | {"pred": "", "alt": "Illinois Institute of Technology"}, "nothing would change"),
    ("zsre-alt", ZSRE | {"alt": ""}, "alt is ''"),
    ("zsre-alt", ZSRE | {"src": "Which one?"}, "neither {} nor the subject"),
    ("mquake", MQUAKE | {"requested_rewrite": [{}]}, "KeyError"),
    ("knowedit", KNOWEDIT | {"ground_truth": {}}, "expected text"),
    ("knowedit", KNOWEDIT | {"target_new": [[]]}, "empty"),
    ("pararel", PARAREL | {"obj_label": True}, "expected text"),
    ("pararel", changed(PARAREL, obj_label=...), "no obj_label"),
    ("plain", changed(PLAIN, prompt=...), "no sentence|prompt ''"),
    ("plain", PLAIN | {"object": "baker"}, "the one that is there"),
    ("plain", [PLAIN], "got list"),
    ("plain", "{not json", "not JSON"),
    ("plain", '{"subject": "Ada", "object_true"', "not JSON"),
    ("plain", "7", "got int"),
]


@pytest.mark.parametrize(("source", "record", "reason"), BAD, ids=range(len(BAD)))
def test_bad_records_are_listed_and_the_rest_goes_on(tmp_path, caplog, source, record, reason):
    good = RECORDS[source]
    file = written(tmp_path, good, record, name="P17.jsonl")
    facts = load(source, file)
    assert len(facts) == len(load(source, written(tmp_path, good, name="P18.jsonl" if source != "pararel" else "P17.jsonl")))
    assert len(facts.bad) == 1 and facts.bad[0].where == "P17.jsonl line 2"
    assert any(part in facts.bad[0].reason for part in reason.split("|")) or re.search(reason, facts.bad[0].reason)
    assert "P17.jsonl line 2 skipped" in caplog.text and "1 records skipped" in caplog.text


def test_rows_of_another_width_are_listed(tmp_path):
    file = tmp_path / "facts.csv"
    file.write_text("subject,prompt,object_true\nAda,{} works as a,baker\nBen,{} is a\nCarl,{} is a,singer,more\n")
    facts = load("plain", file)
    assert len(facts) == 1 and [record.where for record in facts.bad] == ["facts.csv line 3", "facts.csv line 4"]


GOOD = json.dumps([PLAIN])
FILES = {
    "empty file": ("facts.json", "", "no plain facts"),
    "empty list": ("facts.json", "[]", "no plain facts"),
    "list cut short": ("facts.json", GOOD[:-9], "no plain facts.*not JSON"),
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
