"""Fact sets in their published schemas: what is read, what is skipped and why, and what a wrong file is told."""

import csv
import json
import os
import random
import re
import time
from collections import Counter
from pathlib import Path

import datasets
import pytest

from data.fact_schemas import SCHEMAS
from data.facts import Fact, FactSet, load_facts, select
from data.splits import _evenly, draw_splits, plan_edits
from decoder.config import EditsConfig, FactsConfig, SplitsConfig

COUNTERFACT = {
    "case_id": 7,
    "pararel_idx": 2796,
    "requested_rewrite": {
        "prompt": "The mother tongue of {} is",
        "relation_id": "P103",
        "target_new": {"str": "English", "id": "Q1860"},
        "target_true": {"str": "French", "id": "Q150"},
        "subject": "Danielle Darrieux",
    },
    "paraphrase_prompts": ["Shayna does this. Danielle Darrieux, a native", "Danielle Darrieux spoke", "Someone else spoke"],
    "neighborhood_prompts": ["The mother tongue of Léon Blum is", "The native language of Montesquieu is"],
    "attribute_prompts": ["J.R.R. Tolkien spoke"],
    "generation_prompts": ["Danielle Darrieux was born in"],
}
ZSRE = {
    "subject": "Watts Humphrey",
    "src": "What university did Watts Humphrey attend?",
    "pred": "Trinity College",
    "rephrase": "What university did Watts Humphrey take part in?",
    "alt": "University of Michigan",
    "answers": ["Illinois Institute of Technology"],
    "loc": "nq question: who played desmond doss father in hacksaw ridge",
    "loc_ans": "Hugo Weaving",
    "cond": "Trinity College >> University of Michigan || What university did Watts Humphrey attend?",
}
MQUAKE = {
    "case_id": 1,
    "requested_rewrite": [
        {
            "prompt": "{} is associated with the sport of",
            "relation_id": "P641",
            "target_new": {"str": "basketball", "id": "Q5372"},
            "target_true": {"str": "association football", "id": "Q2736"},
            "subject": "midfielder",
            "question": "Which sport is midfielder associated with?",
        },
        {
            "prompt": "{} was created in the country of",
            "relation_id": "P495",
            "target_new": {"str": "Japan", "id": "Q17"},
            "target_true": {"str": "England", "id": "Q21"},
            "subject": "association football",
            "question": "Which country was association football created in?",
        },
    ],
    "questions": ["In which country was the sport of ... created?"],
    "answer": "England",
    "new_answer": "Japan",
}
KNOWEDIT = {
    "subject": "Leo Arons",
    "prompt": "The place of death of Leo Arons is",
    "target_new": "Berlin",
    "ground_truth": ["Munich"],
    "rephrase_prompt": "Where did Leo Arons die?",
    "portability": {"Reasoning": [{"prompt": "The country of the place of death of Leo Arons is", "ground_truth": [["Germany"]]}]},
    "locality": {"Relation_Specificity": [{"prompt": "The place of birth of Leo Arons is", "ground_truth": [["Wrocław"]]}]},
}
PARAREL = {"sub_label": "Eibenstock", "obj_label": "Germany", "uuid": "75e6e7c3"}
PLAIN = {
    "subject": "Ada",
    "relation": "works as",
    "prompt": "{} works as a",
    "object_true": "baker",
    "object": "singer",
    "paraphrases": ["The trade of {} is"],
    "neighbours": [["Ben works as a", "baker"]],
}
RECORDS = {
    "counterfact": COUNTERFACT, "zsre": ZSRE, "zsre-alt": ZSRE, "mquake": MQUAKE, "knowedit": KNOWEDIT, "pararel": PARAREL, "plain": PLAIN,
}  # fmt: skip


def written(folder: Path, *records, name: str = "P17.json") -> Path:
    file = folder / name
    if name.endswith(".jsonl"):
        file.write_text("".join((record if isinstance(record, str) else json.dumps(record)) + "\n" for record in records))
    else:
        file.write_text(json.dumps(list(records)))
    return file


def load(source: str, path, **settings) -> FactSet:
    return load_facts(FactsConfig(source=source, path=str(path), **settings))


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


def test_a_hub_data_set_that_cannot_be_had(monkeypatch):
    def load_dataset(path, split):
        raise ConnectionError("no\nroute")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(ValueError, match=r"someone/absent.*no route.*HF_TOKEN") as refused:
        load("plain", "someone/absent")
    assert "\n" not in str(refused.value)


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


