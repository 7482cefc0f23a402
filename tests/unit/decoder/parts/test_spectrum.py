"""The terms of whole matrices: as many as stand out of what rounding leaves.

Shape letters: B edits, R directions, D hidden width, F MLP width.
"""

import pytest
import torch

from decoder.dense import DenseEdit, applied
from decoder.edit import LowRankEdit, RankOneEdit
from decoder.parts.spectrum import DIRECTIONS, spectrum, terms

D, F = 96, 200


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


WEIGHT_DF = 0.05 * drawn(D, F)
EDITS = LowRankEdit(0.3 * drawn(2, 3, F, seed=1), 0.3 * drawn(2, 3, D, seed=2))


def test_the_strongest_directions_are_those_of_the_whole_decomposition():
    delta_DF = EDITS.delta()[0] + 1e-4 * drawn(D, F, seed=3)
    left_DR, size_R, right_RF, edge = spectrum(delta_DF)
    slow_DD, slow_D, slow_DF = torch.linalg.svd(delta_DF, full_matrices=False)
    assert torch.allclose(size_R[:3], slow_D[:3], rtol=1e-4) and len(size_R) == DIRECTIONS
    for r in range(3):
        assert abs(left_DR[:, r] @ slow_DD[:, r]) > 0.999 and abs(right_RF[r] @ slow_DF[r]) > 0.999
    assert size_R[2] > 10 * edge > 10 * 0.5 * slow_D[3] and len(spectrum(delta_DF, 5)[1]) == 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_whole_matrix_has_the_terms_that_were_added(dtype):
    whole = applied(EDITS, WEIGHT_DF)
    stored = DenseEdit(whole.weight_BDF.to(dtype))
    for b, found in enumerate(terms(stored, WEIGHT_DF)):
        assert found.key_BRF.shape == (1, 3, F)
        off = (found.delta()[0] - EDITS.delta()[b]).norm() / EDITS.delta()[b].norm()
        assert off < (1e-4 if dtype == torch.float32 else 3e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_unedited_matrix_has_one_term_of_nothing(dtype):
    (found,) = terms(DenseEdit(WEIGHT_DF[None].to(dtype)), WEIGHT_DF)
    assert found.key_BRF.shape == (1, 1, F) and not found.value_BRD.any()


def test_factors_are_terms_already():
    assert torch.equal(terms(EDITS, WEIGHT_DF)[1].key_BRF, EDITS.key_BRF[1:])
    one = RankOneEdit(EDITS.key_BRF[:, 0], EDITS.value_BRD[:, 0])
    assert [found.key_BRF.shape for found in terms(one, WEIGHT_DF)] == [(1, 1, F)] * 2
    assert torch.equal(terms(one, WEIGHT_DF)[0].value_BRD[0], one.value_BD[:1])


@pytest.mark.parametrize("count", [DIRECTIONS - 8, DIRECTIONS, 80])
def test_as_many_terms_are_found_as_were_added(count):
    weight_DF = 0.05 * drawn(256, 400)
    many = LowRankEdit(drawn(1, count, 400, seed=4), drawn(1, count, 256, seed=5))
    (found,) = terms(applied(many, weight_DF), weight_DF)
    assert found.key_BRF.shape[1] == count


def test_what_does_not_fall_off_ends_before_the_last_direction():
    (found,) = terms(DenseEdit(WEIGHT_DF[None] + drawn(1, D, F, seed=6) * torch.logspace(0, -3, F)), WEIGHT_DF)
    assert 1 <= found.key_BRF.shape[1] < D // 2
