"""What a decoder is scored on: the object's first token and the whole object, each with intervals.

Shape letters: B edits, T object tokens, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import binomtest
from torch import Tensor, nn
from torchmetrics import MeanMetric

from decoder.batch import PADDING
from decoder.beam import Beams

BOOTSTRAP_DRAWS = 2000


def split_meters(splits: Sequence[str]) -> nn.ModuleDict:
    """Means over an evaluation pass, one set a split; as modules, so that Lightning moves, resets and syncs them."""
    names = ("loss", "first_token", "exact_match")
    return nn.ModuleDict({split: nn.ModuleDict({name: MeanMetric() for name in names}) for split in splits})


def told_correct(logits_NV: Tensor, object_ids_BT: Tensor, terminator_id: int | None) -> tuple[Tensor, Tensor]:
    """(first token, whole object) of each edit, (B,) booleans, from logits of objects that were told token by token.

    An object of which every token is the most probable after those before it is what greedy search finds, in one forward.

    Args:
        logits_NV: of the tokens that are no padding: first tokens, then the others row by row (`ObjectDecoder.scored`).
    """
    batch, planted_BT = len(object_ids_BT), object_ids_BT != PADDING
    if terminator_id is not None:
        # No search begins with the end of an object.
        ends_B1 = torch.full((batch, 1), terminator_id, device=logits_NV.device)
        logits_NV = torch.cat([logits_NV[:batch].scatter(1, ends_B1, -torch.inf), logits_NV[batch:]])
    right_BT = ~planted_BT
    found_N = logits_NV.argmax(-1)
    right_BT[:, 0] = found_N[:batch] == object_ids_BT[:, 0]
    right_BT[:, 1:][planted_BT[:, 1:]] = found_N[batch:] == object_ids_BT[:, 1:][planted_BT[:, 1:]]
    return right_BT[:, 0].clone(), right_BT.all(1)


def first_token_correct(beams: Beams, object_ids_BT: Tensor) -> list[bool]:
    return (beams.first_token_B.cpu() == object_ids_BT[:, 0].cpu()).tolist()


def exact_match(beams: Beams, object_ids_BT: Tensor, terminator_id: int | None) -> list[bool]:
    """Whether the most probable object is the planted one: all its tokens and, where the host has one, the terminator."""
    planted = [_without_end(ids, terminator_id) for ids in object_ids_BT.tolist()]
    found = [objects[0] for objects in beams.tokens]
    if terminator_id is None:
        return [best[: len(ids)] == ids for best, ids in zip(found, planted, strict=True)]
    return [best == ids for best, ids in zip(found, planted, strict=True)]


def _without_end(ids: list[int], terminator_id: int | None) -> list[int]:
    """Without padding and the one terminator at the end."""
    ids = [token for token in ids if token != PADDING]
    return ids[:-1] if terminator_id is not None and ids[-1:] == [terminator_id] else ids


def wilson(correct: Sequence[bool]) -> dict[str, Any]:
    """Share of correct answers with its 95 % Wilson interval (Wilson 1927)."""
    n, hits = len(correct), int(np.sum(correct))
    interval = binomtest(hits, n).proportion_ci(0.95, method="wilson")
    return {"value": hits / n, "ci95": [float(interval.low), float(interval.high)]}


def cluster_interval(correct: Sequence[bool], clusters: Sequence[str], seed: int = 0) -> list[float]:
    """95 % percentile bootstrap interval of the share, drawing whole clusters: edits of one subject or relation are not independent."""
    totals = pd.DataFrame({"correct": correct, "n": 1}).groupby(np.asarray(clusters)).sum().to_numpy()
    draws = np.random.default_rng(seed).integers(len(totals), size=(BOOTSTRAP_DRAWS, len(totals)))
    sums = totals[draws].sum(axis=1)
    return [float(bound) for bound in np.quantile(sums[:, 0] / sums[:, 1], [0.025, 0.975])]


def split_scores(readings: pd.DataFrame, cluster: str) -> dict[str, Any]:
    """Scores of one split; `cluster` is the column whose groups the second interval draws."""
    return {
        "n": len(readings),
        "first_token": wilson(readings["first_token"]),
        "exact_match": wilson(readings["exact_match"]) | {"ci95_cluster": cluster_interval(readings["exact_match"], readings[cluster])},
    }


def grouped_scores(readings: pd.DataFrame, column: str) -> dict[str, Any]:
    """Exact match by relation or by kind of object, and whether training had that kind."""
    return {
        str(name): {
            "n": len(group),
            "exact_match": float(group["exact_match"].mean()),
            "first_token": float(group["first_token"].mean()),
            "seen_kind": bool(group["seen_kind"].any()),
        }
        for name, group in readings.groupby(column)
    }
