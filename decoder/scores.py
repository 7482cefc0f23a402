"""The result of a run: its splits, its metrics, and the scores that `result.json` holds (schema 1). Importing it costs nothing."""

import platform
import unicodedata
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from decoder import __version__

if TYPE_CHECKING:
    import pandas as pd

VAL_SPLITS = ("val/id", "val/new")
"""What training is stopped by and settings are chosen on: new edits of training relations, edits of relations never trained on."""
TEST_SPLITS = ("id", "ood", "unseen_object")
OOD_CELLS = {"ood_seen_object": True, "ood_unseen_object": False}
"""The two parts of `ood`: whether training had their objects."""
SCORED = (*TEST_SPLITS, "imported")
"""Edits of other tools were in no split; they are one of their own."""
METRICS = {"exact_match": "exact match", "first_token": "first token"}
BOOTSTRAP_DRAWS = 2000
OF_NEW_RELATIONS = {"ood", "val/new"}
LIBRARIES = ("torch", "lightning", "transformers", "torchmetrics", "datasets", "wandb", "omegaconf", "safetensors")


def exact_match(predicted: str, planted: str) -> bool:
    """Whether an answer is the planted object: the same text, in Unicode's NFC, whatever its case and white space.

    An alias ("UK" for "United Kingdom") and an answer that goes on ("Paris, France") are other answers.
    """
    return _plain(predicted) == _plain(planted)


def may_become(begun: str, planted: str) -> bool:
    """Whether an answer that begins so can still be the planted object (`exact_match`); its last letter may be cut in two."""
    # An accent may be still to come, which NFC would have made one letter with what is there.
    begun, planted = (unicodedata.normalize("NFD", _plain(text)) for text in (begun.rstrip("\N{REPLACEMENT CHARACTER}"), planted))
    return planted.startswith(begun)


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def test_scores(readings: "pd.DataFrame", found_from: float | None = None) -> dict[str, Any]:
    """Scores of every test split, `ood` also apart by objects seen and unseen in training, with relations and kinds.

    Args:
        found_from: the probability from which an answer counts as found, where edits plant several facts and there is no validation edit.
    """
    scores: dict[str, Any] = {}
    least = answer_threshold(readings) or found_from
    for split, rows in _by_split(readings, SCORED).items():
        several = {"several": several_scores(rows, least)} if least is not None and _of_several_facts(rows) else {}
        scores[split] = (
            split_scores(rows, split)
            | several
            | {
                "by_relation": grouped_scores(rows, "relation_name"),
                "by_kind": grouped_scores(rows, "kind"),
            }
        )
        if split == "ood":
            cells = {name: rows[rows["seen_object"] == seen] for name, seen in OOD_CELLS.items()}
            scores |= {name: split_scores(cell, split) for name, cell in cells.items() if len(cell)}
    return scores


def validation_scores(readings: "pd.DataFrame") -> dict[str, Any]:
    """Scores of val/id and val/new at the best checkpoint: what settings are chosen on."""
    return {split: split_scores(rows, split) for split, rows in _by_split(readings, VAL_SPLITS).items()}


