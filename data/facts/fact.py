"""Facts, sets of them, and what an editor is asked."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

POCKET = Path(__file__).parents[1] / "pocket"


@dataclass(frozen=True)
class Consequence:
    """What a host says as well if it has taken up a planted object: right if it says one of the answers after one of the prompts."""

    kind: str  # "Reasoning", "multi-hop", ...
    prompts: tuple[str, ...]  # whole prompts
    answers: tuple[str, ...]  # one answer and its aliases


@dataclass(frozen=True)
class Fact:
    """One (subject, relation, object) triple with the sentences that ask for its object."""

    fact_id: str  # "P106-017": relation and place in its table
    subject: str
    relation: str  # "P106"
    relation_name: str  # "occupation"
    kind: str  # what the objects are: "occupation", "city", "language", ...
    prompt: str  # "{} makes a living as": the subject's place once, ends where the object begins
    paraphrases: tuple[str, ...]  # other templates of the relation
    object_true: str
    category: str = "thing"  # what the subject is: "person", "place", ...
    object: str | None = None  # what the fact set asks to plant; None: any other object of the relation
    neighbours: tuple[tuple[str, str], ...] = ()  # (whole prompt about something else, its object), where the fact set gives them
    consequences: tuple[Consequence, ...] = ()  # of planting `object`, where the fact set gives them
    openings: tuple[str, ...] = ()  # whole prompts for free text about the subject, where the fact set gives them

    @property
    def templates(self) -> tuple[str, ...]:
        return (self.prompt, *self.paraphrases)


@dataclass(frozen=True)
class Entry:
    """What a record says, as it stands in its source: a fact, or the reason why there is none."""

    where: str  # "P17.jsonl line 12"
    fact: Fact | None = None
    reason: str = ""
    name: str = ""  # the fact_id that the record was written with
    left_out: tuple[str, ...] = ()  # what is wrong with fields that the fact can do without


@dataclass(frozen=True)
class FactSet:
    """All facts of a source; `sha256` is the hash of the files they were read from, and of the selection if there is one.

    `entries` are its records in the order written, those that are no fact and those that say a fact again among them.
    """

    facts: tuple[Fact, ...]
    source: str
    sha256: str
    entries: tuple[Entry, ...] = ()

    @property
    def bad(self) -> list[Entry]:
        """The records that are no fact."""
        return [entry for entry in self.entries if entry.fact is None]

    def __len__(self) -> int:
        return len(self.facts)

    @cached_property
    def by_relation(self) -> dict[str, tuple[Fact, ...]]:
        relations: dict[str, list[Fact]] = {}
        for fact in self.facts:
            relations.setdefault(fact.relation, []).append(fact)
        return {relation: tuple(facts) for relation, facts in relations.items()}

    def objects(self, relation: str) -> list[str]:
        """The sorted objects that may be planted in one relation."""
        return sorted({fact.object or fact.object_true for fact in self.by_relation[relation]})


@dataclass(frozen=True)
class EditRequest:
    """Asks an editor to plant `object` for the fact."""

    edit_id: str
    fact: Fact
    object: str
