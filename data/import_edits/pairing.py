"""Which record says what was planted in which source."""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from data.facts.fact import EditRequest, Entry, FactSet
from data.facts.together import refuse_repeated


def pair(paths: list[Path], facts: FactSet) -> list[Entry | None]:
    """The record of each source: by name (the fact_id it is written with, or the number that ends in), else by order.

    A record that is no fact keeps its name and its place, so it never hands its source to another. As many sources may have no record
    (None) as there are records that cannot be read, name and all.

    Raises:
        ValueError: names do not tell, nor does the order: a record is no fact, there are more or fewer than sources, or a name says another
            place.
    """
    entries = facts.entries
    by_name = _alone(entries, lambda entry: entry.name or (entry.fact.fact_id if entry.fact else ""))
    by_number = _alone(entries, lambda entry: _number(entry.name))
    named = [by_name.get(name) or by_number.get(_number(name)) for name in map(name_of, paths)]
    found = [entry for entry in named if entry]
    lost = sum(not entry.name and not entry.fact for entry in entries)
    if found and len(set(map(id, found))) == len(found) >= len(paths) - lost:
        return named
    if facts.bad:
        why = f"{len(facts.bad)} of {len(entries)} records are no facts ({facts.bad[0].where}: {facts.bad[0].reason})"
    elif len(entries) != len(paths):
        why = f"{len(entries)} records for {len(paths)} edited sources"
    elif elsewhere := [path for path, entry, other in zip(paths, named, entries, strict=True) if entry and entry is not other]:
        why = f"{elsewhere[0].name} is named like a record that stands in another place"
    else:
        return list(entries)
    raise ValueError(
        f"facts={facts.source}: {why}, so order alone does not say which fact belongs to which source. "
        f"Give every record the fact_id of its source: its name without ending ({name_of(paths[0])}), or the number that ends in"
    )


def pair_several(paths: list[Path], facts: FactSet) -> list[list[Entry | None]]:
    """The records of each source, in their order: of one source all that there are, of several those that are written with its name as
    `fact_id`, or with the number that it ends in. A source without any has [None].

    Raises:
        ValueError: a record has the name of no source, or of several.
    """
    if len(paths) == 1:
        return [list(facts.entries)]
    by_name: dict[str, list[Entry]] = {}
    of_source: dict[str, list[Entry | None]] = {}
    for entry in facts.entries:
        by_name.setdefault(entry.name, []).append(entry)
    sources = [*map(name_of, paths)]
    numbers = Counter(map(_number, sources))
    source_of = {number: name for name in sources if (number := _number(name)) and numbers[number] == 1} | {name: name for name in sources}
    for name, entries in by_name.items():
        if (source := source_of.get(name) or source_of.get(_number(name))) is None:
            raise ValueError(
                f"facts={facts.source}: {len(entries)} records have the fact_id {name!r}, which is no source's name without ending, as "
                f"{sources[0]}, and ends in no number that one source alone ends in"
            )
        of_source.setdefault(source, []).extend(entries)
    return [of_source.get(name) or [None] for name in sources]


def requests_of(entries: Iterable[Entry | None]) -> list[EditRequest]:
    """What the records of a source say was planted. Raises ValueError if one of them does not say so, or if two have one subject."""
    entries = list(entries)
    requests = [request_of(entry) for entry in entries]
    refuse_repeated(requests, [entry.where for entry in entries if entry])
    return requests


def request_of(entry: Entry | None) -> EditRequest:
    """What the record says was planted. Raises ValueError if it does not say so."""
    if entry is None:
        raise ValueError("no record has its name")
    if entry.fact is None:
        raise ValueError(f"its record is no fact: {entry.where}: {entry.reason}")
    if entry.fact.object is None:
        raise ValueError(f"{entry.where} does not say which object was planted; the field `object` does")
    return EditRequest(f"{entry.fact.fact_id}-{entry.fact.object}", entry.fact, entry.fact.object)


def name_of(path: Path) -> str:
    return path.name if path.is_dir() else path.stem


def _number(name: str) -> str:
    return re.split(r"\D", name)[-1]


def _alone(entries: Iterable[Entry], name: Callable[[Entry], str]) -> dict[str, Entry]:
    """Entries by name. A name that several have is none's."""
    count = Counter(map(name, entries))
    return {name(entry): entry for entry in entries if name(entry) and count[name(entry)] == 1}
