"""The published schemas of fact sets, one function each: a record becomes a fact, or a reason why not.

Schemas: CounterFact (Meng et al. 2022), zsRE as MEND's evaluation file has it (Mitchell et al. 2022), ParaRel (Elazar et al. 2021),
MQuAKE (Zhong et al. 2023), KnowEdit (Zhang et al. 2024) with EasyEdit's flat form of it, FEVER (Thorne et al. 2018) as it is and as
KnowledgeEditor and MEND have it (De Cao et al. 2021, Mitchell et al. 2022), triples as YAGO writes them, and `plain`, a JSONL or CSV of
your own.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from data.facts.checked import checked_fact, given_pair, of_chain, pair, portability
from data.facts.fact import Entry, Fact
from data.facts.fields import Fields, NoFact, is_blank, text_of
from data.facts.records import Record, Rows, shown
from data.facts.relations import WHERE, local_name
from data.facts.triples import ENDINGS, name_text, triples


@dataclass(frozen=True)
class Schema:
    """How to know and read a kind of record.

    Attributes:
        needed: fields a record must have; one of each tuple.
        read: the fact of a record. `fact_id` may be empty: the place in the source is taken then.
        each: the field with a list of edits, where a record has several; each is read as a record.
        lines: endings of files that have a record a line in a form of their own, and what reads their text.
    """

    needed: tuple[tuple[str, ...], ...]
    read: Callable[[Fields], Fact]
    each: str | None = None
    lines: tuple[tuple[str, ...], Callable[[str], Rows]] = ((), lambda text: ())

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
    return checked_fact(
        fields,
        fact_id=fields.name or f"{relation}-{fields.record.number}",
        subject=rewrite.text("subject"),
        relation=relation,
        prompt=rewrite.text("prompt"),
        paraphrases=fields.items("paraphrase_prompts"),
        object_true=true,
        object=rewrite.within("target_new").text("str"),
        neighbours=fields.each(fields.items("neighborhood_prompts"), lambda name, prompt: (text_of(prompt, name), true)),
        openings=fields.each(fields.items("generation_prompts"), lambda name, prompt: text_of(prompt, name)),
    )


def _mquake(rewrite: Fields) -> Fact:
    fact = checked_fact(
        rewrite,
        subject=rewrite.text("subject"),
        relation=rewrite.text("relation_id"),
        prompt=rewrite.text("prompt"),
        paraphrases=rewrite.items("question"),
        object_true=rewrite.within("target_true").text("str"),
        object=rewrite.within("target_new").text("str"),
    )
    return replace(fact, consequences=tuple(of_chain(rewrite, fact.object)))


def _zsre(fields: Fields) -> Fact:
    """ROME's reading: the true answer is planted over what the model said."""
    answer = fields.answer("answers")
    before = next((text for name in ("pred", "alt") if (text := fields.given(name)) not in (None, answer)), None)
    if before is None:
        raise NoFact("neither pred nor alt differs from the answer, so nothing would change")
    return _question(fields, object=answer, object_true=before)


def _zsre_alt(fields: Fields) -> Fact:
    """EasyEdit's reading: the alternative answer is planted over the true one."""
    return _question(fields, object=fields.text("alt"), object_true=fields.answer("answers"), consequences=portability(fields))


def _question(fields: Fields, **planted: Any) -> Fact:
    neighbours = []
    for prompt, answer in given_pair(fields, "loc", "loc_ans"):
        question = prompt.removeprefix("nq question: ").strip()
        neighbours.append((question + ("" if question.endswith("?") else "?"), answer))
    subject, prompt = fields.text("subject"), fields.text("src")
    return checked_fact(fields, subject=subject, prompt=prompt, paraphrases=fields.items("rephrase"), neighbours=neighbours, **planted)


def _knowedit(fields: Fields) -> Fact:
    locality = [] if is_blank(fields.values.get("locality")) else [fields.noted(lambda: fields.within("locality"))]
    neighbours = [pair for inner in locality if inner for pair in inner.each(inner.items("Relation_Specificity"), inner.pair_in)]
    return checked_fact(
        fields,
        subject=fields.text("subject", "concept"),
        prompt=fields.text("prompt", "text"),
        paraphrases=fields.items("rephrase_prompt", "rephrase"),
        object_true=fields.answer("ground_truth"),
        object=fields.answer("target_new", "labels"),
        neighbours=neighbours + given_pair(fields, "locality_prompt", "locality_ground_truth"),
        consequences=portability(fields),
    )


def _pararel(fields: Fields) -> Fact:
    """Triples; the relation is the file's name, its sentences come from ParaRel's patterns or from the tables here."""
    record = fields.record
    relation = fields.optional("predicate_id") or record.stem
    templates = record.templates or _sentences(fields, relation)
    if not templates:
        raise NoFact(f"no sentence for relation {relation}: neither patterns beside the triples nor a row in {WHERE}")
    return _told(fields, relation, templates, subject=fields.text("sub_label"), object_true=fields.text("obj_label"))


