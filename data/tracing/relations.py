"""How well the relation of an edit is told, by number of relations: as published, and by the value of the edit.

No subject is in training and test, as nobody who audits has edits of the suspect's subject.

Shape letters: N edits, D hidden width.
"""

from collections.abc import Mapping, Sequence
from random import Random
from statistics import fmean
from typing import Any

from torch import Tensor

from decoder.audit.relation import COMPONENTS, FITTED, fit, published_recipe
from decoder.edit import RankOneEdit
from decoder.scores import mean_of
from decoder.utils.progress import progress

CLASSES = (2, 3, 5, 10, 15, 20, 25, 30)
EACH = 50  # training edits of a relation, and test edits
FEWEST = 8  # edits of a relation
DRAWS = 1000  # of the subjects that are for the test
METHODS = ("published", "value", "read")


def usable(relations: Sequence[str]) -> list[str]:
    """The relations that have edits enough."""
    return sorted(name for name in set(relations) if relations.count(name) >= FEWEST)


def accuracy(
    edits: RankOneEdit, read_ND: Tensor, relations: Sequence[str], subjects: Sequence[str], repeats: int, seed: int
) -> dict[str, Any]:
    """Accuracy by number of relations, other relations and subjects in each repeat.

    Args:
        read_ND: values as they are read out of edited matrices.
    """
    names, rows = usable(relations), []
    sizes = [count for count in CLASSES if count <= len(names)]
    with progress("relations learnt", repeats * sum(sizes)) as advance:
        for classes in sizes:
            found = []
            for repeat in range(repeats):
                random = Random(f"relations {seed} {classes} {repeat}")
                train, test = divided(random.sample(names, classes), relations, subjects, random)
                found.append(_told(edits, read_ND, relations, subjects, train, test) | {"train": len(train), "test": len(test)})
                advance(classes)
            each = {name: fmean(one[name] for one in found) / classes for name in ("train", "test")}
            rows.append({"classes": classes} | each | {name: mean_of([one[name] for one in found]) for name in METHODS})
    return {"repeats": repeats, "components": COMPONENTS, "fitted": FITTED, "by_classes": rows}


def divided(chosen: Sequence[str], relations: Sequence[str], subjects: Sequence[str], random: Random) -> tuple[list[int], list[int]]:
    """Training and test edits of the chosen relations, at most `EACH` of each, half of the subjects being for the test: drawn again until
    every relation has subjects on both sides."""
    people = sorted(set(subjects))
    own_people = [{subjects[n] for n, relation in enumerate(relations) if relation == name} for name in chosen]
    for _ in range(DRAWS):
        held_out = set(random.sample(people, len(people) // 2))
        if all(own & held_out and own - held_out for own in own_people):
            break
    sides: tuple[list[int], list[int]] = ([], [])
    for name in chosen:
        own = [n for n, relation in enumerate(relations) if relation == name]
        for side, is_held_out in zip(sides, (False, True), strict=True):
            rows = [n for n in own if (subjects[n] in held_out) == is_held_out]
            side += random.sample(rows, min(EACH, len(rows)))
    return sides


def _told(
    edits: RankOneEdit, read_ND: Tensor, relations: Sequence[str], subjects: Sequence[str], train: Sequence[int], test: Sequence[int]
) -> Mapping[str, float]:
    """Shares of right answers, by method."""
    learnt, expected = [relations[n] for n in train], [relations[n] for n in test]
    sides = ((edits.key_BF[rows], edits.value_BD[rows]) for rows in (train, test))
    answers = {"published": published_recipe(next(sides), learnt, next(sides))}
    classifier = fit(edits.value_BD[train], learnt, [subjects[n] for n in train])
    for name, value_ND in (("value", edits.value_BD), ("read", read_ND)):
        best_N = classifier.probabilities(value_ND[test]).argmax(dim=1).tolist()
        answers[name] = [classifier.relations[k] for k in best_N]
    return {name: fmean(a == b for a, b in zip(said, expected, strict=True)) for name, said in answers.items()}
