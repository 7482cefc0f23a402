"""Facts, and the loaders of fact sets."""

import csv
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path

import yaml

from decoder.config import FactsConfig

POCKET = Path(__file__).parent / "pocket"


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

    @property
    def templates(self) -> tuple[str, ...]:
        return (self.prompt, *self.paraphrases)


@dataclass(frozen=True)
class FactSet:
    """All facts of a source; `sha256` is the hash of the files they were read from."""

    facts: tuple[Fact, ...]
    source: str
    sha256: str

    def __len__(self) -> int:
        return len(self.facts)

    @cached_property
    def by_relation(self) -> dict[str, tuple[Fact, ...]]:
        relations = dict.fromkeys(fact.relation for fact in self.facts)
        return {relation: tuple(fact for fact in self.facts if fact.relation == relation) for relation in relations}

    def objects(self, relation: str) -> list[str]:
        """The sorted objects of one relation."""
        return sorted({fact.object_true for fact in self.by_relation[relation]})


@dataclass(frozen=True)
class EditRequest:
    """Asks an editor to plant `object` for the fact."""

    edit_id: str
    fact: Fact
    object: str


def load_facts(cfg: FactsConfig) -> FactSet:
    """Reads the fact set `cfg.source`.

    Raises:
        ValueError: if no fact set has that name.
    """
    if cfg.source not in LOADERS:
        nearest = get_close_matches(cfg.source, LOADERS, n=1, cutoff=0)[0]
        raise ValueError(f"facts.source={cfg.source!r} is unknown; known: {', '.join(LOADERS)}. Did you mean {nearest!r}?")
    return LOADERS[cfg.source]()


def load_pocket() -> FactSet:
    """The table in `data/pocket`, whatever the working directory."""
    table, relations_file = (POCKET / "facts.csv").read_bytes(), (POCKET / "relations.yaml").read_bytes()
    relations = yaml.safe_load(relations_file)
    rows = list(csv.DictReader(table.decode("utf-8").splitlines()))
    categories: dict[str, str] = {}
    for row in rows:
        # A subject of several relations keeps one category, or "is a" would have two answers.
        categories.setdefault(row["subject"], relations[row["relation"]]["category"])
    facts = tuple(pocket_facts(rows, relations, categories))
    return FactSet(facts, source="pocket", sha256=hashlib.sha256(table + relations_file).hexdigest())


def pocket_facts(rows: list[dict[str, str]], relations: dict[str, dict], categories: dict[str, str]) -> Iterable[Fact]:
    seen: dict[str, int] = {}
    for row in rows:
        relation, subject = row["relation"], row["subject"]
        number = seen[relation] = seen.get(relation, -1) + 1
        entry = relations[relation]
        prompt, *paraphrases = entry["templates"]
        yield Fact(
            fact_id=f"{relation}-{number:03d}",
            subject=subject,
            relation=relation,
            relation_name=entry["name"],
            kind=entry["kind"],
            prompt=prompt,
            paraphrases=tuple(paraphrases),
            object_true=row["object"],
            category=categories[subject],
        )


LOADERS = {"pocket": load_pocket}
