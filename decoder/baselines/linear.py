"""Baselines that are a ridge regression, in closed form, onto the unembedding of the object's first token.

Shape letters: B edits, N training edits, D hidden width, F MLP width, V vocabulary.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import normalize

from decoder.baselines.base import Evidence, Prediction, Reader, canonical_value, first_tokens_right
from decoder.batch import EditBatch

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def linear_value(evidence: Evidence) -> Reader:
    """Ridge regression, in closed form, from the value's direction to the unembedding of the object's first token.

    How long a value is depends on its key more than on its object.
    """
    value = canonical_value(evidence.train)
    return _best_ridge(evidence, lambda batch: normalize(value(batch)))


def master_key(evidence: Evidence) -> Reader:
    """The value without the base: w with key.w = 1 for the training keys (ridge regression); then z = W'w minus its training
    mean holds the value, and the same ridge regression as `linear_value` reads its direction."""
    key_NF = normalize(evidence.train.edits.key_BF)

    def reader(ridge: float) -> Reader:
        master_F = _ridge(key_NF, torch.ones_like(key_NF[:, :1]), ridge)[:, 0]
        return _best_ridge(evidence, _response(evidence, master_F))

    return max(map(reader, RIDGES), key=partial(first_tokens_right, evidence))


def _response(evidence: Evidence, master_F: Tensor) -> Callable[[EditBatch], Tensor]:
    """The direction of W'w less its mean over the training edits."""
    base_D = evidence.host.weight_DF(evidence.edited_layer).float() @ master_F

    def response(batch: EditBatch) -> Tensor:
        # (W + value ⊗ key) w, without building W'.
        return base_D + batch.edits.value_BD * (batch.edits.key_BF @ master_F).unsqueeze(1)

    mean_D = response(evidence.train).mean(0)
    return lambda batch: normalize(response(batch) - mean_D)


def _best_ridge(evidence: Evidence, feature: Callable[[EditBatch], Tensor]) -> Reader:
    """The regression from a feature (B, D) to first-token unembeddings whose ridge reads most validation edits."""
    unembedding_VD = evidence.host.unembedding_VD.float()
    train_ND, target_ND = feature(evidence.train), unembedding_VD[evidence.train.object_ids_BT[:, 0]]
    mean_D, mean_target_D = train_ND.mean(0), target_ND.mean(0)

    def reader(ridge: float) -> Reader:
        map_DD = _ridge(train_ND - mean_D, target_ND - mean_target_D, ridge)
        return lambda batch: Prediction((((feature(batch) - mean_D) @ map_DD + mean_target_D) @ normalize(unembedding_VD).T).argmax(1))

    return max(map(reader, RIDGES), key=partial(first_tokens_right, evidence))


def _ridge(x_NF: Tensor, y_ND: Tensor, ridge: float) -> Tensor:
    """argmin over A of |xA - y|² + ridge · mean eigenvalue of xᵀx · |A|²."""
    x_NF, y_ND = x_NF.double(), y_ND.double()
    gram_FF = x_NF.T @ x_NF
    gram_FF.diagonal().add_(ridge * gram_FF.diagonal().mean())
    return torch.linalg.solve(gram_FF, x_NF.T @ y_ND).float()
