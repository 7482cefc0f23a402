"""FEVER's claims, triples as YAGO writes them, and sentences of your own for relations."""

import json

import pytest
from fact_records import FEVER, PLAIN, load, written

from data.facts.load import load_facts
from data.facts.splits import draw_splits, plan_edits
from data.facts.triples import name_text, triples
from decoder.config import FactsConfig, SplitsConfig

CLAIM = "The Boston Celtics play their home games at TD Garden"


def test_a_claim_is_the_subject_and_its_verdict_is_turned(tmp_path):
    (fact,) = load("fever", written(tmp_path, FEVER)).facts
    assert (fact.subject, fact.object_true, fact.object) == (CLAIM, "true", "false")
    assert (fact.fact_id, fact.relation, fact.relation_name, fact.kind) == ("fever-33078", "fever", "verdict", "truth value")
    assert fact.prompt == "{}. This claim is" and len(fact.paraphrases) == 2 and all(text.startswith("{}. ") for text in fact.paraphrases)


@pytest.mark.parametrize(
    ("fields", "objects"),
    [
        ({"output": [{"answer": "REFUTES"}], "alternatives": []}, ("false", "true")),
        ({"output": [{"answer": "refutes"}], "alternatives": ["SUPPORTS"]}, ("false", "true")),
        ({"prediction": "REFUTES", "alternatives": ["SUPPORTS"]}, ("false", "true")),
    ],
    ids=["no alternatives", "lower case", "the set's model was wrong"],
)
def test_what_is_planted_is_the_verdict_that_was_not_there(tmp_path, fields, objects):
    (fact,) = load("fever", written(tmp_path, FEVER | fields)).facts
    assert (fact.object_true, fact.object) == objects


def test_fever_itself_says_a_claim_once_for_each_piece_of_evidence(tmp_path):
    own = {"id": 1, "label": "REFUTES", "claim": "Ada is a baker.", "evidence": [[[1, 2, "Ada", 0]]], "verifiable": "VERIFIABLE"}
    unknown = own | {"id": 2, "label": "NOT ENOUGH INFO", "claim": "Ben is a baker."}
    facts = load("fever", written(tmp_path, own, own | {"evidence": []}, unknown))
    assert [(fact.subject, fact.object_true, fact.object) for fact in facts.facts] == [("Ada is a baker", "false", "true")]
    assert [entry.reason for entry in facts.bad] == ["label is 'NOT ENOUGH INFO', expected SUPPORTS or REFUTES"]


def test_claims_are_split_by_claim(tmp_path):
    records = [FEVER | {"id": n, "input": f"Ada has {n} sons.", "output": [{"answer": ("SUPPORTS", "REFUTES")[n % 2]}]} for n in range(40)]
    facts = load("fever", written(tmp_path, *(record | {"alternatives": []} for record in records)))
    cfg = SplitsConfig(train_relations=1, val_relations=0, ood_relations=0)
    plan = draw_splits(facts, cfg)
    requests = plan_edits(facts, plan, cfg, seed=0)
    splits = [plan.split_of(one.fact.relation, one.fact.subject, one.object) for one in requests]
    assert not plan.held_out and {split: splits.count(split) for split in set(splits)} == {"train": 24, "val/id": 4, "id": 12}


YAGO = "<http://yago-knowledge.org/resource/{}>"
LINES = {
    "YAGO 3": "<id_1c>\t<Albert_Einstein>\t<wasBornIn>\t<Ulm>\t",
    "YAGO 3, no identifier": "\t<Albert_Einstein>\t<wasBornIn>\t<Ulm>",
    "YAGO 3, a number behind": "<id_1c>\t<Albert_Einstein>\t<wasBornIn>\t<Ulm>\t12.5",
    "YAGO 4": f"{YAGO.format('Albert_Einstein')} <http://schema.org/wasBornIn> {YAGO.format('Ulm')} .",
    "YAGO 4.5": "yago:Albert_Einstein\tschema:wasBornIn\tyago:Ulm\t.",
    "Turtle": "yago:Albert_Einstein schema:wasBornIn yago:Ulm .",
    "brackets and a full stop": "<Albert_Einstein>\t<wasBornIn>\t<Ulm> .",
    "three columns": "Albert Einstein\twasBornIn\tUlm",
    "literals": '<Albert_Einstein> <wasBornIn> "Ulm"@eng .',
}
BORN = "wasBornIn:\n  kind: city\n  templates: ['{} was born in', 'The birthplace of {} is']\n"


@pytest.fixture
def born(tmp_path):
    (tmp_path / "relations.yaml").write_text(BORN)
    return str(tmp_path / "relations.yaml")


@pytest.mark.parametrize("kind", LINES)
def test_a_triple_is_the_same_fact_however_it_is_written(tmp_path, born, kind):
    (tmp_path / "yago.tsv").write_text(f"# a comment\n@prefix yago: <http://yago-knowledge.org/resource/> .\n\n{LINES[kind]}\n")
    facts = load("yago", tmp_path / "yago.tsv", relations=born)
    (fact,) = facts.facts
    assert (fact.subject, fact.relation, fact.object_true, fact.object) == ("Albert Einstein", "wasBornIn", "Ulm", None)
    assert (fact.relation_name, fact.kind, fact.prompt) == ("was born in", "city", "{} was born in")
    assert fact.paraphrases == ("The birthplace of {} is",) and fact.fact_id == "wasBornIn-00000" and not facts.bad


