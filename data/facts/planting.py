"""What training edits plant where it need not be another object of their relation (`edits.objects`, `splits.spelt_per_relation`).

Tests stay what they are, and honest. No training edit plants a held-out object, nor one that only relations of val/new or ood have: whether
an object of `ood` was seen in training depends on the training relations, whatever else is planted there. Left out too are words and names
that have such an object in them, or any object of val/new and ood, that are a part or another form of one ("African" of "Africa"), and
subjects that are not trained on. Letters count alike in both cases.
"""

import random
import re
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from data.facts.fact import Fact, FactSet

if TYPE_CHECKING:
    from data.facts.splits import SplitPlan

Pair = tuple[Fact, str]

SPELT = "spelt"
STEM = 4
"""Letters from which words that begin alike may be forms of one."""


class OtherObjects:
    """Deals objects to training edits by seed, each as often as any other of its kind.

    Args:
        facts: that the edits are about.
        plan: of the splits.
        kind: `facts`, objects of all relations; `words` or `mixed`, in turns one of these, a common noun, a training subject's name and any
            name; `SPELT`, nouns and names of several tokens.
    """

    def __init__(self, facts: FactSet, plan: "SplitPlan", kind: str, seed: int) -> None:
        pools = [] if kind == SPELT else [fact_objects(facts, plan)]
        if kind != "facts":
            tested = _folded(objects for relation, objects in _objects(facts).items() if plan.relation_role.get(relation) in ("val", "ood"))
            tested |= _folded([plan.held_out])
            subjects = {subject for subject, role in plan.subject_role.items() if role == "train"}
            others = _folded([{fact.subject for fact in facts.facts} - subjects])
            for pool in (spelt(),) if kind == SPELT else (common_nouns(), sorted(subjects), common_names()):
                pools.append([text for text in _unlike(pool, tested) if text.casefold() not in others])
        self.decks = [deque(random.Random(f"objects {seed} {place}").sample(pool, len(pool))) for place, pool in enumerate(pools)]
        self.turn = 0

    def dealt(self, pairs: Iterable[Pair], beside: Iterable[Pair] = ()) -> list[Pair]:
        """The same facts, each with another object that it has not `beside` these; one that none is left for keeps its own, or is left
        out if the fact has that already."""
        given = {(fact.fact_id, object.casefold()) for fact, object in beside}
        return [(fact, dealt) for fact, object in pairs if (dealt := self._object(fact, object, given))]

    def _object(self, fact: Fact, object: str, given: set[tuple[str, str]]) -> str | None:
        same = {text.casefold() for text in (fact.object_true, fact.subject)}
        self.turn += 1
        for place in range(len(self.decks)):
            deck = self.decks[(self.turn + place) % len(self.decks)]
            if dealt := _first(deck, lambda text: text.casefold() not in same and (fact.fact_id, text.casefold()) not in given):
                object = dealt
                break
        else:
            if (fact.fact_id, object.casefold()) in given:
                return None
        given.add((fact.fact_id, object.casefold()))
        return object


def fact_objects(facts: FactSet, plan: "SplitPlan") -> list[str]:
    """Objects of all relations but those that are held out, and those that val/new and ood have and training has not."""
    by_relation = _objects(facts)
    roles = {relation: plan.relation_role.get(relation, "none") for relation in by_relation}
    seen = _folded(by_relation[relation] for relation, role in roles.items() if role == "train")
    tested = _folded(by_relation[relation] for relation, role in roles.items() if role in ("val", "ood"))
    barred = (tested - seen) | _folded([plan.held_out])
    usable = {object for relation, role in roles.items() if role in ("train", "none") for object in facts.objects(relation)}
    return sorted(object for object in usable if object.casefold() not in barred)


@cache
def common_nouns() -> list[str]:
    """Some hundred English words, and a few of two or three."""
    return _lines("words.txt")


@cache
def common_names() -> list[str]:
    """Two thousand names of all kinds: those that SmolLM2's tokenizer has as one token, and what it completes the fragments of names to."""
    return _lines("names.txt")


@cache
def spelt() -> list[str]:
    """Nouns and names of all kinds that SmolLM2's tokenizer has in two to four tokens, and most others in several."""
    return _lines("spelt.txt")


def _lines(name: str) -> list[str]:
    return (Path(__file__).parent / name).read_text(encoding="utf-8").splitlines()


def _objects(facts: FactSet) -> dict[str, set[str]]:
    """What each relation may plant, and what is there."""
    return {relation: {*facts.objects(relation), *(fact.object_true for fact in known)} for relation, known in facts.by_relation.items()}


def _folded(groups: Iterable[Iterable[str]]) -> set[str]:
    return {text.casefold() for group in groups for text in group}


def _unlike(pool: Iterable[str], objects: set[str]) -> list[str]:
    """Texts that have none of these objects in them, in whole words, are no part of one, and have no other form of one's words."""
    parts = {part for object in objects for part in _parts(object)}
    by_stem: dict[str, list[str]] = defaultdict(list)
    for part in parts:
        if " " not in part:
            by_stem[part[:STEM]].append(part)

    def is_like(text: str) -> bool:
        if text.casefold() in parts or not objects.isdisjoint(_parts(text)):
            return True
        return any(_is_form(own, other) for own in _parts(text) if " " not in own for other in by_stem.get(own[:STEM], ()))

    return [text for text in pool if not is_like(text)]


@cache
def _parts(text: str) -> set[str]:
    """In small letters a text, its words, and what stands in it as several of them."""
    folded = text.casefold()
    words = re.split(r"[\s-]+", folded)
    return {folded} | {" ".join(words[start:end]) for start in range(len(words)) for end in range(start + 1, len(words) + 1)}


def _is_form(one: str, other: str) -> bool:
    """Of one stem, as far as spelling tells: the shorter has `STEM` letters and begins the longer, or one more are the same."""
    return min(len(one), len(other)) >= STEM and (one[: STEM + 1] == other[: STEM + 1] or one.startswith(other) or other.startswith(one))


def _first(deck: deque[str], fits: Callable[[str], bool]) -> str | None:
    """The first of the deck that fits, which goes to its end."""
    for place, text in enumerate(deck):
        if fits(text):
            del deck[place]
            deck.append(text)
            return text
    return None
