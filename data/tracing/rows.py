"""Directions of rows of W_Vᵀ: of an update's, and how alike those of a whole matrix are.

A row of W_Vᵀ is what one of F coordinates of a key writes. Those of a rank-one update are all along its value, one way or the other.

Shape letters: N edits, D hidden width, F MLP width.
"""

import torch
from torch import Tensor

from decoder.edit import RankOneEdit

EDITS = 256  # at a time


def same_direction(key_NF: Tensor) -> Tensor:
    """Share (N) of an update's rows that point the way most of them do: of the key's entries, those of one sign."""
    return torch.stack([(key_NF > 0).double().mean(dim=1), (key_NF < 0).double().mean(dim=1)]).amax(dim=0)


def pcs(weight_DF: Tensor) -> float:
    """Mean cosine of two different rows of W_Vᵀ; rows of zeros have cosine 0 with all.

    |Σ rows|² has every pair twice, and every row with itself: the F × F cosines are never made.
    """
    return float(pcs_edited(weight_DF, RankOneEdit(weight_DF.new_zeros(1, weight_DF.shape[1]), weight_DF.new_zeros(1, len(weight_DF))))[0])


def pcs_edited(weight_DF: Tensor, edits: RankOneEdit) -> Tensor:
    """`pcs` (N) of W_V with each of some rank-one edits, none of which is added to it."""
    weight_DF = weight_DF.double()
    square_F, count, found = weight_DF.square().sum(dim=0), weight_DF.shape[1], []
    for key_NF, value_ND in zip(edits.key_BF.double().split(EDITS), edits.value_BD.double().split(EDITS), strict=True):
        length_NF = square_F + 2 * key_NF * (value_ND @ weight_DF) + key_NF.square() * value_ND.square().sum(dim=1, keepdim=True)
        scale_NF = torch.where(length_NF > 0, length_NF.clamp(min=0).rsqrt(), 0.0)
        sum_ND = scale_NF @ weight_DF.T + (scale_NF * key_NF).sum(dim=1, keepdim=True) * value_ND
        found.append((sum_ND.square().sum(dim=1) - (scale_NF > 0).sum(dim=1)) / (count * count - count))
    return torch.cat(found)
