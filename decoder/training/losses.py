"""What a decoder is trained to lower.

Shape letters: B edits, T object tokens, V vocabulary, K keys, R rank, M prompt length, F MLP width.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from decoder.batch import PADDING


def object_loss(logits: Tensor, object_ids: Tensor) -> Tensor:
    """Mean cross-entropy over all object tokens and terminators: logits (..., V) and ids (...), padding left out."""
    return nn.functional.cross_entropy(logits.flatten(0, -2).float(), object_ids.flatten(), ignore_index=PADDING)


class KeySpread(NamedTuple):
    """What the gains of all keys on any input need to know of the keys; never larger than the keys themselves."""

    mean_F: Tensor
    factor_RF: Tensor
    """The keys' covariance is factorᵀ factor."""


def key_spread(key_KF: Tensor) -> KeySpread:
    """Mean and covariance of keys, the latter by its triangular factor."""
    key_KF = key_KF.double()
    mean_F = key_KF.mean(0)
    factor_RF = torch.linalg.qr(key_KF - mean_F, mode="r").R / (len(key_KF) - 1) ** 0.5
    return KeySpread(mean_F.float(), factor_RF.float())


def gain_spread(input_MF: Tensor, keys: KeySpread) -> Tensor:
    """How unevenly prompt positions switch edits on: the variance of the gains x·k over the keys, as a share of their squared mean.

    Args:
        input_MF: the prompt's inputs x of the edited down-projection.
        keys: of edits, scaled so that an edit's gain on its own subject is 1.

    Variances and squared means are summed over positions before they are divided, so a position that switches nothing on costs nothing.
    """
    input_MF = input_MF.float()
    return (input_MF @ keys.factor_RF.T).square().sum() / (input_MF @ keys.mean_F).square().sum()


def together(spreads: Sequence[Tensor]) -> Tensor:
    """The geometric mean of the spreads of several editors' keys: each counts by what share of it is taken away.

    Keys of some editors have no direction in common and stay a hundred times as uneven as others; in a sum they would drown these.
    """
    return spreads[0] if len(spreads) == 1 else torch.stack([*spreads]).log().mean().exp()
