"""The algebra of edits.

Shape letters: B edits, R rank, T positions, D hidden width, F MLP width.
"""

import pytest
import torch

from decoder.dense import DenseEdit, applied
from decoder.edit import LowRankEdit, RankOneEdit

GENERATOR = torch.Generator().manual_seed(0)
EDITS = RankOneEdit(torch.randn(4, 5, generator=GENERATOR), torch.randn(4, 3, generator=GENERATOR))
LOW = LowRankEdit(torch.randn(4, 2, 5, generator=GENERATOR), torch.randn(4, 2, 3, generator=GENERATOR))
DENSE = DenseEdit(torch.randn(4, 3, 5, generator=GENERATOR))


@pytest.mark.parametrize("edits", [EDITS, LOW, DENSE], ids=["factors", "low rank", "dense"])
def test_batch_and_width(edits):
    assert len(edits) == 4 and edits.width() == (3, 5)


@pytest.mark.parametrize(
    ("index", "rows"),
    [(2, [2]), (-1, [3]), (slice(1, 3), [1, 2]), (torch.tensor([3, 0, 3]), [3, 0, 3])],
    ids=["integer", "last", "slice", "tensor"],
)
def test_indexing_keeps_the_batch_and_pairs_the_factors(index, rows):
    assert torch.equal(EDITS[index].key_BF, EDITS.key_BF[rows])
    assert torch.equal(EDITS[index].value_BD, EDITS.value_BD[rows])
    assert torch.equal(DENSE[index].weight_BDF, DENSE.weight_BDF[rows])


def test_repeat_interleave_keeps_copies_of_an_edit_together():
    repeated = EDITS.repeat_interleave(2)
    assert torch.equal(repeated.key_BF, EDITS.key_BF[[0, 0, 1, 1, 2, 2, 3, 3]])
    assert torch.equal(repeated.value_BD, EDITS.value_BD[[0, 0, 1, 1, 2, 2, 3, 3]])


def test_to_moves_all_factors():
    moved = EDITS.to(torch.float64)
    assert isinstance(moved, RankOneEdit) and moved.key_BF.dtype == moved.value_BD.dtype == torch.float64


def test_applied_is_weight_plus_value_times_key():
    weight_DF = torch.randn(3, 5)
    for b, found_DF in enumerate(applied(EDITS, weight_DF).weight_BDF):
        # One float32 product and one sum: equal up to the rounding of each.
        torch.testing.assert_close(found_DF, weight_DF + torch.outer(EDITS.value_BD[b], EDITS.key_BF[b]), rtol=1e-6, atol=1e-6)


def test_applied_rounds_once():
    weight_DF = torch.randn(3, 5).bfloat16()
    found_BDF = applied(EDITS, weight_DF).weight_BDF
    delta_BDF = EDITS.value_BD.unsqueeze(2) * EDITS.key_BF.unsqueeze(1)
    assert torch.equal(found_BDF, (weight_DF.float() + delta_BDF).bfloat16())
    assert not torch.equal(found_BDF, weight_DF + delta_BDF.bfloat16())


def test_norm_is_of_the_update():
    delta_BDF = applied(EDITS, torch.zeros(3, 5)).weight_BDF
    torch.testing.assert_close(EDITS.norm(), delta_BDF.flatten(1).norm(dim=1))


@pytest.mark.parametrize("samples", [1, 4])
def test_low_rank_is_the_whole_matrix_it_stands_for(samples):
    """Output, matrix and norm against sums of outer products; a batch of 1 grows at the edit."""
    weight_DF, bias_D, x_BTF = torch.randn(3, 5), torch.randn(3), torch.randn(samples, 6, 5)
    found = LOW.output(x_BTF, x_BTF @ weight_DF.T + bias_D, bias_D)
    for b in range(4):
        delta_DF = sum(torch.outer(LOW.value_BRD[b, r], LOW.key_BRF[b, r]) for r in range(2))
        expected = x_BTF[b % samples] @ (weight_DF + delta_DF).T + bias_D
        torch.testing.assert_close(found[b], expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(applied(LOW, weight_DF).weight_BDF[b], weight_DF + delta_DF, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(LOW.delta_norm(weight_DF)[b], delta_DF.norm(), rtol=1e-5, atol=0)


def test_low_rank_of_rank_one_is_the_rank_one_edit():
    one, x_BTF, y_BTD = LowRankEdit(EDITS.key_BF.unsqueeze(1), EDITS.value_BD.unsqueeze(1)), torch.randn(1, 2, 5), torch.randn(1, 2, 3)
    torch.testing.assert_close(one.output(x_BTF, y_BTD, None), EDITS.output(x_BTF, y_BTD, None))
    assert torch.equal(one.key_BF, EDITS.key_BF) and torch.equal(one.value_BD, EDITS.value_BD)
    assert torch.equal(LOW.repeat_interleave(2)[3].key_BRF[0], LOW.key_BRF[1])


def test_every_form_knows_how_far_it_is_from_the_base():
    weight_DF = torch.randn(3, 5)
    expected = EDITS.norm()
    for edits in (EDITS, applied(EDITS, weight_DF)):
        torch.testing.assert_close(edits.delta_norm(weight_DF), expected, rtol=1e-5, atol=0)
