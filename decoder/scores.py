"""The result of a run: what `result.json` holds (schema 1)."""

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from decoder import __version__

BOOTSTRAP_DRAWS = 2000

CLUSTERS = {"id": "subject", "ood": "relation", "unseen_object": "subject", "imported": "subject"}
LIBRARIES = ("torch", "lightning", "transformers", "torchmetrics", "datasets", "wandb", "omegaconf", "safetensors")


def test_scores(readings: pd.DataFrame) -> dict[str, Any]:
    """Scores of every test split, `ood` also apart by objects seen and unseen in training, with relations and kinds."""
    scores: dict[str, Any] = {}
    for split, cluster in CLUSTERS.items():
        rows = readings[readings["split"] == split]
        if rows.empty:
            continue
        scores[split] = split_scores(rows, cluster) | {
            "by_relation": grouped_scores(rows, "relation_name"),
            "by_kind": grouped_scores(rows, "kind"),
        }
        if split == "ood":
            for name, part in (("ood_seen_object", rows[rows["seen_object"]]), ("ood_unseen_object", rows[~rows["seen_object"]])):
                if not part.empty:
                    scores[name] = split_scores(part, cluster)
    return scores


def validation_scores(readings: pd.DataFrame) -> dict[str, Any]:
    """Scores of val/id and val/new at the best checkpoint: what settings are chosen on."""
    splits = {"val/id": "subject", "val/new": "relation"}
    parts = {split: readings[readings["split"] == split] for split in splits}
    return {split: split_scores(rows, splits[split]) for split, rows in parts.items() if len(rows)}


def edit_summary(edits: pd.DataFrame, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Who made the edits of a store, and means over all of them, failed ones included."""
    means = {name: float(edits[name].mean()) for name in ("efficacy", "paraphrase", "specificity", "es", "ps", "ns", "delta_norm_ratio")}
    editor, requested = manifest["editor"], manifest["requests"]["count"]
    made_by = {"editor": editor["name"], "ridge": editor["settings"].get("ridge")}
    return {"requested": requested, "successful": int(edits["success"].sum())} | made_by | means


def shuffled_labels(readings: pd.DataFrame, seed: int = 0) -> dict[str, Any]:
    """Control: the same answers held against the objects of other edits of their split. What agreement chance gives."""
    rng = np.random.default_rng(seed)
    control = {}
    for split in CLUSTERS:
        rows = readings[readings["split"] == split]
        if len(rows):
            hits = rows["predicted"].to_numpy() == rng.permutation(rows["object"].to_numpy())
            control[split] = {"n": len(rows), "exact_match": wilson(hits)}
    return control


def versions() -> dict[str, str]:
    return {name: version(name) for name in LIBRARIES} | {"python": platform.python_version(), "palimpsest-decoder": __version__}


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
