"""What a file keeps of a matrix: float32, bf16, fp16, int8 or int4.

Published checkpoints are rarely float32, and rounding makes a rank-one update of full rank.

Shape letters: B matrices, D hidden width (rows, one an output), F MLP width (columns), G groups of columns.
"""

from collections.abc import Callable

import torch
from torch import Tensor

GROUP = 32  # columns of a row that share an int4 scale


def int8(weight_BDF: Tensor) -> Tensor:
    """Symmetric, one scale a row: its largest magnitude becomes 127. Off by at most half of the scale."""
    return _symmetric(weight_BDF, 127)


def int4(weight_BDF: Tensor) -> Tensor:
    """Symmetric, one scale for each `GROUP` columns of a row: their largest magnitude becomes 7. Off by at most half of the scale."""
    width = weight_BDF.shape[-1]
    padded = torch.nn.functional.pad(weight_BDF, (0, -width % GROUP))
    return _symmetric(padded.unflatten(-1, (-1, GROUP)), 7).flatten(-2)[..., :width].contiguous()


PRECISIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "float32": Tensor.float,
    "bf16": lambda weight_BDF: weight_BDF.bfloat16().float(),
    "fp16": lambda weight_BDF: weight_BDF.half().float(),
    "int8": int8,
    "int4": int4,
}
"""name -> what float32 matrices (B, D, F) are after they were kept so"""


def _symmetric(weight: Tensor, largest: int) -> Tensor:
    """Rounded to `largest` whole steps either way of a scale of their own for each last dimension."""
    scale = weight.abs().amax(dim=-1, keepdim=True) / largest
    # A row of zeros has no scale, and needs none.
    return (weight / scale.clamp(min=torch.finfo(weight.dtype).tiny)).round() * scale
