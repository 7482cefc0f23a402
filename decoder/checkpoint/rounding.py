"""What a file keeps of a matrix: float32, bf16, fp16, int8, int4, or blocks of GGUF; and what rounding adds to it.

Published checkpoints are rarely float32, and rounding makes a rank-one update of full rank.

Shape letters: B matrices, D hidden width (rows, one an output), F MLP width (columns), G groups of columns.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

MARGIN = 1.5  # on a real model, edited and rounded to Q4_1 twice, up to 1.2 was seen beside the edit
GROUP = 32  # columns of a row that share an int4 scale


def int8(weight_BDF: Tensor) -> Tensor:
    """Symmetric, one scale a row: its largest magnitude becomes 127. Off by at most half of the scale."""
    return _symmetric(weight_BDF, 127)


def int4(weight_BDF: Tensor) -> Tensor:
    """Symmetric, one scale for each `GROUP` columns of a row: their largest magnitude becomes 7. Off by at most half of the scale."""
    width = weight_BDF.shape[-1]
    padded = torch.nn.functional.pad(weight_BDF, (0, -width % GROUP))
    return _symmetric(padded.unflatten(-1, (-1, GROUP)), 7).flatten(-2)[..., :width].contiguous()


def blocks(kind: str, weight_BDF: Tensor) -> Tensor:
    """As GGUF files of a type keep it, by the library's own functions; rows of no whole blocks are kept in 16 bits, as by llama.cpp."""
    import gguf

    quantisation = gguf.GGMLQuantizationType[kind]
    if weight_BDF.shape[-1] % gguf.GGML_QUANT_SIZES[quantisation][0]:
        return PRECISIONS["fp16"](weight_BDF)
    kept = gguf.quantize(weight_BDF.float().cpu().contiguous().numpy(), quantisation)
    return torch.from_numpy(gguf.dequantize(kept, quantisation)).to(weight_BDF.device)


def q8_0(weight_BDF: Tensor) -> Tensor:
    """As `blocks` makes it of Q8_0, entry by entry, where the tensor is: the library's own takes seconds on the smallest model."""
    if weight_BDF.shape[-1] % GROUP:
        return PRECISIONS["fp16"](weight_BDF)
    weight = weight_BDF.float().unflatten(-1, (-1, GROUP))
    scale = weight.abs().amax(dim=-1, keepdim=True) / 127
    steps = weight * torch.where(scale == 0, 0.0, 1 / scale)
    # Halves go away from zero here, to even numbers in `round`.
    whole = steps.abs().floor()
    whole = (whole + (2 * (steps.abs() - whole)).floor()).copysign(steps)
    return (scale.half().float() * whole).flatten(-2)


PRECISIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "float32": Tensor.float,
    "bf16": lambda weight_BDF: weight_BDF.bfloat16().float(),
    "fp16": lambda weight_BDF: weight_BDF.half().float(),
    "int8": int8,
    "int4": int4,
    "Q8_0": q8_0,
    **{kind: partial(blocks, kind) for kind in ("Q5_1", "Q5_0", "Q4_1", "Q4_0")},
}
"""name -> what float32 matrices (B, D, F) are after they were kept so"""


def _symmetric(weight: Tensor, largest: int) -> Tensor:
    """Rounded to `largest` whole steps either way of a scale of their own for each last dimension."""
    scale = weight.abs().amax(dim=-1, keepdim=True) / largest
    # A row of zeros has no scale, and needs none.
    return (weight / scale.clamp(min=torch.finfo(weight.dtype).tiny)).round() * scale


@dataclass(frozen=True)
class Noise:
    """What rounding can add to a matrix: how long it is at most, and its largest singular value.

    An edit may be shorter than all errors of a matrix together and still stand out: it is one direction, they are hundreds.
    """

    name: str
    length: float
    spectral: float

    def explains(self, delta_DF: Tensor) -> bool:
        """Whether a difference may be rounding and nothing else."""
        largest = float(strongest(delta_DF, 1)[1][0])
        return largest <= self.spectral and float(delta_DF.double().norm()) <= self.length


def noise_of_steps(name: str, step_DF: Tensor) -> Noise:
    """The noise of entries that are anywhere within half a step of what they stand for.

    Were they independent, its largest singular value would hardly be above the sum of the longest row and column of standard deviations
    (Bandeira and van Handel, 2016). An edit of a matrix on the same levels has errors that go along with it: hence `MARGIN`.
    """
    square_DF = step_DF.double().square()
    longest = sum(float(square_DF.sum(axis).max()) ** 0.5 for axis in (0, 1))
    return Noise(name, float(square_DF.sum()) ** 0.5 / 2, MARGIN * longest / 12**0.5)


def strongest(delta_DF: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The strongest singular vectors and values of a matrix, as `torch.svd_lowrank` has them; the same each time."""
    with torch.random.fork_rng(devices=[delta_DF.device] if delta_DF.is_cuda else []):
        torch.manual_seed(0)
        return torch.svd_lowrank(delta_DF.double(), q=min(count, *delta_DF.shape), niter=4)