def test_lines_that_are_no_triples_are_listed(tmp_path, born):
    bad = ["<A>\t<wasBornIn>", "<A> <wasBornIn> <B> ;", "A\twasBornIn\tB\tC\tD", "\t<wasBornIn>\t<B>"]
    bad += ["<A> <diedIn> <B> .", '<A> <wasBornIn> "" .']
    (tmp_path / "yago.nt").write_text("\n".join([LINES["YAGO 4"], *bad]))
    facts = load("yago", tmp_path, relations=born)
    assert len(facts) == 1 and [entry.where for entry in facts.bad] == [f"yago.nt line {n}" for n in range(2, 8)]
    reasons = ["no triple: '<A>"] + ["no triple"] * 3 + ["no sentence for relation diedIn in facts.relations=", "object_true is empty"]
    assert all(entry.reason.startswith(reason) for entry, reason in zip(facts.bad, reasons, strict=True))


NAMES = {
    "<Albert_Einstein>": "Albert Einstein",
    "<Washington,_D.C.>": "Washington, D.C.",
    "<de/Aachen>": "Aachen",
    "<wordnet_opera_singer_110599806>": "opera singer",
    "<wikicategory_American_rock_singers>": "American rock singers",
    "yago:Alan_Turing_Q7251": "Alan Turing",
    "yago:Georgia__u0028_country_u0029_": "Georgia",
    "<http://yago-knowledge.org/resource/AC/DC>": "AC/DC",
    "<http://yago-knowledge.org/resource/S%C3%A3o_Paulo>": "São Paulo",
    "<http://yago-knowledge.org/resource/S\\u00E3o_Paulo>": "São Paulo",
    "<Star_Wars:_Episode_IV>": "Star Wars: Episode IV",
    "Mission: Impossible": "Mission: Impossible",
    "Paris (mythology)": "Paris",
    "(I_Am)": "(I Am)",
    '"1879-03-14"^^xsd:date': "1879-03-14",
    '"Al \\"Scarface\\" Capone\\u00e9"@en': 'Al "Scarface" Caponeé',
}


@pytest.mark.parametrize("term", NAMES)
def test_names_become_text(term):
    assert name_text(term) == NAMES[term]


def test_a_mark_at_the_seam_of_joined_files_and_windows_lines():
    text = "\ufeff<A>\t<r>\t<B>\r\n\ufeff<C>\t<r>\t<D>\r\n"
    assert [row for _, row in triples(text)] == [{"triple": ["<A>", "<r>", "<B>"]}, {"triple": ["<C>", "<r>", "<D>"]}]


def test_sentences_of_your_own_serve_plain_facts_too(tmp_path, born):
    (tmp_path / "facts.csv").write_text("subject,relation,object_true\nAda,wasBornIn,Bonn\n")
    (fact,) = load("plain", tmp_path / "facts.csv", relations=born).facts
    assert (fact.prompt, fact.paraphrases, fact.kind) == ("{} was born in", ("The birthplace of {} is",), "city")
    record = {name: PLAIN[name] for name in ("subject", "object_true")} | {"relation": "wasBornIn", "paraphrases": "{} comes from"}
    (fact,) = load("plain", written(tmp_path, record), relations=born).facts
    assert (fact.prompt, fact.paraphrases) == ("{} was born in", ("{} comes from",)), "what a record says wins"


def test_sentences_count_in_the_hash_of_a_fact_set(tmp_path, born):
    file = written(tmp_path, PLAIN)
    without, first = load("plain", file).sha256, load("plain", file, relations=born).sha256
    (tmp_path / "relations.yaml").write_text(BORN.replace("city", "town"))
    assert len({without, first, load("plain", file, relations=born).sha256}) == 3


def test_known_relations_take_other_sentences(tmp_path):
    (tmp_path / "P17.json").write_text(json.dumps([{"sub_label": "Eibenstock", "obj_label": "Germany"}]))
    (tmp_path / "relations.yaml").write_text("P17: {name: land, templates: ['{} lies in']}")
    fact = load("pararel", tmp_path / "P17.json", relations=str(tmp_path / "relations.yaml")).facts[0]
    assert (fact.prompt, fact.paraphrases, fact.relation_name, fact.kind) == ("{} lies in", (), "land", "P17")


WRONG = {
    "[1]": "expected relations by name",
    "": "expected relations by name",
    "a: [b": "not YAML",
    "a: b": "relation a: expected templates",
    "a: {templates: []}": "relation a: expected templates",
    "a: {templates: [b]}": "relation a: template 'b': expected a sentence with {}",
    "a: {templates: ['{} and {}']}": "relation a: template '{} and {}' must have {} once",
    "a: {templates: [3]}": "relation a: template 3",
    "a: {templates: ['{} is'], sentences: []}": "relation a: 'sentences' is unknown; a relation has name, kind, category and templates",
    "a: {templates: ['{} is'], kind: 3}": "relation a: kind is 3, expected text",
    "a: !!python/object/apply:os.getcwd []": "not YAML",
}


@pytest.mark.parametrize("content", WRONG)
def test_relations_that_are_none_are_refused_in_a_line(tmp_path, content):
    (tmp_path / "relations.yaml").write_text(content)
    with pytest.raises(ValueError) as refused:
        load("plain", written(tmp_path, PLAIN), relations=str(tmp_path / "relations.yaml"))
    assert WRONG[content] in str(refused.value) and str(refused.value).startswith("facts.relations=") and "\n" not in str(refused.value)


def test_relations_that_are_not_there(tmp_path):
    with pytest.raises(ValueError, match="facts.relations=absent.yaml: No such file"):
        load_facts(FactsConfig(source="plain", path=str(written(tmp_path, PLAIN)), relations="absent.yaml"))
