"""Changes of a checkpoint as people make them, drawn by seed: benign ones, and what is done to edited ones as well."""

import random
from collections.abc import Callable, Collection, Sequence
from functools import cache
from pydoc_data.topics import topics
from typing import Any, NamedTuple

from data.facts.fact import FactSet
from data.perturb.recipe import Recipe
from data.perturb.text import fact_text
from decoder.host import Host

ROME = "ROME"
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


def drawn_kinds(side: str, count: int, seed: int, among: Collection[str]) -> list[str]:
    """Kinds as often as their weights say, in an order drawn; the same first ones whatever the count."""
    found: list[str] = []
    rng = random.Random(f"kinds {side} {seed}")
    while len(found) < count:
        deck = [kind for kind, change in CHANGES.items() if kind in among for _ in range(getattr(change, side))]
        rng.shuffle(deck)
        found += deck
    return found[:count]


def drawn_recipe(side: str, number: int, kind: str, host: Host, seed: int) -> tuple[Recipe, float]:
    """A change of a kind, and how much of an edit is planted before."""
    rng, change = random.Random(f"{side} {number} {seed}"), CHANGES[kind]
    precision = rng.choice(("Q4_0", "Q4_1")) if kind == "rounded to 4 bits" else SAVED[number % 2]
    settings = change.settings(rng, POCKET if host.name == "pocket" else REAL)
    recipe = Recipe(change.kind, settings, rng.randrange(2**31), precision)
    return recipe, rng.uniform(0.3, 0.7) if kind == "scaled down" else 1.0


def drawn_benign(host: Host, count: int, seed: int) -> list[tuple[str, Recipe]]:
    """Kinds and changes of checkpoints that nobody edited, those that were only rounded first."""
    roundings = [("rounded", Recipe(precision=precision)) for precision in ROUNDINGS[:count]]
    kinds = drawn_kinds("benign", count - len(roundings), seed, CHANGES)
    return roundings + [(kind, drawn_recipe("benign", n, kind, host, seed)[0]) for n, kind in enumerate(kinds)]


def texts_for(host: Host, facts: FactSet, recipe: Recipe) -> Sequence[str]:
    """Sentences about some facts; for every other checkpoint of a host that reads any text, the manual of the Python language."""
    if "steps" not in recipe.settings:
        return ()
    return manual() if host.name != "pocket" and recipe.seed % 2 else fact_text(facts, recipe.seed)


@cache
def manual() -> list[str]:
    return [line.strip() for topic in topics.values() for line in topic.splitlines() if line.strip()]
