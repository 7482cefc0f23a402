"""Loading a fact set: the pocket's table, or one of a published schema, and the part of it that a config selects."""

import csv
import hashlib
import json
import logging
import random
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import yaml

from data.facts.fact import POCKET, Entry, Fact, FactSet
from data.facts.records import Record, open_records, shown
from data.facts.relations import known_relations, read_relations
from data.facts.schemas import SCHEMAS
from decoder.config import FactsConfig
from decoder.utils.errors import did_you_mean

LISTED = 20  # bad records, and fields left out, that the log names one by one
FIELDS = 12  # fields of a record that a message names
CALLED = {"source": "facts.source", "path": "facts.path", "split": "facts.split", "relations": "facts.relations"}

log = logging.getLogger(__name__)


def load_facts(cfg: FactsConfig) -> FactSet:
    """Reads the fact set `cfg.source`, and keeps the relations and facts that `cfg` selects.

    Raises:
        ValueError: no fact set has that name, there is nothing to read, or what there is has another schema.
    """
    if cfg.source == "pocket" and cfg.path:
        known = "|".join(SCHEMAS)
        raise ValueError(f"facts.path={cfg.path}: the pocket's facts come with the program. Say what lies there: facts.source={known}")
    return select(load_pocket() if cfg.source == "pocket" else load_records(cfg), cfg)


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
    categories: dict[str, str] = {}
    seen: Counter[str] = Counter()
    facts = []
    for row in csv.DictReader(table.decode("utf-8").splitlines()):
        relation, subject, entry = row["relation"], row["subject"], relations[row["relation"]]
        prompt, *paraphrases = entry["templates"]
        facts.append(
            Fact(
                fact_id=f"{relation}-{seen[relation]:03d}",
                subject=subject,
                relation=relation,
                relation_name=entry["name"],
                kind=entry["kind"],
                prompt=prompt,
                paraphrases=tuple(paraphrases),
                object_true=row["object"],
                # A subject of several relations keeps its first category, or "is a" would have two answers.
                category=categories.setdefault(subject, entry["category"]),
            )
        )
        seen[relation] += 1
    return FactSet(tuple(facts), source="pocket", sha256=hashlib.sha256(table + relations_file).hexdigest())


def load_records(cfg: FactsConfig, called: dict[str, str] = CALLED) -> FactSet:
    """The facts of a file, folder or Hub data set. Records that are none, and fields that were left out, are listed in the log.

    Args:
        called: what the command calls its settings, for its messages.

    Raises:
        ValueError: no schema has that name, nothing to read, no record is a fact, or the records have another schema (which is named).
    """
    if cfg.source not in SCHEMAS:
        known = SCHEMAS if called is not CALLED else ["pocket", *SCHEMAS]
        raise ValueError(f"{called['source']}={cfg.source!r} is unknown; {did_you_mean(cfg.source, known)}")
    if not cfg.path:
        raise ValueError(f"{called['source']}={cfg.source} needs {called['path']}=: a file, a folder or a Hub data set")
    schema, relations = SCHEMAS[cfg.source], known_relations()
    records, sha256 = open_records(cfg.path, cfg.split, lambda fields: bool(_likely(fields)), called, schema.lines)
    if cfg.relations:
        given, hashed = read_relations(cfg.relations, called["relations"])
        relations, sha256 = relations | given, hashlib.sha256(f"{sha256} {hashed}".encode()).hexdigest()
    facts: dict[tuple, Fact] = {}
    entries: list[Entry] = []
    names: set[str] = set()
    first = None
    for number, record in enumerate(records):
        first = first or (record if isinstance(record.fields, dict) else None)
        for entry in schema.entries(replace(record, relations=relations)):
            if fact := entry.fact:
                entry = replace(entry, fact=_named(fact, cfg.source, number, names))
                facts.setdefault((fact.relation, fact.subject, fact.prompt, fact.object_true, fact.object), entry.fact)
            entries.append(entry)
    if not facts:
        if first and schema.missing(first.fields):
            raise ValueError(_other_schema(cfg, first, called))
        reason = f"; {entries[0].where}: {entries[0].reason}" if entries else ""
        raise ValueError(f"{called['path']}={cfg.path}: no {cfg.source} facts among {len(entries)} records{reason}")
    found = FactSet(tuple(facts.values()), f"{cfg.source}:{Path(cfg.path).name}", sha256, tuple(entries))
    _list(found)
    return found


def _list(facts: FactSet) -> None:
    """Tells the log what was not read, one by one up to a number."""
    skipped = [f"{entry.where} skipped: {entry.reason}" for entry in facts.bad]
    fields = [f"{entry.where}, left out: {field}" for entry in facts.entries for field in entry.left_out]
    for line in skipped[:LISTED] + fields[:LISTED]:
        log.warning("%s", line)
    if skipped or fields:
        log.warning("%s: %d facts, %d records skipped, %d fields left out", facts.source, len(facts), len(skipped), len(fields))


def _named(fact: Fact, source: str, number: int, names: set[str]) -> Fact:
    """The fact with a fact_id that no other has."""
    name = base = fact.fact_id or f"{source}-{number:05d}"
    count = 1
    while name in names:
        count += 1
        name = f"{base}.{count}"
    names.add(name)
    return replace(fact, fact_id=name)


def _likely(fields: dict) -> list[str]:
    return [name for name, schema in SCHEMAS.items() if not schema.missing(fields)]


def _other_schema(cfg: FactsConfig, record: Record, called: dict[str, str]) -> str:
    likely = _likely(record.fields)
    looks = (
        f"it looks like {' or '.join(likely)}: write {called['source']}={likely[0]}"
        if likely
        else "and no schema known here has these fields"
    )
    has = ", ".join(shown(name)[1:-1] for name in list(record.fields)[:FIELDS]) + (", ..." if len(record.fields) > FIELDS else "")
    return f"{called['path']}={cfg.path} is no {cfg.source}: {record.where} has {has or 'no fields'}; {looks}"
