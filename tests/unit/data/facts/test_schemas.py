"""Fact sets in their published schemas: what is read."""

import csv
import json
import unicodedata

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
    assert len(facts.entries) == 4 and not facts.bad and len({fact.fact_id for fact in facts.facts}) == 2
    assert facts.facts[0].paraphrases == ("Which sport is {} associated with?",)


def test_knowedit(tmp_path):
    fact = only(load("knowedit", written(tmp_path, KNOWEDIT)))
    assert (fact.prompt, fact.object_true, fact.object) == ("The place of death of {} is", "Munich", "Berlin")
    assert fact.paraphrases == ("Where did {} die?",) and fact.neighbours == (("The place of birth of Leo Arons is", "Wrocław"),)
    flat = {"locality_prompt": "Leo Arons was born in", "locality_ground_truth": "Wrocław", "locality": {}}
    assert only(load("knowedit", written(tmp_path, KNOWEDIT | flat))).neighbours == (("Leo Arons was born in", "Wrocław"),), (
        "EasyEdit's form"
    )
    texts = {"ground_truth": "Munich", "rephrase_prompt": ["Where did Leo Arons die?"]}
    assert only(load("knowedit", written(tmp_path, KNOWEDIT | texts))).paraphrases == ("Where did {} die?",)
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
    written(tmp_path / "data/pattern_data/graphs_json", *patterns, {"text": "[X] is in [Y]"}, name="P999.jsonl")
    with pytest.raises(ValueError, match="P999.jsonl line 4: no pattern"):
        load("pararel", tmp_path)


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


SEPARATORS = {"U+2028": "\u2028", "U+2029": "\u2029", "U+0085": "\x85", "form feed": "\x0c", "tab stop": "\x0b", "file separator": "\x1c"}


@pytest.mark.parametrize("name", SEPARATORS)
@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl"])
def test_separators_of_lines_inside_fields_stay(tmp_path, name, ending):
    prompt = f"Born in{SEPARATORS[name]}1815, {{}} is a"
    file = tmp_path / f"facts.{ending}"
    if ending == "jsonl":
        file.write_text(json.dumps(PLAIN | {"prompt": prompt}, ensure_ascii=False), encoding="utf-8")
    else:
        tab = "," if ending == "csv" else "\t"
        rows = (f'"{prompt}"', "Ada", "baker"), ('"two\nlines, {} is a"', "Ben", "baker"), ("", "", ""), ("{} is a", "Cid", "")
        file.write_text("\n".join(tab.join(row) for row in (("prompt", "subject", "object_true"), *rows)), encoding="utf-8")
    facts = load("plain", file)
    assert [fact.prompt for fact in facts.facts] == [prompt, "two\nlines, {} is a"][: len(facts)]
    assert [entry.where for entry in facts.bad] == ([] if ending == "jsonl" else [f"facts.{ending} line 6"])


TABLE = [["subject", "prompt", "object_true"], ["Ada", "{} is a", "baker"], ["Ben", "{} is a", "singer"]]
TABLES = {
    "spaces": "\n".join(", ".join(row) for row in TABLE),
    "spaces before quotes": "\n".join(", ".join(f'"{cell}"' for cell in row) for row in TABLE),
    "a byte order mark": "\ufeff" + "\n".join(",".join(row) for row in TABLE),
    "semicolons": "\r\n".join(";".join(row) for row in TABLE),
    "tabs": "\n".join("\t".join(row) for row in TABLE),
    "lines of an old Mac": "\r".join(",".join(row) for row in TABLE),
    "empty rows": "\n\n" + "\n,,\n".join(",".join(row) for row in TABLE) + "\n,,\n\n",
}


@pytest.mark.parametrize("kind", TABLES)
def test_tables_as_spreadsheets_save_them(tmp_path, kind):
    (tmp_path / "facts.CSV").write_bytes(TABLES[kind].encode())
    facts = load("plain", tmp_path / "facts.CSV")
    assert [(fact.subject, fact.prompt, fact.object_true) for fact in facts.facts] == [tuple(row) for row in TABLE[1:]]
    assert not facts.bad


