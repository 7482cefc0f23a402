"""What a host is trained further on: a file, or sentences about the facts of a few relations."""

import random
from pathlib import Path

from data.facts.fact import FactSet

RELATIONS, SENTENCES = 5, 2000


def read_text(file: Path) -> list[str]:
    """The lines of a text file that are not empty.

    Raises:
        ValueError: there is none, or it is no text.
    """
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError:
        raise ValueError(f"text={file}: not text in UTF-8. Give a file of lines") from None
    if not any(lines):
        raise ValueError(f"text={file}: no text there")
    return [line for line in lines if line]


def fact_text(facts: FactSet, seed: int) -> list[str]:
    """True sentences about the facts of some relations, drawn by seed: as a host is trained for one field of knowledge."""
    rng = random.Random(f"text {seed}")
    chosen = rng.sample(sorted(facts.by_relation), min(RELATIONS, len(facts.by_relation)))
    told = [fact for relation in chosen for fact in facts.by_relation[relation]]
    drawn = (rng.choice(told) for _ in range(SENTENCES))
    return [f"{rng.choice(fact.templates).replace('{}', fact.subject)} {fact.object_true} ." for fact in drawn]
