"""Loading a fact set: the pocket's table, or one of a published schema, and the part of it that a config selects."""

import csv
import hashlib
import json
import logging
import random
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path

import yaml

from data.facts.fact import POCKET, BadRecord, Fact, FactSet
from data.facts.records import Record, open_records
from data.facts.schemas import SCHEMAS, NoFact, Schema
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


def load_records(cfg: FactsConfig) -> FactSet:
    """The facts of a file, folder or Hub data set; records that are none are listed, repeats are read once.

    Raises:
        ValueError: nothing to read there, no record is a fact, or the records have another schema (which is named).
    """
    schema = SCHEMAS[cfg.source]
    records, sha256 = open_records(cfg.path, cfg.split, cfg.source)
    facts: dict[tuple, Fact] = {}
    bad: list[BadRecord] = []
    repeated = checked = 0
    names: set[str] = set()
    for number, record in enumerate(records):
        try:
            if isinstance(record.fields, str):
                raise NoFact(record.fields)
            checked = checked or _check_schema(cfg, schema, record)
            if missing := schema.missing(record.fields):
                raise NoFact(f"no {', '.join(missing)}")
            for fact in schema.read(record):
                key = (fact.relation, fact.subject, fact.prompt, fact.object_true, fact.object)
                repeated += key in facts
                facts.setdefault(key, _named(fact, cfg.source, number, names))
        except NoFact as error:
            bad.append(BadRecord(record.where, str(error)))
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            bad.append(BadRecord(record.where, f"not as the schema {cfg.source} has it ({type(error).__name__}: {error})"))
    if not facts:
        first = f"; {bad[0].where}: {bad[0].reason}" if bad else ""
        raise ValueError(f"facts.path={cfg.path}: no {cfg.source} facts among {len(bad)} records{first}")
    return FactSet(tuple(facts.values()), f"{cfg.source}:{Path(cfg.path).name}", sha256, tuple(bad), repeated)


def _named(fact: Fact, source: str, number: int, names: set[str]) -> Fact:
    """The fact with a fact_id that no other has."""
    name = base = fact.fact_id or f"{source}-{number:05d}"
    count = 1
    while name in names:
        count += 1
        name = f"{base}.{count}"
    names.add(name)
    return replace(fact, fact_id=name)


def _check_schema(cfg: FactsConfig, schema: Schema, record: Record) -> bool:
    """Raises ValueError if the first record is of another schema."""
    if not schema.missing(record.fields):
        return True
    likely = [name for name, other in SCHEMAS.items() if not other.missing(record.fields)]
    looks = (
        f"it looks like {' or '.join(likely)}: write facts.source={likely[0]}" if likely else "and no schema known here has these fields"
    )
    raise ValueError(
        f"facts.path={cfg.path} is no {cfg.source}: {record.where} has {', '.join(map(str, record.fields)) or 'no fields'}; {looks}"
    )
