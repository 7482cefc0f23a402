"""What was added to a matrix: the few outer products that explain an update, by a truncated SVD.

Rounded matrices leave over what rounding leaves over, no more.

Shape letters: D hidden width, F MLP width, R rank.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from decoder.checkpoint.rounding import Noise, strongest

HIGHEST_RANK = 8


@dataclass(frozen=True)
class Update:
    """What an edit added to a matrix, strongest factors first.

    Attributes:
        key_RF: unit vectors; their products with value_RD add up to the update, or to its strongest part where nothing explains it.
        rank: how many of them explain the update; None where as many as were looked for are not enough.
        residual: what they leave over, as a share of the update's length.
        rounding: the share that rounding W' to its dtype or blocks can leave over.
    """

    key_RF: Tensor
    value_RD: Tensor
    rank: int | None
    residual: float
    rounding: float


def nothing(base_DF: Tensor) -> Update:
    """The update of a matrix that is as it was."""
    width, mlp_width = base_DF.shape
    return Update(torch.zeros(1, mlp_width), torch.zeros(1, width), rank=0, residual=0.0, rounding=0.0)


def explain(
    edited_DF: Tensor, base_DF: Tensor, dtype: torch.dtype, tolerance: float, noise: Noise | None = None, highest: int = HIGHEST_RANK
) -> Update:
    """The factors that explain W' - W up to `tolerance` and the rounding of `dtype`, or of blocks of few bits.

    Errors of the latter may be as long as the update. A factor of the update is then what no noise has: a singular value above its largest.

    Args:
        noise: of the blocks that W' is kept in.
        highest: rank that is looked for.

    Raises:
        ValueError: the two are the same, or differ by no more than rounding.
    """
    delta_DF = edited_DF.double() - base_DF.double()
    length = float(delta_DF.norm())
    rounding = noise.length if noise else torch.finfo(dtype).eps / 2 * float(edited_DF.double().norm())
    if length == 0:
        raise ValueError("is the same as its base")
    # float32 is what factors are made in: its rounding is part of every edit, however small.
    if dtype != torch.float32 and length <= rounding:
        raise ValueError(f"differs from its base by {length:.2e}, which rounding to {dtype} alone can do")
    left_DR, size_R, right_FR = strongest(delta_DF, highest)
    if noise and size_R[0] <= noise.spectral:
        raise ValueError(f"differs from its base by {length:.2e}, which rounding to {noise.name} alone can do")
    left_over = (length**2 - size_R.square().cumsum(0)).clamp(min=0).sqrt()
    is_enough = left_over <= max(tolerance * length, rounding)
    if noise:
        following = torch.cat([size_R[1:], torch.full((1,), torch.inf if len(size_R) < min(delta_DF.shape) else 0.0)])
        is_enough &= following <= noise.spectral
    enough = is_enough.nonzero()
    rank = int(enough[0]) + 1 if len(enough) else None
    kept = rank or 1
    value_RD = (left_DR[:, :kept] * size_R[:kept]).T.float()
    return Update(right_FR[:, :kept].T.float(), value_RD, rank, float(left_over[kept - 1]) / length, rounding / length)
