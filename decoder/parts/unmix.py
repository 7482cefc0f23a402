"""The facts of one matrix, told apart by the matrix alone.

What several facts add to a matrix is one sum, W'_V - W_V = Σ_r value_r ⊗ key_r, and its singular vectors are mixtures of all of them. A key
is made of a subject's activations, few of which are large; a mixture of keys has more that are middling. So the keys are the directions
whose entries are distributed least evenly: independent component analysis by maximum likelihood (Pham and Garat 1997), with the entries
of keys as draws from Student's t. Neither host nor decoder nor a list of subjects has a part in it.

Shape letters: B edits, R terms, D hidden width, F MLP width.
"""

import math

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.nn.functional import normalize

from decoder.edit import LowRankEdit, RankOneEdit

MOST = 128
"""Terms that are told apart at most: there are as many unknowns as the square of their number."""
FREEDOM = 3.0
"""Degrees of freedom of Student's t. Chosen on training edits among 0.3, 1, 3, 10 and Laplace's distribution (`benchmarks/unmix.py`)."""
NOTHING = 1e-6  # of the largest singular value: what float32 leaves of terms that lie along others


class TooManyTerms(ValueError):
    """What was added has more terms than can be told apart, as training has."""


def unmixed(edits: LowRankEdit) -> list[RankOneEdit]:
    """Of each edit the terms (R) that add up to it and whose keys are as independent as can be, the longest first.

    As many as its rank. Keys have norm 1; signs and order of the terms mean nothing.

    Raises:
        TooManyTerms: an edit has more than `MOST` of them.
    """
    return [_told_apart(key_RF, value_RD) for key_RF, value_RD in zip(edits.key_BRF, edits.value_BRD, strict=True)]


def _told_apart(key_RF: Tensor, value_RD: Tensor) -> RankOneEdit:
    left_DR, size_R, right_RF = _singular(key_RF.double(), value_RD.double())
    if len(size_R) > MOST:
        raise TooManyTerms(f"an edit has {len(size_R)} terms, at most {MOST} can be told apart. Give edits of fewer facts")
    unmixing_RR = torch.from_numpy(most_likely((right_RF * math.sqrt(right_RF.shape[1])).cpu().numpy())).to(right_RF)
    key_RF, value_RD = unmixing_RR @ right_RF, torch.linalg.solve(unmixing_RR.T, (left_DR * size_R).T)
    length_R1 = key_RF.norm(dim=1, keepdim=True)
    order_R = (value_RD * length_R1).norm(dim=1).argsort(descending=True)
    return RankOneEdit(normalize(key_RF, dim=1)[order_R].float(), (value_RD * length_R1)[order_R].float())


def _singular(key_RF: Tensor, value_RD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The singular vectors and values of Σ value_r ⊗ key_r that are not nothing, without that matrix; one at least."""
    (left_DR, left_RR), (right_FR, right_RR) = torch.linalg.qr(value_RD.T), torch.linalg.qr(key_RF.T)
    turned_RR, size_R, other_RR = torch.linalg.svd(left_RR @ right_RR.T)
    rank = max(1, int((size_R > NOTHING * size_R[0]).sum()))
    return (left_DR @ turned_RR)[:, :rank], size_R[:rank], (other_RR @ right_FR.T)[:rank]


def most_likely(mixed_RF: np.ndarray) -> np.ndarray:
    """The matrix (R, R) that unmixes keys: it maximises log |det W| + Σ_r mean_f log p((W mixed)_rf), p being Student's t.

    Args:
        mixed_RF: orthogonal rows, whose entries have mean square 1.
    """
    rank, width = mixed_RF.shape

    def loss(entries: np.ndarray) -> tuple[float, np.ndarray]:
        unmixing_RR = entries.reshape(rank, rank)
        key_RF = unmixing_RR @ mixed_RF
        _, log_determinant = np.linalg.slogdet(unmixing_RR)
        unlikely = (FREEDOM + 1) / 2 * np.log1p(key_RF**2 / FREEDOM).sum() / width
        slope_RF = (FREEDOM + 1) * key_RF / (FREEDOM + key_RF**2)
        return unlikely - log_determinant, (slope_RF @ mixed_RF.T / width - np.linalg.inv(unmixing_RR).T).ravel()

    return minimize(loss, np.eye(rank).ravel(), jac=True, method="L-BFGS-B", options={"maxiter": 1000}).x.reshape(rank, rank)