def edit_summary(edits: "pd.DataFrame", manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Who made the edits of a store, and means over all of them, failed ones included. delta_norm_ratio: ‖ΔW‖ / ‖W‖."""
    means = {name: float(edits[name].mean()) for name in ("efficacy", "paraphrase", "specificity", "es", "ps", "ns", "delta_norm_ratio")}
    editor, requested = manifest["editor"], manifest["requests"]["count"]
    made_by = {"editor": editor["name"], "ridge": editor["settings"].get("ridge")}
    broken = {"broken": int(edits["broken"].sum())} if "broken" in edits else {}
    return {"requested": requested, "successful": int(edits["success"].sum())} | broken | made_by | means


def shuffled_labels(readings: "pd.DataFrame", seed: int = 0) -> dict[str, Any]:
    """Control: the same answers held against the objects of other edits of their split. What agreement chance gives."""
    import numpy as np

    rng = np.random.default_rng(seed)
    control = {}
    for split, rows in _by_split(readings, SCORED).items():
        hits = list(map(exact_match, rows["predicted"], rng.permutation(rows["object"].to_numpy())))
        control[split] = {"n": len(rows), "exact_match": share(hits)}
    return control


def versions() -> dict[str, str | None]:
    """What ran. None for a library that is not there, or came without its metadata: no run is lost over that when all is computed."""
    return {name: _version(name) for name in LIBRARIES} | {"python": platform.python_version(), "palimpsest-decoder": __version__}


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def share(correct: Sequence[bool]) -> dict[str, Any]:
    """Share of correct answers with its 95 % interval."""
    n, hits = len(correct), int(sum(correct))
    return {"value": hits / n, "ci95": wilson(hits, n)}


def mean_of(values: Sequence[float]) -> dict[str, Any]:
    """The mean with Student's 95 % interval, which two values are needed for."""
    import numpy as np
    from scipy.stats import t

    mean, n = float(np.mean(values)), len(values)
    if n < 2:
        return {"value": mean, "ci95": None}
    reach = float(t.ppf(0.975, n - 1) * np.std(values, ddof=1) / n**0.5)
    return {"value": mean, "ci95": [mean - reach, mean + reach]}


def wilson(hits: int, n: int) -> list[float]:
    """95 % Wilson interval of a share (Wilson 1927)."""
    from scipy.stats import binomtest

    interval = binomtest(hits, n).proportion_ci(0.95, method="wilson")
    return [float(interval.low), float(interval.high)]


def cluster_interval(correct: Sequence[bool], clusters: Sequence[str], seed: int = 0) -> list[float]:
    """95 % percentile bootstrap interval of the share, drawing whole clusters: edits of one subject or relation are not independent."""
    import numpy as np
    import pandas as pd

    totals = pd.DataFrame({"correct": correct, "n": 1}).groupby(np.asarray(clusters)).sum().to_numpy()
    draws = np.random.default_rng(seed).integers(len(totals), size=(BOOTSTRAP_DRAWS, len(totals)))
    sums = totals[draws].sum(axis=1)
    return [float(bound) for bound in np.quantile(sums[:, 0] / sums[:, 1], [0.025, 0.975])]


def split_scores(readings: "pd.DataFrame", split: str) -> dict[str, Any]:
    """Scores of one split. The second interval draws whole relations where they are new, else whole subjects."""
    exact, clusters = readings["exact_match"], readings["relation" if split in OF_NEW_RELATIONS else "subject"]
    return {
        "n": len(readings),
        "first_token": share(readings["first_token"]),
        "exact_match": share(exact) | {"ci95_cluster": cluster_interval(exact, clusters)},
    }


def answer_threshold(readings: "pd.DataFrame") -> float | None:
    """The probability from which an answer counts as found, where edits plant several facts: with it answers and planted objects of the
    validation edits agree most (F1). None where edits plant one, or there is no validation edit."""
    if not _of_several_facts(readings):
        return None
    hosts = _hosts(readings[readings["split"].isin(VAL_SPLITS)])
    judged = sorted(((p, text in planted) for answers, planted in hosts for text, p in answers.items()), reverse=True)
    objects, right, best = sum(len(planted) for _, planted in hosts), 0, (0.0, None)
    for kept, (probability, is_right) in enumerate(judged, 1):
        right += is_right
        best = max(best, (2 * right / (kept + objects), probability), key=lambda found: found[0])
    return best[1]


def _of_several_facts(readings: "pd.DataFrame") -> bool:
    return {"answers", "planted"}.issubset(readings) and bool(readings["answers"].notna().all())


def several_scores(readings: "pd.DataFrame", least: float) -> dict[str, Any]:
    """Of the edited hosts of a split, with answers as they are found in order of confidence: the share of planted objects among them, of
    answers that are planted, of hosts whose first answer is, and how many answers there are beside how many objects were planted."""
    hosts = _hosts(readings)
    found = [{text for text, probability in answers.items() if probability >= least} for answers, _ in hosts]
    planted = [objects for _, objects in hosts]
    right = sum(len(texts & objects) for texts, objects in zip(found, planted, strict=True))
    answered, objects = sum(map(len, found)), sum(map(len, planted))
    return {
        "hosts": len(hosts),
        "threshold": least,
        "recall": {"value": right / objects, "ci95": wilson(right, objects)},
        "precision": {"value": right / answered, "ci95": wilson(right, answered)} if answered else None,
        "first_object": share([max(answers, key=answers.get) in objects for answers, objects in hosts]),
        "count": {
            "planted": objects / len(hosts),
            "found": answered / len(hosts),
            "exact": share([len(texts) == len(objects) for texts, objects in zip(found, planted, strict=True)]),
        },
    }


def no_edit_scores(answers: Sequence[Mapping[str, float]], least: float) -> dict[str, Any]:
    """Of matrices that plant nothing: how many answers are found, and the share where there is none."""
    found = [sum(probability >= least for probability in one.values()) for one in answers]
    return {"n": len(found), "found": sum(found) / len(found), "none": share([count == 0 for count in found])}


def _hosts(readings: "pd.DataFrame") -> list[tuple[dict[str, float], set[str]]]:
    """Answers and planted objects of each edited host that some reading is of, as plain texts."""
    hosts = []
    for _, row in readings.drop_duplicates("host").iterrows():
        answers: dict[str, float] = {}
        for text, probability in row["answers"].items():
            answers[_plain(text)] = answers.get(_plain(text), 0.0) + probability
        hosts.append((answers, set(map(_plain, row["planted"]))))
    return hosts


def grouped_scores(readings: "pd.DataFrame", column: str) -> dict[str, Any]:
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


def _by_split(readings: "pd.DataFrame", splits: Sequence[str]) -> dict[str, "pd.DataFrame"]:
    parts = {split: readings[readings["split"] == split] for split in splits}
    return {split: rows for split, rows in parts.items() if len(rows)}
