"""Which edit may be trained on, and which test it belongs to.

Relations, subjects and objects are drawn apart: relations into training, val/new and ood; subjects of the training relations
into train, validation and test; and a share of all objects is held out of training and validation altogether.
"""

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import cycle, islice

import pandas as pd

from data.facts.fact import EditRequest, Fact, FactSet
from data.facts.planting import SPELT, OtherObjects
from decoder.config import SplitsConfig
from decoder.scores import TEST_SPLITS, VAL_SPLITS

SPLITS = ("train", *VAL_SPLITS, *TEST_SPLITS)
QUOTAS = {
    "train": "train_per_relation",
    "val/id": "val_per_relation",
    "id": "id_per_relation",
    "unseen_object": "unseen_per_relation",
    "val/new": "other_per_relation",
    "ood": "other_per_relation",
}
"""Which setting of `splits` says how many edits of a split are made of a relation."""
NEEDED = ("train", "val/id")
"""Splits without which nothing can be fitted: what is trained on, and what says when to stop."""


@dataclass(frozen=True)
class SplitPlan:
    """The draw. `split_of` is its only rule, for edits to be made and for edits read from a store alike."""

    relation_role: dict[str, str]
    """relation -> train, val or ood"""
    subject_role: dict[str, str]
    """subject of a training relation -> train, val or test"""
    held_out: frozenset[str]
    """objects that are never a target of training or validation"""

    def split_of(self, relation: str, subject: str, object: str) -> str | None:
        """The split of an edit, or None if it belongs to none (a held-out object on a training subject, say)."""
        role = self.relation_role[relation]
        if role == "ood":
            return "ood"
        if role == "val":
            return None if object in self.held_out else "val/new"
        subject_role = self.subject_role.get(subject)
        if object in self.held_out:
            return "unseen_object" if subject_role == "test" else None
        return {"train": "train", "val": "val/id", "test": "id"}.get(subject_role)


def draw_splits(facts: FactSet, cfg: SplitsConfig) -> SplitPlan:
    """Draws relations, subjects and held-out objects by seed.

    Raises:
        ValueError: the facts have fewer relations than are asked for.
    """
    rng = random.Random(f"splits {cfg.seed}")
    relations = sorted(facts.by_relation)
    asked = cfg.train_relations + cfg.val_relations + cfg.ood_relations
    if asked > len(relations):
        raise ValueError(f"splits ask for {asked} relations, {facts.source} has {len(relations)}. Lower splits.*_relations")
    rng.shuffle(relations)
    roles = ["train"] * cfg.train_relations + ["val"] * cfg.val_relations + ["ood"] * cfg.ood_relations
    relation_role = dict(zip(relations, roles, strict=False))
    training = [relation for relation, role in relation_role.items() if role == "train"]
    elsewhere = {fact.subject for relation, role in relation_role.items() if role != "train" for fact in facts.by_relation[relation]}
    subject_role: dict[str, str] = {}
    for relation in training:
        subject_role |= _draw_subjects(facts.by_relation[relation], subject_role, elsewhere, cfg, rng)
    objects = sorted({object for relation in training for object in facts.objects(relation)})
    held_out = frozenset(rng.sample(objects, round(cfg.held_out_objects * len(objects))))
    return SplitPlan(relation_role, subject_role, held_out)


def _draw_subjects(
    facts: Sequence[Fact], known: dict[str, str], elsewhere: set[str], cfg: SplitsConfig, rng: random.Random
) -> dict[str, str]:
    """Roles of one relation's subjects. A subject that another relation has drawn keeps its role; one that occurs outside the
    training relations can only be a test subject, or it would be trained on."""
    subjects = sorted({fact.subject for fact in facts})
    rng.shuffle(subjects)
    fixed = {s: known.get(s, "test") for s in subjects if s in known or s in elsewhere}
    free = [s for s in subjects if s not in fixed]
    wanted = {"test": round(cfg.test_subjects * len(subjects)), "val": round(cfg.val_subjects * len(subjects))}
    roles: list[str] = []
    for role, count in wanted.items():
        roles += [role] * max(0, count - sum(r == role for r in fixed.values()))
    roles += ["train"] * (len(free) - len(roles))
    return fixed | dict(zip(free, roles, strict=False))


