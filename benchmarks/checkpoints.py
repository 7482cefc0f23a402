"""The suspects that audits are scored on: whole checkpoints, edited and benign, made in memory one after the other and seeded.

Edits are of relations and facts that nothing was trained on, as `audit_edits.py` drew them. Benign ones are made as people make them,
edited ones also as somebody would who hides an edit.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import NamedTuple

from audit_edits import Edits

from data.facts.fact import FactSet
from data.perturb.drawn import CHANGES, drawn_benign, drawn_kinds, drawn_recipe, texts_for
from data.perturb.recipe import Recipe, perturbed
from decoder.host import Host

ABSENT = 5
"""Of so many edited suspects one is about a subject that the auditor's list lacks."""


class Truth(NamedTuple):
    """What an edited suspect holds."""

    layer: int
    subject: str
    relation: str
    relation_name: str
    object: str


class Case(NamedTuple):
    """One suspect to be made.

    Attributes:
        row: of the edits; None for a benign one.
        is_listed: whether the auditor's list has the subject.
    """

    name: str
    kind: str
    recipe: Recipe
    row: int | None = None
    scale: float = 1.0
    truth: Truth | None = None
    is_listed: bool = True


def cases(host: Host, edits: Edits, edited: int, benign: int, seed: int) -> list[Case]:
    """The set, edited and benign by turns as far as both go. Kinds whose edits nobody made are left out.

    Raises:
        ValueError: there are fewer edits than that takes.
    """
    rows = _rows(edits)
    made = [Case(f"benign {n}", kind, recipe) for n, (kind, recipe) in enumerate(drawn_benign(host, benign, seed))]
    planned = []
    for n, kind in enumerate(drawn_kinds("edited", edited, seed, {kind for kind, change in CHANGES.items() if change.made in rows})):
        if (row := next(rows[CHANGES[kind].made], None)) is None:
            raise ValueError(f"edited={edited}: {edits.folder} has no more {CHANGES[kind].made} edits after {n}")
        told = edits.told[row]
        truth = Truth(edits.layer, told["subject"], told["relation"], told["relation_name"], told["object"])
        recipe, scale = drawn_recipe("edited", n, kind, host, seed)
        planned.append(Case(f"edited {n}", kind, recipe, row, scale, truth, n % ABSENT > 0))
    both = min(len(made), len(planned))
    mixed = [case for pair in zip(planned, made, strict=False) for case in pair]
    return mixed + planned[both:] + made[both:]


def _rows(edits: Edits) -> dict[str, Iterator[int]]:
    """For each way edits were made their rows, in the order drawn."""
    return {made: iter([n for n, one in enumerate(edits.told) if one["made"] == made]) for made in {one["made"] for one in edits.told}}


def suspects(host: Host, edits: Edits, facts: FactSet, wanted: Sequence[Case]) -> Iterator[tuple[Case, str | None]]:
    """Each case while the host is what it makes of it, until the next is asked for; or why it cannot be made."""
    for case in wanted:
        edit = None if case.row is None else edits.planted(case.row, case.scale)
        with ExitStack() as made:
            try:
                made.enter_context(perturbed(host, replace(case.recipe, edit=edit), texts_for(host, facts, case.recipe)))
                failed = None
            except ValueError as error:
                failed = str(error)
            yield case, failed
