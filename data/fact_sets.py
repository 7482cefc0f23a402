"""Loading a fact set: the pocket's table, or one of a published schema, and the part of it that a config selects."""

import csv
import hashlib
import json
import logging
import random
from collections.abc import Iterable
from dataclasses import asdict, replace

import yaml

from data.fact_formats import load_records
from data.fact_schemas import SCHEMAS
from data.facts import POCKET, Fact, FactSet
from decoder.config import FactsConfig
from decoder.utils.errors import did_you_mean

LISTED = 20  # bad records that the log names one by one

log = logging.getLogger(__name__)


def load_facts(cfg: FactsConfig) -> FactSet:
    """Reads the fact set `cfg.source`, and keeps the relations and facts that `cfg` selects.

    Raises:
        ValueError: no fact set has that name, there is nothing to read, or what there is has another schema.
    """
    if cfg.source == "pocket":
        return select(load_pocket(), cfg)
    if cfg.source not in SCHEMAS:
        raise ValueError(f"facts.source={cfg.source!r} is unknown; {did_you_mean(cfg.source, ['pocket', *SCHEMAS])}")
    facts = load_records(cfg)
    for record in facts.bad[:LISTED]:
        log.warning("%s skipped: %s", record.where, record.reason)
    if facts.bad:
        log.warning("%s: %d facts, %d records skipped", facts.source, len(facts), len(facts.bad))
    return select(facts, cfg)


def select(facts: FactSet, cfg: FactsConfig) -> FactSet:
    """Relations with `min_per_relation` facts or more, and `per_relation` facts of each, drawn by `seed`, in their old order.

    Raises:
        ValueError: no relation has so many.
    """
    if not cfg.min_per_relation and not cfg.per_relation:
        return facts
    kept = []
    for relation, members in facts.by_relation.items():
        if len(members) < cfg.min_per_relation:
            continue
        count = min(cfg.per_relation or len(members), len(members))
        kept += [members[i] for i in sorted(random.Random(f"facts {cfg.seed} {relation}").sample(range(len(members)), count))]
    if not kept:
        most = max(map(len, facts.by_relation.values()))
        raise ValueError(
            f"facts.min_per_relation={cfg.min_per_relation}: the largest relation of {facts.source} has {most} facts. Lower it"
        )
    selection = {name: value for name, value in asdict(cfg).items() if name in ("min_per_relation", "per_relation", "seed")}
    sha256 = hashlib.sha256((facts.sha256 + json.dumps(selection)).encode()).hexdigest()
    return replace(facts, facts=tuple(kept), sha256=sha256)


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
