"""The suspects that audits are scored on: whole checkpoints, edited and benign, made in memory one after the other and seeded.

Edits are of relations and facts that nothing was trained on, as `audit_edits.py` drew them. Benign ones are made as people make them,
edited ones also as somebody would who hides an edit.
"""

import random
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pydoc_data.topics import topics
from typing import Any, NamedTuple

from audit_edits import ROME, Edits

from data.facts.fact import FactSet
from data.perturb.recipe import Recipe, perturbed
from data.perturb.text import fact_text
from decoder.host import Host

ABSENT = 5
"""Of so many edited suspects one is about a subject that the auditor's list lacks."""
ROUNDINGS = ("bf16", "fp16", "Q8_0", "Q4_0", "Q4_1")
SAVED = ("bf16", "Q8_0")


class Training(NamedTuple):
    """How far a host is trained further: what a choice is made of."""

    lrs: tuple[float, ...]
    steps: tuple[int, ...]
    batch_size: int

    def draw(self, rng: random.Random) -> dict[str, Any]:
        return {"lr": rng.choice(self.lrs), "steps": rng.choice(self.steps), "batch_size": self.batch_size}


POCKET, REAL = Training((1e-5, 1e-4, 1e-3), (10, 20, 40), 8), Training((1e-5, 3e-5, 1e-4), (10, 20, 40), 8)


class Change(NamedTuple):
    """What a kind of suspect is, and how often it comes among benign and among edited ones; `made`: which edits are taken."""

    benign: int
    edited: int
    kind: str = "none"
    settings: Callable[[random.Random, Training], dict[str, Any]] = lambda rng, training: {}
    made: str = ROME


CHANGES = {
    "rounded": Change(0, 8),
    "rounded to 4 bits": Change(0, 2),
    "scaled down": Change(0, 3),
    "fine-tuned": Change(4, 3, "finetune", lambda rng, training: training.draw(rng)),
    "fine-tuned, SGD": Change(
        1, 1, "finetune", lambda rng, training: training.draw(rng) | {"lr": rng.choice((1e-3, 1e-2, 1e-1)), "optimizer": "sgd"}
    ),
    "LoRA merged": Change(
        4,
        3,
        "lora",
        lambda rng, training: (
            training.draw(rng)
            | {"lr": rng.choice((3e-4, 1e-3, 3e-3)), "rank": rng.choice((2, 4, 8, 16)), "modules": rng.choice(("all", "mlp", "attention"))}
        ),
    ),
    "pruned": Change(3, 2, "prune", lambda rng, training: {"share": rng.uniform(0.1, 0.5)}),
    "averaged": Change(2, 2, "average", lambda rng, training: training.draw(rng) | {"weight": rng.uniform(0.3, 0.7)}),
    "noise": Change(3, 2, "noise", lambda rng, training: {"size": 10 ** rng.uniform(-2.5, -1)}),
    "decoys": Change(0, 3, "decoys", lambda rng, training: {"count": rng.randint(1, 3), "size": rng.uniform(0.5, 1.5)}),
    **{made: Change(0, 2, made=made) for made in ("p-ROME", "clamp 1", "clamp 2", "clamp 3")},
    "key turned": Change(0, 2, "turn", lambda rng, training: {"cosine": rng.uniform(0.3, 0.9)}),
}
"""kind of suspect -> what it is. All are kept in bf16 and Q8_0 by turns but those that are about rounding."""


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
    training, rows = POCKET if host.name == "pocket" else REAL, _rows(edits)
    roundings = [Case(f"benign {kind}", "rounded", Recipe(precision=kind)) for kind in ROUNDINGS[:benign]]
    drawn = _kinds("benign", benign - len(roundings), seed, CHANGES)
    made = roundings + [_case("benign", n, kind, training, seed) for n, kind in enumerate(drawn)]
    planned = []
    for n, kind in enumerate(_kinds("edited", edited, seed, {kind for kind, change in CHANGES.items() if change.made in rows})):
        if (row := next(rows[CHANGES[kind].made], None)) is None:
            raise ValueError(f"edited={edited}: {edits.folder} has no more {CHANGES[kind].made} edits after {n}")
        told = edits.told[row]
        truth = Truth(edits.layer, told["subject"], told["relation"], told["relation_name"], told["object"])
        case = _case("edited", n, kind, training, seed)
        planned.append(case._replace(row=row, truth=truth, is_listed=n % ABSENT > 0))
    both = min(len(made), len(planned))
    mixed = [case for pair in zip(planned, made, strict=False) for case in pair]
    return mixed + planned[both:] + made[both:]


def _rows(edits: Edits) -> dict[str, Iterator[int]]:
    """For each way edits were made their rows, in the order drawn."""
    return {made: iter([n for n, one in enumerate(edits.told) if one["made"] == made]) for made in {one["made"] for one in edits.told}}


def _kinds(side: str, count: int, seed: int, among: Collection[str]) -> list[str]:
    """Kinds as often as their weights say, in an order drawn; the same first ones whatever the count."""
    found: list[str] = []
    rng = random.Random(f"kinds {side} {seed}")
    while len(found) < count:
        deck = [kind for kind, change in CHANGES.items() if kind in among for _ in range(getattr(change, side))]
        rng.shuffle(deck)
        found += deck
    return found[:count]


def _case(side: str, number: int, kind: str, training: Training, seed: int) -> Case:
    rng, change = random.Random(f"{side} {number} {seed}"), CHANGES[kind]
    precision = rng.choice(("Q4_0", "Q4_1")) if kind == "rounded to 4 bits" else SAVED[number % 2]
    recipe = Recipe(change.kind, change.settings(rng, training), rng.randrange(2**31), precision)
    return Case(f"{side} {number}", kind, recipe, scale=rng.uniform(0.3, 0.7) if kind == "scaled down" else 1.0)


def suspects(host: Host, edits: Edits, facts: FactSet, wanted: Sequence[Case]) -> Iterator[tuple[Case, Host]]:
    """Each case with the host as it makes it, until the next is asked for."""
    for case in wanted:
        edit = None if case.row is None else edits.planted(case.row, case.scale)
        with perturbed(host, replace(case.recipe, edit=edit), _texts(host, facts, case.recipe)):
            yield case, host


def _texts(host: Host, facts: FactSet, recipe: Recipe) -> Sequence[str]:
    """Sentences about some facts; for every other checkpoint of a host that reads any text, the manual of the Python language."""
    if "steps" not in recipe.settings:
        return ()
    return manual() if host.name != "pocket" and recipe.seed % 2 else fact_text(facts, recipe.seed)


@cache
def manual() -> list[str]:
    return [line.strip() for topic in topics.values() for line in topic.splitlines() if line.strip()]
