"""Matrices that were kept in another precision, against rounding entry by entry.

Shape letters: B matrices, D hidden width, F MLP width.
"""

import pytest
import torch

from decoder.checkpoint.rounding import GROUP, PRECISIONS

WEIGHT_BDF = torch.randn(2, 5, 3 * GROUP + 7, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 2, 5)[:, None]


def twin(row: list[float], steps: int) -> list[float]:
    """One scale for a run of numbers, then the nearest whole step of each."""
    scale = max(abs(number) for number in row) / steps
    return [min(range(-steps, steps + 1), key=lambda step: abs(step * scale - number)) * scale for number in row]


def twin_int8(matrix_DF: torch.Tensor) -> torch.Tensor:
    return torch.tensor([twin(row, 127) for row in matrix_DF.tolist()])


def twin_int4(matrix_DF: torch.Tensor) -> torch.Tensor:
    groups = [[twin(row[start : start + GROUP], 7) for start in range(0, len(row), GROUP)] for row in matrix_DF.tolist()]
    return torch.tensor([[number for group in row for number in group] for row in groups])


TWINS = {
    "float32": lambda matrix: matrix,
    "bf16": lambda matrix: matrix.to(torch.bfloat16).to(torch.float32),
    "fp16": lambda matrix: torch.from_numpy(matrix.numpy().astype("float16").astype("float32")),
    "int8": twin_int8,
    "int4": twin_int4,
}


@pytest.mark.parametrize("name", TWINS)
def test_rounding_is_the_twins(name):
    found_BDF = PRECISIONS[name](WEIGHT_BDF)
    assert found_BDF.dtype == torch.float32 and found_BDF.shape == WEIGHT_BDF.shape
    for found_DF, weight_DF in zip(found_BDF, WEIGHT_BDF, strict=True):
        torch.testing.assert_close(found_DF, TWINS[name](weight_DF), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("name", "steps", "group"), [("int8", 127, WEIGHT_BDF.shape[-1]), ("int4", 7, GROUP)])
def test_integers_are_off_by_half_a_step_at_most_and_keep_the_largest(name, steps, group):
    found_BDF = PRECISIONS[name](WEIGHT_BDF)
    for found, weight in zip(found_BDF.split(group, dim=-1), WEIGHT_BDF.split(group, dim=-1), strict=True):
        scale = weight.abs().amax(-1, keepdim=True) / steps
        assert ((found - weight).abs() <= 0.5001 * scale).all()
        assert len((found / scale).round().unique()) <= 2 * steps + 1
        torch.testing.assert_close(found.abs().amax(-1), weight.abs().amax(-1))


@pytest.mark.parametrize("name", TWINS)
def test_what_was_rounded_is_not_rounded_again_and_zeros_stay(name):
    once_BDF = PRECISIONS[name](WEIGHT_BDF)
    torch.testing.assert_close(PRECISIONS[name](once_BDF), once_BDF, rtol=1e-6, atol=0)
    assert not PRECISIONS[name](torch.zeros(1, 2, 40)).any()


def twin_q8_0(block: list[float]) -> list[float]:
    """32 whole steps of a scale that makes the largest 127, the scale itself kept in 16 bits."""
    scale = max(abs(number) for number in block) / 127
    return [round(number / scale) * float(torch.tensor(scale).half()) for number in block]


@pytest.mark.parametrize(("name", "bits"), [("Q8_0", 8), ("Q5_1", 5), ("Q5_0", 5), ("Q4_1", 4), ("Q4_0", 4)])
def test_blocks_of_gguf_are_off_by_a_step_at_most(name, bits):
    weight_BDF = WEIGHT_BDF[..., : 3 * GROUP]
    found_BDF = PRECISIONS[name](weight_BDF)
    found, weight = found_BDF.unflatten(-1, (-1, GROUP)), weight_BDF.unflatten(-1, (-1, GROUP))
    step = 2 * weight.abs().amax(-1, keepdim=True) / (2**bits - 1)
    assert ((found - weight).abs() <= 1.1 * step).all() and not torch.equal(found, weight)
    assert max(len(block.unique()) for block in found.flatten(0, -2)) <= 2**bits
    if name == "Q8_0":
        twin_DF = torch.tensor([twin_q8_0(block) for block in weight.flatten(0, -2).tolist()])
        torch.testing.assert_close(found.flatten(0, -2), twin_DF, rtol=1e-5, atol=1e-9)


def test_rows_that_are_no_whole_blocks_are_kept_in_16_bits():
    assert torch.equal(PRECISIONS["Q8_0"](WEIGHT_BDF), PRECISIONS["fp16"](WEIGHT_BDF))