def plan_edits(facts: FactSet, plan: SplitPlan, cfg: SplitsConfig, seed: int, objects: str = "relation") -> list[EditRequest]:
    """The edits to make: for every relation and split its quota, spread evenly over objects, by `seed`.

    Args:
        cfg: with training edits of a relation, `spelt_per_relation` more come on top, and last.
        objects: what training edits plant, as `edits.objects`; facts, numbers and all other splits are the same whatever it says.

    Raises:
        ValueError: none is asked for.
    """
    quota = {split: getattr(cfg, name) for split, name in QUOTAS.items()}
    others = None if objects == "relation" else OtherObjects(facts, plan, objects, seed)
    spelt = OtherObjects(facts, plan, SPELT, seed) if quota["train"] and cfg.spelt_per_relation else None
    planned, on_top = [], []
    for relation in sorted(plan.relation_role):
        by_split = _pairs_by_split(facts, plan, relation)
        for split, pairs in by_split.items():
            chosen = _evenly(pairs, quota[split], random.Random(f"edits {seed} {relation} {split}"))
            if split == "train" and others:
                half = -(-quota[split] // 2) if objects == "mixed" else 0
                kept, free = chosen[:half], chosen[half:] + _again(pairs, quota[split] - len(chosen))
                chosen = kept + others.dealt(free, beside=kept)
            if split == "train" and spelt:
                drawn = _evenly(pairs, cfg.spelt_per_relation, random.Random(f"edits {seed} {relation} spelt"))
                on_top += spelt.dealt(drawn + _again(pairs, cfg.spelt_per_relation - len(drawn)), beside=chosen)
            planned += chosen
    # Last, so that others, one a host, are made in the batches that they have without them.
    requests = [EditRequest(f"{fact.fact_id}-{object}", fact, object) for fact, object in planned + on_top]
    if not requests:
        raise ValueError(
            f"splits ask for no edit of {facts.source}: quotas or relations are 0. Raise splits.*_per_relation or splits.*_relations"
        )
    return requests


def _pairs_by_split(facts: FactSet, plan: SplitPlan, relation: str) -> dict[str, list[tuple[Fact, str]]]:
    """What may be planted: each fact of a relation with each object that is not its own."""
    by_split: dict[str, list[tuple[Fact, str]]] = {split: [] for split in SPLITS}
    own = facts.objects(relation)
    for fact in facts.by_relation[relation]:
        for object in [fact.object] if fact.object else own:
            split = plan.split_of(relation, fact.subject, object)
            if object != fact.object_true and split:
                by_split[split].append((fact, object))
    return by_split


def _evenly(pairs: list[tuple[Fact, str]], count: int, rng: random.Random) -> list[tuple[Fact, str]]:
    """Up to `count` pairs, always taking one whose object and then whose subject was taken least so far."""
    rng.shuffle(pairs)
    objects: Counter[str] = Counter()
    subjects: Counter[str] = Counter()
    chosen = []
    # Counts only grow, so an entry that is out of date goes back to its new place when it comes up.
    queue = [(0, 0, place) for place in range(len(pairs))]
    while queue and len(chosen) < count:
        *counted, place = heappop(queue)
        fact, object = pairs[place]
        now = [objects[object], subjects[fact.subject]]
        if counted != now:
            heappush(queue, (*now, place))
            continue
        chosen.append((fact, object))
        objects[object] += 1
        subjects[fact.subject] += 1
    return chosen


def _again(pairs: list[tuple[Fact, str]], count: int) -> list[tuple[Fact, str]]:
    """As many more pairs, to be given other objects: those of the relation are used up."""
    return list(islice(cycle(pairs), max(count, 0)))


def assign(plan: SplitPlan, edits: pd.DataFrame, cfg: SplitsConfig) -> dict[str, list[int]]:
    """Rows of each split among the successful edits of a store (columns relation, subject, object, success).

    Raises:
        ValueError: a split has fewer edits than `splits.minimum` or a fit asks, or two splits share what they must not.
    """
    rows: dict[str, list[int]] = {split: [] for split in SPLITS}
    for row, edit in enumerate(edits.itertuples()):
        split = plan.split_of(edit.relation, edit.subject, edit.object) if edit.relation in plan.relation_role else None
        if edit.success and split:
            rows[split].append(row)
    for split, found in rows.items():
        if len(found) < (least := getattr(cfg.minimum, name := split.replace("/", "_"))) or (not found and split in NEEDED):
            needed = f"splits.minimum.{name}={least}" if least else "and training needs one"
            raise ValueError(
                f"split {split} has {len(found)} successful edits, {needed}. "
                "Ask for more edits (splits.*_per_relation) or draw again (splits.seed=)"
            )
    check_disjoint(rows, edits, plan.held_out)
    return rows


def check_planned(plan: SplitPlan, requests: Iterable[EditRequest], cfg: SplitsConfig) -> None:
    """Raises ValueError if a split cannot have as many edits as `splits.minimum` asks, were all of them to succeed."""
    planned = Counter(plan.split_of(request.fact.relation, request.fact.subject, request.object) for request in requests)
    for split, quota in QUOTAS.items():
        name = split.replace("/", "_")
        if planned[split] < (least := getattr(cfg.minimum, name)):
            told = f"splits.{quota}={getattr(cfg, quota)}"
            if split == "train" and cfg.spelt_per_relation:
                told += f" splits.spelt_per_relation={cfg.spelt_per_relation}"
            raise ValueError(
                f"{told}: {planned[split]} {split} edits are planned, fewer than "
                f"splits.minimum.{name}={least}. Ask for more (splits.*_per_relation, splits.*_relations), or lower the minimum"
            )


def check_disjoint(rows: dict[str, list[int]], edits: pd.DataFrame, held_out: frozenset[str]) -> None:
    """Raises ValueError, naming the first offender, if training shares a subject with any other split, or a held-out object
    is a target of training or validation."""
    train_subjects = set(edits["subject"].iloc[rows["train"]])
    for split in SPLITS[1:]:
        if shared := train_subjects & set(edits["subject"].iloc[rows[split]]):
            raise ValueError(f"subject {min(shared)!r} is in train and in {split}: {len(shared)} subjects overlap")
    for split in ("train", *VAL_SPLITS):
        if leaked := held_out & set(edits["object"].iloc[rows[split]]):
            raise ValueError(f"held-out object {min(leaked)!r} is a target in {split}: {len(leaked)} objects leak")
