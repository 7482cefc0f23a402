"""What the schemas share: a fact whose sentences can be put to a host, and the neighbours that records give."""

from collections.abc import Iterable
from typing import Any

from data.facts.fact import Fact
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
