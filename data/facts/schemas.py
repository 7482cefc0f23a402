"""The published schemas of fact sets, one function each: a record becomes facts, or a reason why not.

Schemas: CounterFact (Meng et al. 2022), zsRE as MEND's evaluation file has it (Mitchell et al. 2022), ParaRel (Elazar et al. 2021),
MQuAKE (Zhong et al. 2023), KnowEdit (Zhang et al. 2024), and `plain`, a JSONL or CSV of your own.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from data.facts.fact import POCKET, Fact
from data.facts.records import Record

PLACE = "{}"


class NoFact(Exception):
    """The record is no fact; says why."""


@dataclass(frozen=True)
class Schema:
    """How to know and read a kind of record.

    Attributes:
        needed: fields a record must have; one of each tuple.
        read: the facts of a record. `fact_id` may be empty: the place in the source is taken then.
    """

    needed: tuple[tuple[str, ...], ...]
    read: Callable[[Record], Iterable[Fact]]

    def missing(self, fields: dict[str, Any]) -> list[str]:
        return [" or ".join(names) for names in self.needed if not any(name in fields for name in names)]


def _counterfact(record: Record) -> Iterator[Fact]:
    rewrite = record.fields["requested_rewrite"]
    subject, relation = _text(rewrite, "subject"), _text(rewrite, "relation_id")
    true = _text(rewrite["target_true"], "str")
    yield _fact(
        fact_id=f"{relation}-{record.fields.get('case_id', record.number)}",
        subject=subject,
        relation=relation,
        prompt=_text(rewrite, "prompt"),
        paraphrases=record.fields.get("paraphrase_prompts") or [],
        object_true=true,
        object=_text(rewrite["target_new"], "str"),
        neighbours=[(prompt, true) for prompt in record.fields.get("neighborhood_prompts") or []],
    )


def _mquake(record: Record) -> Iterator[Fact]:
    """Each rewrite of a case is an edit of its own."""
    for rewrite in record.fields["requested_rewrite"]:
        yield _fact(
            subject=_text(rewrite, "subject"),
            relation=_text(rewrite, "relation_id"),
            prompt=_text(rewrite, "prompt"),
            paraphrases=[rewrite["question"]] if rewrite.get("question") else [],
            object_true=_text(rewrite["target_true"], "str"),
            object=_text(rewrite["target_new"], "str"),
        )


def _zsre(record: Record) -> Iterator[Fact]:
    """ROME's reading: the true answer is planted over what the model said."""
    answer = _first(record.fields["answers"])
    before = next((text for name in ("pred", "alt") if (text := str(record.fields.get(name) or "").strip()) not in ("", answer)), None)
    if before is None:
        raise NoFact("neither pred nor alt differs from the answer, so nothing would change")
    yield _question(record, object=answer, object_true=before)


def _zsre_alt(record: Record) -> Iterator[Fact]:
    """EasyEdit's reading: the alternative answer is planted over the true one."""
    yield _question(record, object=_text(record.fields, "alt"), object_true=_first(record.fields["answers"]))


def _question(record: Record, **objects: str) -> Fact:
    fields = record.fields
    loc = str(fields.get("loc") or "").removeprefix("nq question: ").strip()
    neighbours = [(loc + ("" if loc.endswith("?") else "?"), str(fields.get("loc_ans") or ""))] if loc and fields.get("loc_ans") else []
    rephrase = [fields["rephrase"]] if fields.get("rephrase") else []
    return _fact(subject=_text(fields, "subject"), prompt=_text(fields, "src"), paraphrases=rephrase, neighbours=neighbours, **objects)


def _knowedit(record: Record) -> Iterator[Fact]:
    fields = record.fields
    rephrase = fields.get("rephrase_prompt") or fields.get("rephrase")
    locality = (fields.get("locality") or {}).get("Relation_Specificity") or []
    yield _fact(
        subject=str(fields.get("subject") or fields.get("concept") or "").strip(),
        prompt=str(fields.get("prompt") or fields.get("text") or "").strip(),
        paraphrases=[rephrase] if isinstance(rephrase, str) else rephrase or [],
        object_true=_first(fields["ground_truth"]),
        object=_first(fields.get("target_new") or fields.get("labels")),
        neighbours=[(entry["prompt"], _first(entry["ground_truth"])) for entry in locality],
    )


def _pararel(record: Record) -> Iterator[Fact]:
    """Triples; the relation is the file's name, its sentences come from ParaRel's patterns or from the tables here."""
    relation = str(record.fields.get("predicate_id") or record.stem)
    templates = record.templates or tuple(relations().get(relation, {}).get("templates", ()))
    if not templates:
        raise NoFact(f"no sentence for relation {relation}: neither patterns beside the triples nor a row in data/facts/relations.yaml")
    yield _fact(
        fact_id=f"{relation}-{record.number:05d}",
        subject=_text(record.fields, "sub_label"),
        relation=relation,
        prompt=templates[0],
        paraphrases=templates[1:],
        object_true=_text(record.fields, "obj_label"),
    )


