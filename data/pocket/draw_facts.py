"""Draws `facts.csv`, the pocket's table of real facts, from a folder of ParaRel triples.

    python data/pocket/draw_facts.py PARAREL_FOLDER

The same folder always gives the same table. The rules are stated in `SOURCE.md`.
"""

import csv
import json
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path

RELATIONS = (
    "P17 P19 P20 P27 P30 P36 P37 P39 P101 P103 P106 P108 P127 P131 P136 P138 P140 P159 P176 P178 P190 P276 P364 P407 P413 P449 P495 "
    "P740 P937 P1303 P1412"
).split()
OBJECTS_PER_RELATION = 10
FACTS_PER_OBJECT = 4
FACTS_PER_RELATION = 30
PLAIN_SUBJECT = re.compile(r"[A-Za-z]+( [A-Za-z]+){0,3}")
NOT_FOR_EVERYONE = {"fucked"}


def read_triples(folder: Path, relation: str) -> list[tuple[str, str]]:
    """The (subject, object) pairs of a relation in the order of its file."""
    lines = (folder / f"{relation}.jsonl").read_text(encoding="utf-8").splitlines()
    return [(row["sub_label"], row["obj_label"]) for row in map(json.loads, lines)]


def frequent_objects(pairs: list[tuple[str, str]]) -> list[str]:
    counts = Counter(obj for _, obj in pairs)
    return sorted(counts, key=lambda obj: (-counts[obj], obj))[:OBJECTS_PER_RELATION]


def last_word(subject: str) -> str:
    return subject.split()[-1].lower()


def candidates(pairs: list[tuple[str, str]], objects: list[str], object_words: set[str]) -> dict[str, list[str]]:
    """Usable subjects of each object; a subject stands under the first object its file gives it."""
    subjects, seen = defaultdict(list), set()
    for subject, obj in pairs:
        plain = PLAIN_SUBJECT.fullmatch(subject) and not NOT_FOR_EVERYONE & set(subject.lower().split())
        if obj in objects and plain and last_word(subject) not in object_words and subject not in seen:
            seen.add(subject)
            subjects[obj].append(subject)
    return subjects


def draw_relation(objects: list[str], subjects: dict[str, list[str]], owner: dict[str, str]) -> list[tuple[str, str]]:
    """Takes one subject of each object in turn; `owner` maps a last word to the only subject that may end in it."""
    drawn: list[tuple[str, str]] = []
    waiting = {obj: iter(subjects[obj]) for obj in objects}
    for _ in range(FACTS_PER_OBJECT):
        for obj in objects:
            subject = next((s for s in waiting[obj] if owner.setdefault(last_word(s), s) == s), None)
            if subject is not None and len(drawn) < FACTS_PER_RELATION:
                drawn.append((subject, obj))
    return drawn


def draw(folder: Path) -> list[tuple[str, str, str]]:
    """All (relation, subject, object) rows. Relations with the least choice draw first, so that they lose few last words to others."""
    pairs = {relation: read_triples(folder, relation) for relation in RELATIONS}
    objects = {relation: frequent_objects(pairs[relation]) for relation in RELATIONS}
    object_words = {obj.lower() for names in objects.values() for obj in names}
    pool = {relation: candidates(pairs[relation], objects[relation], object_words) for relation in RELATIONS}

    def choice(relation: str) -> tuple[int, int]:
        sizes = [len(names) for names in pool[relation].values()]
        return sum(min(FACTS_PER_OBJECT, size) for size in sizes), sum(sizes)

    owner: dict[str, str] = {}
    drawn = {relation: draw_relation(objects[relation], pool[relation], owner) for relation in sorted(RELATIONS, key=choice)}
    facts_of = Counter(obj for rows in drawn.values() for _, obj in rows)
    return [(relation, subject, obj) for relation in RELATIONS for subject, obj in drawn[relation] if facts_of[obj] > 1]


def main() -> None:
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        sys.exit("usage: python data/pocket/draw_facts.py PARAREL_FOLDER")
    rows = draw(Path(sys.argv[1]))  # first: a folder that lacks a file leaves the table as it is
    with open(Path(__file__).with_name("facts.csv"), "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("relation", "subject", "object"))
        writer.writerows(rows)


if __name__ == "__main__":
    main()
