"""How sure is sure: confidence on edits against confidence on matrices that hold none.

A decoder always names some object. What its probability is worth shows beside nulls: the host's own W_V, and random updates with the keys
and norms of training edits but values that mean nothing.

Shape letters: B edits, R rank, D hidden width, F MLP width.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from decoder.answers import best_texts, object_texts
from decoder.edit import Edits, LayerEdits, LowRankEdit, RankOneEdit
from decoder.host import Host
from decoder.model import ObjectDecoder

NULLS = 500
CHUNK = 125
FINDING = 95
"""Percent of the nulls that are less confident, from which an answer counts as a finding."""


def null_edits(train: Edits, count: int, seed: int) -> Edits:
    """`count` random updates as large as training edits: keys and norms of one, values in uniformly random directions.

    They have as many terms as training edits, and in several layers the same.
    """
    if isinstance(train, LayerEdits):
        return LayerEdits({layer: null_edits(edits, count, seed) for layer, edits in train.by_layer.items()})
    generator = torch.Generator().manual_seed(seed)
    like = train[torch.randint(len(train), (count,), generator=generator)]
    if isinstance(like, LowRankEdit):
        return LowRankEdit(like.key_BRF, _turned(like.value_BRD, generator))
    return RankOneEdit(like.key_BF, _turned(like.value_BD, generator))


def answers_to_nulls(decoder: ObjectDecoder, train: Edits, *, beams: int, max_object_tokens: int, seed: int) -> list[dict[str, float]]:
    """What a decoder answers on `NULLS` of them: texts with their probabilities."""
    nulls = null_edits(train, NULLS, seed)
    chunks = (nulls[start : start + CHUNK] for start in range(0, NULLS, CHUNK))
    found = (decoder.read(chunk, beams=beams, max_object_tokens=max_object_tokens) for chunk in chunks)
    return [texts for beams in found for texts in object_texts(decoder.host, beams)]


def _turned(vectors: Tensor, generator: torch.Generator) -> Tensor:
    """Random vectors, each as long as the one at its place."""
    random = torch.randn(vectors.shape, generator=generator).to(vectors.device)
    return random / random.norm(dim=-1, keepdim=True) * vectors.norm(dim=-1, keepdim=True)


def clean_edit(host: Host, layers: Sequence[int]) -> LayerEdits:
    """The host's own W_V of each layer, as an update of nothing."""
    shapes = {layer: host.weight_DF(layer).shape for layer in layers}
    return LayerEdits(
        {layer: RankOneEdit(torch.zeros(1, mlp_width), torch.zeros(1, width)) for layer, (width, mlp_width) in shapes.items()}
    )


def calibrate(
    decoder: ObjectDecoder, train: Edits, edit_confidence: Sequence[float], *, beams: int, max_object_tokens: int, seed: int
) -> dict[str, Any]:
    """Quantiles (0, 1, ..., 100 %) of the confidence on validation edits and on nulls, their AUROC, and the clean matrix's reading."""
    from torchmetrics.functional.classification import binary_auroc  # seconds, for who trains

    answers = answers_to_nulls(decoder, train, beams=beams, max_object_tokens=max_object_tokens, seed=seed)
    confidence = [next(iter(texts.values())) for texts in answers]
    clean = decoder.read(clean_edit(decoder.host, decoder.edited_layers), beams=beams, max_object_tokens=max_object_tokens)
    ((clean_text, clean_probability),) = best_texts(decoder.host, clean)
    confidence.append(clean_probability)
    scores = torch.tensor([*edit_confidence, *confidence])
    labels = torch.tensor([1] * len(edit_confidence) + [0] * len(confidence))
    calibration = {
        "auroc": float(binary_auroc(scores, labels)),
        "null": {"n": len(confidence), "quantiles": _quantiles(confidence)},
        "edit": {"n": len(edit_confidence), "quantiles": _quantiles(edit_confidence)},
    }
    calibration["clean_matrix"] = {
        "predicted": clean_text,
        "probability": clean_probability,
        "null_percentile": percentile(clean_probability, calibration["null"]["quantiles"]),
    }
    return calibration


def percentile(probability: float, quantiles: Sequence[float]) -> float:
    """Percent of the calibration set whose confidence lies below `probability`."""
    return float(np.mean(np.asarray(quantiles) < probability) * 100)


def least_percentiles(text: str, answers: Sequence[Mapping[str, float]], calibrations: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """How an answer's confidence compares with nulls and with validation edits; where several decoders vote, the least of theirs.

    A vote was never calibrated: its probability has no place among those of one decoder, nor has a mean of percentiles. That all decoders
    reach a percentile with the probability they give the vote's answer is no more likely for a null than that one of them does.

    Args:
        answers: of each decoder its own texts with their probabilities, its answer first.
    """
    # A calibration is of what a decoder gives its own answer: another text counts at most as much.
    confidence = [min(texts.get(text, 0.0), next(iter(texts.values()))) for texts in answers]
    return {
        f"{kind}_percentile": min(percentile(sure, own[kind]["quantiles"]) for sure, own in zip(confidence, calibrations, strict=True))
        for kind in ("null", "edit")
    }


def _quantiles(values: Sequence[float]) -> list[float]:
    return np.quantile(values, np.linspace(0, 1, 101)).tolist()