def _plain(record: Record) -> Iterator[Fact]:
    """Lists are JSON lists, or texts joined by `|` in a CSV."""
    fields = record.fields
    relation = str(fields.get("relation") or "").strip()
    known = relations().get(relation, {})
    yield _fact(
        fact_id=str(fields.get("fact_id") or ""),
        subject=_text(fields, "subject"),
        relation=relation,
        prompt=str(fields.get("prompt") or next(iter(known.get("templates", ())), "")),
        paraphrases=_list(fields.get("paraphrases")),
        object_true=_text(fields, "object_true"),
        object=str(fields.get("object") or "").strip() or None,
        neighbours=[tuple(pair) for pair in fields.get("neighbours") or []],
        **{name: str(fields[name]) for name in ("relation_name", "kind", "category") if fields.get(name)},
    )


SCHEMAS = {
    "counterfact": Schema((("requested_rewrite",), ("paraphrase_prompts", "neighborhood_prompts")), _counterfact),
    "zsre": Schema((("src",), ("subject",), ("answers",)), _zsre),
    "zsre-alt": Schema((("src",), ("subject",), ("answers",), ("alt",)), _zsre_alt),
    "pararel": Schema((("sub_label",), ("obj_label",)), _pararel),
    "mquake": Schema((("requested_rewrite",), ("questions", "single_hops", "new_answer")), _mquake),
    "knowedit": Schema((("subject", "concept"), ("prompt", "text"), ("target_new", "labels"), ("ground_truth",)), _knowedit),
    "plain": Schema((("subject",), ("object_true",), ("prompt", "relation")), _plain),
}


# What the functions share


def _fact(*, subject: str, prompt: str, object_true: str, relation: str = "", fact_id: str = "", **rest: Any) -> Fact:
    """A checked fact. Without a relation its sentence is its relation, which is how question sets group their facts."""
    prompt = _template(prompt, subject)
    if not object_true:
        raise NoFact("the object is empty")
    if rest.get("object") == object_true:
        raise NoFact(f"the object to plant is the one that is there: {object_true!r}")
    known = relations().get(relation, {})
    relation = relation or prompt
    paraphrases = tuple(template for text in rest.pop("paraphrases", ()) if (template := _paraphrase(str(text), subject)))
    neighbours = tuple(
        (prompt.strip(), answer.strip()) for prompt, answer in rest.pop("neighbours", ()) if prompt.strip() and answer.strip()
    )
    named = {"relation_name": known.get("name", relation), "kind": known.get("kind", relation), "category": known.get("category", "thing")}
    return Fact(
        fact_id=fact_id,
        subject=subject,
        relation=relation,
        prompt=prompt,
        paraphrases=paraphrases,
        object_true=object_true,
        neighbours=neighbours,
        **named | rest,
    )


def _template(prompt: str, subject: str) -> str:
    """The prompt with `{}` where the subject stands; the last place, if it stands there several times."""
    prompt = prompt.strip()
    if not subject:
        raise NoFact("the subject is empty")
    if PLACE not in prompt:
        head, found, tail = prompt.rpartition(subject)
        if not found:
            raise NoFact(f"the prompt {prompt!r} has neither {{}} nor the subject {subject!r}")
        prompt = f"{head}{PLACE}{tail}"
    if prompt.count(PLACE) != 1 or re.search(r"[{}]", prompt.replace(PLACE, "")):
        raise NoFact(f"the prompt {prompt!r} must have {{}} once and no other braces")
    return prompt


def _paraphrase(text: str, subject: str) -> str | None:
    """A paraphrase that cannot be put to a host says nothing about an edit, and does not cost the fact."""
    try:
        return _template(text, subject)
    except NoFact:
        return None


def _text(fields: dict[str, Any], name: str) -> str:
    value = fields[name]
    if not isinstance(value, str | int | float) or isinstance(value, bool) or not str(value).strip():
        raise NoFact(f"{name} is {value!r}, expected text")
    return str(value).strip()


def _first(value: Any) -> str:
    """The first text of a list of texts, of lists, or of one text."""
    while isinstance(value, list | tuple):
        if not value:
            raise NoFact("a list of answers is empty")
        value = value[0]
    if not isinstance(value, str) or not value.strip():
        raise NoFact(f"the answer is {value!r}, expected text")
    return value.strip()


def _list(value: Any) -> list[str]:
    if value is None or value == "":
        return []
    return value if isinstance(value, list) else [part.strip() for part in str(value).split("|")]


@cache
def relations() -> dict[str, dict[str, Any]]:
    """Names, kinds and sentences of the known relations by id."""
    files = (Path(__file__).parent / "relations.yaml", POCKET / "relations.yaml")
    return {key: row for file in files for key, row in yaml.safe_load(file.read_bytes()).items()}
