"""The published schemas of fact sets, one function each: a record becomes a fact, or a reason why not.

Schemas: CounterFact (Meng et al. 2022), zsRE as MEND's evaluation file has it (Mitchell et al. 2022), ParaRel (Elazar et al. 2021),
MQuAKE (Zhong et al. 2023), KnowEdit (Zhang et al. 2024) with EasyEdit's flat form of it, and `plain`, a JSONL or CSV of your own.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from data.facts.fact import POCKET, Entry, Fact
from data.facts.fields import Fields, NoFact, is_blank, text_of
from data.facts.records import Record, shown
from data.facts.templates import template


@dataclass(frozen=True)
class Schema:
    """How to know and read a kind of record.

    Attributes:
        needed: fields a record must have; one of each tuple.
        read: the fact of a record. `fact_id` may be empty: the place in the source is taken then.
        each: the field with a list of edits, where a record has several; each is read as a record.
    """

    needed: tuple[tuple[str, ...], ...]
    read: Callable[[Fields], Fact]
    each: str | None = None

    def missing(self, fields: dict[str, Any]) -> list[str]:
        return [" or ".join(names) for names in self.needed if not any(name in fields for name in names)]

    def entries(self, record: Record) -> Iterator[Entry]:
        """What the record says, one entry an edit."""
        if isinstance(record.fields, str):
            yield Entry(record.where, reason=record.fields)
            return
        whole = Fields(record.fields, record)
        edits = list(whole.items(self.each)) if self.each else [("", record.fields)]
        missing = self.missing(record.fields)
        if missing or not edits:
            reason = f"no {', '.join(missing)}" if missing else f"{self.each} is empty"
            yield Entry(record.where, reason=reason, name=whole.optional("fact_id"))
            return
        for path, values in edits:
            yield self._entry(record, path, values)

    def _entry(self, record: Record, path: str, values: Any) -> Entry:
        try:
            fields = Fields(values, record, path)
        except NoFact as error:
            return Entry(record.where, reason=str(error))
        fields.name = fields.optional("fact_id")
        try:
            return Entry(record.where, self.read(fields), name=fields.name, left_out=tuple(fields.left_out))
        except NoFact as error:
            return Entry(record.where, reason=str(error), name=fields.name)


def _counterfact(fields: Fields) -> Fact:
    rewrite, case = fields.within("requested_rewrite"), fields.optional("case_id")
    relation = rewrite.text("relation_id")
    if case and not fields.name:
        fields.name = f"{relation}-{case}"
    true = rewrite.within("target_true").text("str")
    return _fact(
        fields,
        fact_id=fields.name or f"{relation}-{fields.record.number}",
        subject=rewrite.text("subject"),
        relation=relation,
        prompt=rewrite.text("prompt"),
        paraphrases=fields.items("paraphrase_prompts"),
        object_true=true,
        object=rewrite.within("target_new").text("str"),
        neighbours=fields.each(fields.items("neighborhood_prompts"), lambda name, prompt: (text_of(prompt, name), true)),
    )


def _mquake(rewrite: Fields) -> Fact:
    return _fact(
        rewrite,
        subject=rewrite.text("subject"),
        relation=rewrite.text("relation_id"),
        prompt=rewrite.text("prompt"),
        paraphrases=rewrite.items("question"),
        object_true=rewrite.within("target_true").text("str"),
        object=rewrite.within("target_new").text("str"),
    )


def _zsre(fields: Fields) -> Fact:
    """ROME's reading: the true answer is planted over what the model said."""
    answer = fields.answer("answers")
    before = next((text for name in ("pred", "alt") if (text := fields.given(name)) not in (None, answer)), None)
    if before is None:
        raise NoFact("neither pred nor alt differs from the answer, so nothing would change")
    return _question(fields, object=answer, object_true=before)


def _zsre_alt(fields: Fields) -> Fact:
    """EasyEdit's reading: the alternative answer is planted over the true one."""
    return _question(fields, object=fields.text("alt"), object_true=fields.answer("answers"))


def _question(fields: Fields, **objects: str) -> Fact:
    neighbours = []
    for prompt, answer in _given_pair(fields, "loc", "loc_ans"):
        question = prompt.removeprefix("nq question: ").strip()
        neighbours.append((question + ("" if question.endswith("?") else "?"), answer))
    subject, prompt = fields.text("subject"), fields.text("src")
    return _fact(fields, subject=subject, prompt=prompt, paraphrases=fields.items("rephrase"), neighbours=neighbours, **objects)


def _knowedit(fields: Fields) -> Fact:
    locality = [] if is_blank(fields.values.get("locality")) else [fields.noted(lambda: fields.within("locality"))]
    neighbours = [pair for inner in locality if inner for pair in inner.each(inner.items("Relation_Specificity"), inner.pair_in)]
    return _fact(
        fields,
        subject=fields.text("subject", "concept"),
        prompt=fields.text("prompt", "text"),
        paraphrases=fields.items("rephrase_prompt", "rephrase"),
        object_true=fields.answer("ground_truth"),
        object=fields.answer("target_new", "labels"),
        neighbours=neighbours + _given_pair(fields, "locality_prompt", "locality_ground_truth"),
    )


