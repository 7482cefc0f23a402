"""Every baseline on every split."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch

from decoder.baselines.base import Evidence, Prediction, Reader
from decoder.baselines.linear import linear_value, master_key
from decoder.baselines.readers import carrier, logit_lens, logit_lens_base_free, nearest_edit, object_prior, untrained_prompt
from decoder.batch import EditBatch
from decoder.scores import share

BASELINES: dict[str, tuple[bool, Callable[[Evidence], Reader]]] = {
    "logit_lens": (True, logit_lens),
    "logit_lens_base_free": (False, logit_lens_base_free),
    "nearest_edit": (True, nearest_edit),
    "object_prior": (False, object_prior),
    "untrained_prompt": (False, untrained_prompt),
    "carrier": (True, carrier),
    "linear_value": (True, linear_value),
    "master_key": (False, master_key),
}
"""name -> (base known, builder)"""
OF_THE_RUN = frozenset({"untrained_prompt"})
"""Baselines that depend on the decoder's start; the others are the same for every decoder of the same edits."""


def score_baselines(evidence: Evidence, tests: Mapping[str, EditBatch], names: Collection[str] | None = None) -> dict[str, Any]:
    """Every baseline (or those named) on every split: base_known, and by split n, first_token and exact_match (None if it cannot
    spell)."""
    with torch.no_grad():
        readers = {name: (known, build(evidence)) for name, (known, build) in BASELINES.items() if names is None or name in names}
        return {
            name: {"base_known": known} | {split: _scores(reader(batch), batch) for split, batch in tests.items()}
            for name, (known, reader) in readers.items()
        }


def _scores(answer: Prediction, batch: EditBatch) -> dict[str, Any]:
    first = (answer.first_token_B == batch.object_ids_BT[:, 0]).tolist()
    exact = None if answer.exact_B is None else share(answer.exact_B)
    return {"n": len(first), "first_token": share(first), "exact_match": exact}