def _triple(fields: Fields) -> Fact:
    """Names become text; the relation's sentences come from `facts.relations` or the tables here."""
    subject, relation, object = fields.values["triple"]
    relation = local_name(relation)
    if not (templates := _sentences(fields, relation)):
        raise NoFact(f"no sentence for relation {relation} in {WHERE}")
    names = {name: text_of(name_text(text), name) for name, text in (("subject", subject), ("object_true", object))}
    return _told(fields, relation, templates, **names)


def _sentences(fields: Fields, relation: str) -> tuple[str, ...]:
    return tuple(fields.record.relations.get(relation, {}).get("templates", ()))


def _told(fields: Fields, relation: str, templates: tuple[str, ...], **names: str) -> Fact:
    """The fact of a triple whose relation has sentences."""
    others = [(f"sentence {n}", text) for n, text in enumerate(templates[1:], 2)]
    name = fields.name or f"{relation}-{fields.record.number:05d}"
    return checked_fact(fields, fact_id=name, relation=relation, prompt=templates[0], paraphrases=others, **names)


VERDICTS = {"SUPPORTS": "true", "REFUTES": "false"}


def _fever(fields: Fields) -> Fact:
    """The claim is the subject and its verdict the object, as editing papers have it: what is planted is the verdict that it has not.

    Rephrased claims do not have the claim in them, so that paraphrases are other ways to ask for the verdict.
    """
    answers = [inner for path, value in fields.items("output") if (inner := fields.inside(path, value)).given("answer")]
    before = _verdict(answers[0], "answer") if answers else _verdict(fields, "label")
    planted = VERDICTS["REFUTES" if before == VERDICTS["SUPPORTS"] else "SUPPORTS"]
    if not is_blank(fields.values.get("alternatives")) and _verdict(fields, "alternatives") == before:
        # The model that the set was made for was wrong on this claim: its answer is what was there.
        planted, before = before, planted
    prompt, *others = _sentences(fields, "fever")
    return checked_fact(
        fields,
        fact_id=fields.name or f"fever-{fields.optional('id') or fields.record.number}",
        subject=text_of(fields.text("input", "claim").removesuffix("."), "the claim"),
        relation="fever",
        prompt=prompt,
        paraphrases=[(f"sentence {n}", text) for n, text in enumerate(others, 2)],
        object_true=before,
        object=planted,
    )


def _verdict(fields: Fields, name: str) -> str:
    label = fields.answer(name)
    if label.upper() not in VERDICTS:
        raise NoFact(f"{name} is {shown(label)}, expected {' or '.join(VERDICTS)}")
    return VERDICTS[label.upper()]


def _plain(fields: Fields) -> Fact:
    """Lists are JSON lists, or texts joined by `|` in a CSV."""
    relation, paraphrases = fields.optional("relation"), fields.values.get("paraphrases")
    templates = _sentences(fields, relation)
    prompt = fields.given("prompt") or next(iter(templates), None)
    if prompt is None:
        raise NoFact(f"no prompt, and no sentence for relation {relation!r} in {WHERE}")
    if is_blank(paraphrases) and (prompt,) == templates[:1] and fields.record.relations[relation].get("given"):
        paraphrases = "|".join(templates[1:])
    joined = [("paraphrases", part) for part in paraphrases.split("|") if part.strip()] if isinstance(paraphrases, str) else None
    return checked_fact(
        fields,
        subject=fields.text("subject"),
        relation=relation,
        prompt=prompt,
        paraphrases=fields.items("paraphrases") if joined is None else joined,
        object_true=fields.text("object_true"),
        object=fields.given("object"),
        neighbours=fields.each(fields.items("neighbours"), pair),
        **{name: text for name in ("relation_name", "kind", "category") if (text := fields.optional(name))},
    )


SCHEMAS = {
    "counterfact": Schema((("requested_rewrite",), ("paraphrase_prompts", "neighborhood_prompts")), _counterfact),
    "zsre": Schema((("src",), ("subject",), ("answers",)), _zsre),
    "zsre-alt": Schema((("src",), ("subject",), ("answers",), ("alt",)), _zsre_alt),
    "pararel": Schema((("sub_label",), ("obj_label",)), _pararel),
    "mquake": Schema((("requested_rewrite",), ("questions", "single_hops", "new_answer")), _mquake, each="requested_rewrite"),
    "knowedit": Schema((("subject", "concept"), ("prompt", "text"), ("target_new", "labels"), ("ground_truth",)), _knowedit),
    "fever": Schema((("input", "claim"), ("output", "label")), _fever),
    "yago": Schema((("triple",),), _triple, lines=(ENDINGS, triples)),
    "plain": Schema((("subject",), ("object_true",), ("prompt", "relation")), _plain),
}
