"""Several facts of one matrix are told apart by how unevenly keys are spread, and add up to what they were.

Shape letters: B edits, R terms, D hidden width, F MLP width.
"""

import numpy as np
import pytest
import torch
from scipy.optimize import check_grad
from torch.nn.functional import normalize

from decoder.edit import LowRankEdit
from decoder.parts import unmix
from decoder.parts.unmix import FREEDOM, MOST, most_likely, unmixed

D, F = 40, 300


def keys(rank, seed=0, width=F, even=False):
    """Keys of which one entry in ten is large; or all alike."""
    generator = torch.Generator().manual_seed(seed)
    key_RF = torch.randn(rank, width, generator=generator)
    return key_RF if even else key_RF * (0.1 + (torch.rand(rank, width, generator=generator) < 0.1))


def edit(rank, seed=0, **kind):
    value_RD = torch.randn(rank, D, generator=torch.Generator().manual_seed(seed + 100))
    return LowRankEdit(keys(rank, seed, **kind)[None], value_RD[None])


def nearest(found, planted):
    """Of each planted value the cosine with the nearest found one."""
    return (normalize(planted.value_BRD[0], dim=1) @ normalize(found.value_BD, dim=1).T).abs().max(dim=1).values


@pytest.mark.parametrize("rank", [1, 2, 4, 8, 16])
def test_each_fact_has_its_value_back(rank):
    for seed in range(5):
        planted = edit(rank, seed)
        (found,) = unmixed(planted)
        assert len(found) == rank and nearest(found, planted).min() > 0.98


def test_keys_that_are_spread_evenly_tell_nothing():
    cosines = torch.cat([nearest(unmixed(planted)[0], planted) for planted in (edit(8, seed, even=True) for seed in range(5))])
    assert cosines.mean() < 0.8


def test_the_parts_add_up_to_the_edit():
    planted = LowRankEdit(*(torch.cat(parts) for parts in zip(*(vars(edit(5, seed)).values() for seed in range(3)), strict=True)))
    for b, found in enumerate(unmixed(planted)):
        assert torch.allclose(found.value_BD.T @ found.key_BF, planted.delta()[b], atol=1e-4)
        assert torch.allclose(found.key_BF.norm(dim=1), torch.ones(5))
        lengths = found.norm()
        assert (lengths[:-1] >= lengths[1:]).all(), "the longest first"


def test_the_order_and_signs_of_terms_do_not_matter():
    planted = edit(4)
    turned = LowRankEdit(-planted.key_BRF[:, [2, 0, 3, 1]], -planted.value_BRD[:, [2, 0, 3, 1]])
    one, other = unmixed(planted)[0], unmixed(turned)[0]
    assert torch.allclose(one.delta(), other.delta(), atol=1e-3)


def test_terms_that_lie_along_others_and_zeros_are_no_parts():
    planted = edit(3)
    key_BRF = torch.cat([planted.key_BRF, torch.zeros(1, 2, F), planted.key_BRF[:, :1]], dim=1)
    value_BRD = torch.cat([planted.value_BRD, torch.zeros(1, 2, D), planted.value_BRD[:, :1]], dim=1)
    (found,) = unmixed(LowRankEdit(key_BRF, value_BRD))
    assert len(found) == 3
    (nothing,) = unmixed(LowRankEdit(torch.ones(1, 2, F), torch.zeros(1, 2, D)))
    assert len(nothing) == 1 and not nothing.value_BD.any()


def test_more_terms_than_can_be_told_apart_are_refused():
    many = LowRankEdit(torch.randn(1, MOST + 1, 400), torch.randn(1, MOST + 1, 400))
    with pytest.raises(ValueError, match=f"has {MOST + 1} terms, at most {MOST} can be told apart. Give edits of fewer facts"):
        unmixed(many)


def slow_loss(unmixing_RR, mixed_RF):
    """- log |det W| - Σ_r mean_f log p, entry by entry, up to a constant."""
    total = -np.log(abs(np.linalg.det(unmixing_RR)))
    for weights_R in unmixing_RR:
        for entries_R in mixed_RF.T:
            total += (FREEDOM + 1) / 2 * np.log(1 + float(weights_R @ entries_R) ** 2 / FREEDOM) / mixed_RF.shape[1]
    return total


def test_nothing_near_is_more_likely_than_what_is_found(monkeypatch):
    rows_RF = np.linalg.qr(keys(3).double().numpy().T)[0].T * F**0.5
    asked = []
    real = unmix.minimize
    monkeypatch.setattr(unmix, "minimize", lambda loss, start, **how: asked.append((loss, start)) or real(loss, start, **how))
    found_RR = most_likely(rows_RF)
    loss, start = asked[0]
    assert loss(found_RR.ravel())[0] == pytest.approx(slow_loss(found_RR, rows_RF), rel=1e-9)
    assert check_grad(lambda w: loss(w)[0], lambda w: loss(w)[1], start + 0.1 * np.random.default_rng(0).normal(size=9)) < 1e-5
    generator = np.random.default_rng(1)
    for _ in range(20):
        assert slow_loss(found_RR + 0.05 * generator.normal(size=(3, 3)), rows_RF) > slow_loss(found_RR, rows_RF)