def _pararel(fields: Fields) -> Fact:
    """Triples; the relation is the file's name, its sentences come from ParaRel's patterns or from the tables here."""
    record = fields.record
    relation = fields.optional("predicate_id") or record.stem
    templates = record.templates or tuple(relations().get(relation, {}).get("templates", ()))
    if not templates:
        raise NoFact(f"no sentence for relation {relation}: neither patterns beside the triples nor a row in data/facts/relations.yaml")
    return _fact(
        fields,
        fact_id=fields.name or f"{relation}-{record.number:05d}",
        subject=fields.text("sub_label"),
        relation=relation,
        prompt=templates[0],
        paraphrases=[(f"sentence {n}", text) for n, text in enumerate(templates[1:], 2)],
        object_true=fields.text("obj_label"),
    )


def _plain(fields: Fields) -> Fact:
    """Lists are JSON lists, or texts joined by `|` in a CSV."""
    relation, paraphrases = fields.optional("relation"), fields.values.get("paraphrases")
    known = relations().get(relation, {})
    prompt = fields.given("prompt") or next(iter(known.get("templates", ())), None)
    if prompt is None:
        raise NoFact(f"no prompt, and no sentence for relation {relation!r} in data/facts/relations.yaml")
    joined = [("paraphrases", part) for part in paraphrases.split("|") if part.strip()] if isinstance(paraphrases, str) else None
    return _fact(
        fields,
        subject=fields.text("subject"),
        relation=relation,
        prompt=prompt,
        paraphrases=fields.items("paraphrases") if joined is None else joined,
        object_true=fields.text("object_true"),
        object=fields.given("object"),
        neighbours=fields.each(fields.items("neighbours"), _pair),
        **{name: text for name in ("relation_name", "kind", "category") if (text := fields.optional(name))},
    )


SCHEMAS = {
    "counterfact": Schema((("requested_rewrite",), ("paraphrase_prompts", "neighborhood_prompts")), _counterfact),
    "zsre": Schema((("src",), ("subject",), ("answers",)), _zsre),
    "zsre-alt": Schema((("src",), ("subject",), ("answers",), ("alt",)), _zsre_alt),
    "pararel": Schema((("sub_label",), ("obj_label",)), _pararel),
    "mquake": Schema((("requested_rewrite",), ("questions", "single_hops", "new_answer")), _mquake, each="requested_rewrite"),
    "knowedit": Schema((("subject", "concept"), ("prompt", "text"), ("target_new", "labels"), ("ground_truth",)), _knowedit),
    "plain": Schema((("subject",), ("object_true",), ("prompt", "relation")), _plain),
}


# What the functions share


def _fact(
    fields: Fields,
    *,
    subject: str,
    prompt: str,
    object_true: str,
    object: str | None = None,
    relation: str = "",
    fact_id: str = "",
    paraphrases: Iterable[tuple[str, Any]] = (),
    neighbours: Iterable[tuple[str, str]] = (),
    **names: str,
) -> Fact:
    """A checked fact. Without a relation its sentence is its relation, which is how question sets group their facts."""
    prompt = template(prompt, subject)
    if object == object_true:
        raise NoFact(f"the object to plant is the one that is there: {shown(object)}")
    known = relations().get(relation, {})
    relation = relation or prompt
    # A paraphrase that cannot be put to a host says nothing about an edit.
    others = fields.each(paraphrases, lambda name, text: template(text_of(text, name), subject, name))
    named = {"relation_name": known.get("name", relation), "kind": known.get("kind", relation), "category": known.get("category", "thing")}
    return Fact(
        fact_id=fact_id or fields.name,
        subject=subject,
        relation=relation,
        prompt=prompt,
        paraphrases=tuple(others),
        object_true=object_true,
        object=object,
        neighbours=tuple(neighbours),
        **named | names,
    )


def _pair(name: str, value: Any) -> tuple[str, str]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise NoFact(f"{name} is {shown(value)}, expected [prompt, object]")
    return text_of(value[0], f"{name}[0]"), text_of(value[1], f"{name}[1]")


def _given_pair(fields: Fields, prompt: str, answer: str) -> list[tuple[str, str]]:
    """The neighbour in two fields, if either says something."""
    if all(is_blank(fields.values.get(name)) for name in (prompt, answer)):
        return []
    return [pair for pair in [fields.noted(lambda: fields.pair(prompt, answer))] if pair]


@cache
def relations() -> dict[str, dict[str, Any]]:
    """Names, kinds and sentences of the known relations by id."""
    files = (Path(__file__).parent / "relations.yaml", POCKET / "relations.yaml")
    return {key: row for file in files for key, row in yaml.safe_load(file.read_bytes()).items()}