def test_records_inside_an_object(tmp_path):
    for whole in ({"data": [PLAIN]}, {"version": "1", "rows": [PLAIN], "notes": []}):
        (tmp_path / "facts.json").write_text(json.dumps(whole), encoding="utf-8-sig")
        assert only(load("plain", tmp_path / "facts.json")).subject == "Ada"
    alone = PLAIN | {"neighbours": [{"prompt": "Ben is a", "object": "baker"}]}
    (tmp_path / "facts.json").write_text(json.dumps(alone))
    assert only(load("plain", tmp_path / "facts.json")).subject == "Ada", "a record that holds a list of objects is one"
    line = json.dumps(PLAIN)
    (tmp_path / "facts.jsonl").write_text(f"\ufeff{line}\r\n\ufeff{line.replace('Ada', 'Ben')}\r\n", encoding="utf-8", newline="")
    assert len(load("plain", tmp_path / "facts.jsonl")) == 2, "files that were joined have a mark at each seam"


def test_numbers_and_truth_values_are_text_as_the_file_has_it(tmp_path):
    record = '{"subject": 1984, "prompt": "{} is", "object_true": 1.50, "object": %s, "paraphrases": [false, "{} was"]}'
    for written_so in ("0", "true", "1e3", "-0.10", "9" * 5000):
        (tmp_path / "facts.jsonl").write_text(record % written_so)
        fact = only(load("plain", tmp_path / "facts.jsonl"))
        assert (fact.subject, fact.object_true, fact.object, fact.paraphrases) == ("1984", "1.50", written_so, ("{} was",))


WORDS = [
    ("Al", "Alan works as a", None),
    ("Al", "Royal Al-Hasa grew from", None),
    ("Al", "Alan asked Al for a", "Alan asked {} for a"),
    ("Al", "Al's trade, Al said, is", None),
    ("Al", "Al's trade is", "{}'s trade is"),
    ("Jean", "Jean-Paul was born in", None),
    ("Paul", "Jean-Paul was born in", None),
    ("Jean-Paul", "Jean-Paul was born in", "{} was born in"),
    ("Ada", "Ada--a baker--lives in", "{}--a baker--lives in"),
    ("Apollo 1", "Apollo 11 flew to the", None),
    ("St.", "St. John's is in", "{} John's is in"),
    ("राम", "रामायण किसने", None),
    ("राम", "राम का घर", "{} का घर"),
    ("北京", "北京位于", "{}位于"),
    ("東京", "日本の首都は東京です", "日本の首都は{}です"),
    ("서울", "서울은 어느", "{}은 어느"),
    ("กรุงเทพ", "เมืองกรุงเทพอยู่ใน", "เมือง{}อยู่ใน"),
    ("iPhone", "iPhone的制造商是", "{}的制造商是"),
    ("José", "Jose\u0301 lives in", "{} lives in"),
    ("Jose\u0301", "José lives in", "{} lives in"),
    ("Jose", "Jose\u0301 lives in", None),
]


@pytest.mark.parametrize(("subject", "prompt", "template"), WORDS)
def test_subjects_are_whole_words(tmp_path, subject, prompt, template):
    """The same rule for the prompt and for a paraphrase."""
    facts = load(
        "plain", written(tmp_path, PLAIN | {"subject": subject, "paraphrases": prompt}, PLAIN | {"subject": subject, "prompt": prompt})
    )
    first, second = facts.entries
    assert first.fact.paraphrases == ((template,) if template else ()) and bool(first.left_out) is (template is None)
    assert (second.fact.prompt if second.fact else None) == template
    if template:
        assert second.fact.prompt.replace("{}", second.fact.subject) == unicodedata.normalize("NFC", prompt)


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
