"""Reads a fact set of a published schema: what is no fact is listed and skipped, what is another schema is named."""

from dataclasses import replace
from pathlib import Path

from data.fact_files import Record, open_records
from data.fact_schemas import SCHEMAS, NoFact, Schema
from data.facts import BadRecord, Fact, FactSet
from decoder.config import FactsConfig


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