def test_rows_of_another_width_and_bytes_that_are_no_text(tmp_path):
    file = tmp_path / "facts.csv"
    file.write_text("subject,prompt,object_true\nAda,{} works as a,baker\nBen,{} is a\nCarl,{} is a,singer,more\n")
    facts = load("plain", file)
    assert len(facts) == 1 and [record.where for record in facts.bad] == ["facts.csv line 3", "facts.csv line 4"]
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="no plain facts.*not UTF-8"):
        load("plain", file)


def test_places_without_facts_are_refused(tmp_path):
    (tmp_path / "nothing").mkdir()
    for path, message in [
        (tmp_path / "absent.json", "no such file"),
        (tmp_path / "nothing", "has no .json"),
        (written(tmp_path, name="empty.json"), "no plain facts"),
    ]:
        with pytest.raises(ValueError, match=message):
            load("plain", path)
    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="expected one of .json"):
        load("plain", tmp_path / "weights.bin")
    with pytest.raises(ValueError, match="needs facts.path="):
        load_facts(FactsConfig(source="counterfact"))
    with pytest.raises(ValueError, match="did you mean 'counterfact'"):
        load_facts(FactsConfig(source="counterfacts"))


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


def test_a_planted_object_that_is_given_is_the_only_one_asked_for(tmp_path):
    records = [PLAIN | {"relation": f"R{n}", "subject": f"s{n}.{i}", "object": f"o{i % 4}"} for n in range(3) for i in range(20)]
    facts = load("plain", written(tmp_path, *records))
    plan = draw_splits(facts, SplitsConfig(train_relations=1, val_relations=1, ood_relations=1))
    requests = plan_edits(facts, plan, EditsConfig())
    assert requests and all(request.object == request.fact.object for request in requests)
    assert plan.held_out <= {f"o{n}" for n in range(4)}


def naive_evenly(pairs, count, rng):
    """The rule as it reads: always the first pair whose object and then whose subject was taken least."""
    rng.shuffle(pairs)
    objects, subjects, chosen = Counter(), Counter(), []
    while pairs and len(chosen) < count:
        pick = min(pairs, key=lambda pair: (objects[pair[1]], subjects[pair[0].subject]))
        pairs.remove(pick)
        chosen.append(pick)
        objects[pick[1]] += 1
        subjects[pick[0].subject] += 1
    return chosen


@pytest.mark.parametrize("seed", range(5))
def test_even_draw_equals_the_rule_as_it_reads(seed):
    rng = random.Random(seed)
    pairs = [(Fact(str(n), f"s{rng.randrange(9)}", "R", "r", "k", "{}", (), "t"), f"o{rng.randrange(7)}") for n in range(80)]
    for count in (1, 30, 200):
        found = _evenly(list(pairs), count, random.Random(seed))
        assert found == naive_evenly(list(pairs), count, random.Random(seed))


BESIDE = Path(__file__).resolve().parents[2].parent / "shared" / "facts" / "pararel"
WHOLE_PARAREL = Path(os.environ.get("PARAREL_FOLDER") or BESIDE)


@pytest.mark.skipif(not WHOLE_PARAREL.is_dir(), reason="ParaRel's triples are not beside the clone")
def test_the_whole_of_pararel(host_of):
    from data.pocket.tokenizer import build_tokenizer
    from decoder.host import Host

    started = time.perf_counter()
    facts = load("pararel", WHOLE_PARAREL)
    assert len(facts) + facts.repeated == 29_411 and not facts.bad and len(facts.by_relation) == 41
    host = Host(host_of("llama").model, build_tokenizer(load_facts(FactsConfig()), 600), name="pocket")
    for fact in facts.facts:
        ids, lookup = host.prompt_ids(fact.prompt, fact.subject)
        assert 0 <= lookup < len(ids) and host.object_ids(fact.object_true)
    plan = draw_splits(facts, SplitsConfig(train_relations=25, val_relations=4, ood_relations=12))
    requests = plan_edits(facts, plan, EditsConfig())
    roles = Counter(plan.relation_role[request.fact.relation] for request in requests)
    assert roles["ood"] == 12 * 32 and roles["val"] == 4 * 32 and roles["train"] > 25 * 80
    assert time.perf_counter() - started < 60
