"""Fact sets in their published schemas: what is read."""

import csv

import datasets
import pytest
from fact_records import COUNTERFACT, KNOWEDIT, MQUAKE, PARAREL, PLAIN, ZSRE, load, written

from data.facts.fact import Fact, FactSet
from data.facts.load import load_facts, select
from decoder.config import FactsConfig


def only(facts: FactSet) -> Fact:
    assert len(facts) == 1 and not facts.bad
    return facts.facts[0]


def test_counterfact(tmp_path):
    fact = only(load("counterfact", written(tmp_path, COUNTERFACT)))
    assert (fact.fact_id, fact.relation, fact.relation_name, fact.kind) == ("P103-7", "P103", "native language", "language")
    assert (fact.subject, fact.prompt) == ("Danielle Darrieux", "The mother tongue of {} is")
    assert (fact.object_true, fact.object) == ("French", "English")
    assert fact.paraphrases == ("Shayna does this. {}, a native", "{} spoke"), "the one without the subject cannot be put to a host"
    assert fact.neighbours == (("The mother tongue of Léon Blum is", "French"), ("The native language of Montesquieu is", "French"))


def test_the_two_readings_of_zsre(tmp_path):
    file = written(tmp_path, ZSRE)
    true, alt = only(load("zsre", file)), only(load("zsre-alt", file))
    assert (true.object, true.object_true) == ("Illinois Institute of Technology", "Trinity College")
    assert (alt.object, alt.object_true) == ("University of Michigan", "Illinois Institute of Technology")
    for fact in (true, alt):
        assert fact.prompt == fact.relation == "What university did {} attend?"
        assert fact.paraphrases == ("What university did {} take part in?",)
        assert fact.neighbours == (("who played desmond doss father in hacksaw ridge?", "Hugo Weaving"),)


def test_mquake_gives_single_rewrites_once(tmp_path):
    facts = load("mquake", written(tmp_path, MQUAKE, MQUAKE | {"case_id": 2}))
    assert [(fact.subject, fact.object_true, fact.object) for fact in facts.facts] == [
        ("midfielder", "association football", "basketball"),
        ("association football", "England", "Japan"),
    ]
    assert facts.repeated == 2 and len({fact.fact_id for fact in facts.facts}) == 2
    assert facts.facts[0].paraphrases == ("Which sport is {} associated with?",)


def test_knowedit(tmp_path):
    fact = only(load("knowedit", written(tmp_path, KNOWEDIT)))
    assert (fact.prompt, fact.object_true, fact.object) == ("The place of death of {} is", "Munich", "Berlin")
    assert fact.paraphrases == ("Where did {} die?",) and fact.neighbours == (("The place of birth of Leo Arons is", "Wrocław"),)
    bio = {"concept": "John Russell", "text": "This is about John Russell. He was", "labels": "a poet", "ground_truth": "a cleric"}
    assert only(load("knowedit", written(tmp_path, bio))).prompt == "This is about {}. He was"


def test_pararel_takes_its_relation_from_the_file_and_sentences_from_the_table(tmp_path):
    fact = only(load("pararel", written(tmp_path, PARAREL, name="P17.jsonl")))
    assert (fact.relation, fact.relation_name, fact.object_true, fact.object) == ("P17", "country", "Germany", None)
    assert fact.prompt == "{} lies within the borders of" and len(fact.paraphrases) == 2


def test_pararels_own_patterns_win(tmp_path):
    for folder in ("data/trex_lms_vocab", "data/pattern_data/graphs_json"):
        (tmp_path / folder).mkdir(parents=True)
    written(tmp_path / "data/trex_lms_vocab", PARAREL, name="P999.jsonl")
    patterns = [{"pattern": text} for text in ("[X] is located in [Y] .", "[Y] is where [X] is .", "[X], in [Y].")]
    written(tmp_path / "data/pattern_data/graphs_json", *patterns, name="P999.jsonl")
    fact = only(load("pararel", tmp_path))
    assert (fact.relation, fact.prompt, fact.paraphrases) == ("P999", "{} is located in", ("{}, in",))


@pytest.mark.parametrize("name", ["facts.json", "facts.jsonl", "facts.csv", "facts.tsv"])
def test_plain_in_every_ending(tmp_path, name):
    if name.endswith("json") or name.endswith("jsonl"):
        file = written(tmp_path, PLAIN, name=name)
    else:
        file = tmp_path / name
        flat = {key: value for key, value in PLAIN.items() if key != "neighbours"} | {"paraphrases": "The trade of {} is | {}, a"}
        with file.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, flat, delimiter="\t" if name.endswith("tsv") else ",")
            writer.writeheader()
            writer.writerow(flat)
    fact = only(load("plain", file))
    assert (fact.prompt, fact.object, fact.paraphrases[0], fact.relation) == ("{} works as a", "singer", "The trade of {} is", "works as")


def test_a_folder_is_all_of_its_files_in_order(tmp_path):
    written(tmp_path, PLAIN, name="b.json")
    written(tmp_path, PLAIN | {"subject": "Ben"}, name="a.jsonl")
    (tmp_path / "notes.txt").write_text("not a fact")
    facts = load("plain", tmp_path)
    assert [fact.subject for fact in facts.facts] == ["Ben", "Ada"]
    before = facts.sha256
    written(tmp_path, PLAIN | {"subject": "Eve"}, name="b.json")
    assert load("plain", tmp_path).sha256 != before


def test_a_hub_data_set(monkeypatch):
    def load_dataset(path, split):
        assert (path, split) == ("someone/counterfact", "test")
        return datasets.Dataset.from_list([COUNTERFACT])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert only(load("counterfact", "someone/counterfact", split="test")).object == "English"


def test_selection_of_relations_and_facts(tmp_path):
    records = [PLAIN | {"relation": f"R{n}", "subject": f"s{i}"} for n, count in ((1, 5), (2, 20), (3, 30)) for i in range(count)]
    file = written(tmp_path, *records)
    whole = load("plain", file)
    kept = load("plain", file, min_per_relation=20, per_relation=10)
    assert {relation: len(facts) for relation, facts in kept.by_relation.items()} == {"R2": 10, "R3": 10}
    assert kept.facts == load("plain", file, min_per_relation=20, per_relation=10).facts
    assert kept.facts != load("plain", file, min_per_relation=20, per_relation=10, seed=1).facts
    assert len({whole.sha256, kept.sha256}) == 2 and set(kept.facts) < set(whole.facts)
    with pytest.raises(ValueError, match="largest relation.*has 30 facts"):
        load("plain", file, min_per_relation=31)


def test_the_pocket_is_what_it_was():
    """Its hash is part of the name of every cached host and store."""
    pocket = load_facts(FactsConfig())
    assert pocket.source == "pocket" and not pocket.bad and select(pocket, FactsConfig()) is pocket
    assert load_facts(FactsConfig(per_relation=5)).sha256 != pocket.sha256
