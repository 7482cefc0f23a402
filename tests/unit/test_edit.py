"""The algebra of edits.

Shape letters: B edits, D hidden width, F MLP width.
"""

import pytest
import torch

from decoder.edit import DenseEdit, RankOneEdit

GENERATOR = torch.Generator().manual_seed(0)
EDITS = RankOneEdit(torch.randn(4, 5, generator=GENERATOR), torch.randn(4, 3, generator=GENERATOR))
DENSE = DenseEdit(torch.randn(4, 3, 5, generator=GENERATOR))


@pytest.mark.parametrize("edits", [EDITS, DENSE], ids=["factors", "dense"])
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


def test_applied_to_is_weight_plus_value_times_key():
    weight_DF = torch.randn(3, 5)
    for b, found_DF in enumerate(EDITS.applied_to(weight_DF).weight_BDF):
        # One float32 product and one sum: equal up to the rounding of each.
        torch.testing.assert_close(found_DF, weight_DF + torch.outer(EDITS.value_BD[b], EDITS.key_BF[b]), rtol=1e-6, atol=1e-6)


def test_applied_to_rounds_once():
    weight_DF = torch.randn(3, 5).bfloat16()
    found_BDF = EDITS.applied_to(weight_DF).weight_BDF
    delta_BDF = EDITS.value_BD.unsqueeze(2) * EDITS.key_BF.unsqueeze(1)
    assert torch.equal(found_BDF, (weight_DF.float() + delta_BDF).bfloat16())
    assert not torch.equal(found_BDF, weight_DF + delta_BDF.bfloat16())


def test_norm_is_of_the_update():
    delta_BDF = EDITS.applied_to(torch.zeros(3, 5)).weight_BDF
    torch.testing.assert_close(EDITS.norm(), delta_BDF.flatten(1).norm(dim=1))
