"""What the schemas share: a fact whose sentences can be put to a host, and the neighbours and consequences that records give."""

from collections.abc import Iterable
from typing import Any

from data.facts.fact import Consequence, Fact
from data.facts.fields import Fields, NoFact, is_blank, text_of
from data.facts.records import shown
from data.facts.templates import template


def checked_fact(
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
    consequences: Iterable[Consequence] = (),
    openings: Iterable[str] = (),
    **names: str,
) -> Fact:
    """A checked fact. Without a relation its sentence is its relation, which is how question sets group their facts."""
    prompt = template(prompt, subject)
    if object == object_true:
        raise NoFact(f"the object to plant is the one that is there: {shown(object)}")
    known = fields.record.relations.get(relation, {})
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
        consequences=tuple(consequences),
        openings=tuple(openings),
        **named | names,
    )


def pair(name: str, value: Any) -> tuple[str, str]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise NoFact(f"{name} is {shown(value)}, expected [prompt, object]")
    return text_of(value[0], f"{name}[0]"), text_of(value[1], f"{name}[1]")


def given_pair(fields: Fields, prompt: str, answer: str) -> list[tuple[str, str]]:
    """The neighbour in two fields, if either says something."""
    if all(is_blank(fields.values.get(name)) for name in (prompt, answer)):
        return []
    return [one for one in [fields.noted(lambda: fields.pair(prompt, answer))] if one]


def portability(fields: Fields) -> list[Consequence]:
    """The field of that name as KnowEdit has it, by its sub-scores, or as zsRE's; or the two fields of EasyEdit's flat form."""
    found: list[Consequence | None] = []
    inner = None if is_blank(fields.values.get("portability")) else fields.noted(lambda: fields.within("portability"))
    if inner and "New Question" in inner.values:
        found.append(inner.noted(lambda: Consequence("Reasoning", (inner.text("New Question"),), inner.answers("New Answer"))))
    elif inner:
        for kind in inner.values:
            found += inner.each(inner.items(kind), lambda name, value, kind=kind: _consequence(fields.inside(name, value), kind))
    if not is_blank(fields.values.get("portability_prompt")):
        found.append(fields.noted(lambda: _consequence(fields, "portability", "portability_")))
    return [one for one in found if one]


def _consequence(fields: Fields, kind: str, prefix: str = "") -> Consequence:
    return Consequence(kind, (fields.text(f"{prefix}prompt"),), fields.answers(f"{prefix}ground_truth"))


def of_chain(rewrite: Fields, object: str) -> list[Consequence]:
    """MQuAKE's questions: the edited hop's own, with aliases of its object, and those of several hops.

    Those follow from all edits of a record together, so they count where it has one.
    """
    whole = Fields(rewrite.record.fields, rewrite.record, left_out=rewrite.left_out)
    found = whole.each(whole.items("new_single_hops"), lambda name, value: _hop(whole.inside(name, value), object))
    edits = whole.values.get("requested_rewrite")
    if not is_blank(whole.values.get("questions")) and not (isinstance(edits, list | tuple) and len(edits) > 1):
        found.append(
            whole.noted(lambda: Consequence("multi-hop", whole.answers("questions"), whole.answers("new_answer", "new_answer_alias")))
        )
    return [one for one in found if one]


def _hop(fields: Fields, object: str) -> Consequence | None:
    if fields.text("answer") != object:
        return None
    return Consequence("one-hop", (fields.text("question", "cloze"),), fields.answers("answer", "answer_alias"))
