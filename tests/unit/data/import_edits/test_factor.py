"""What was added to a matrix, out of the matrix and its base.

Shape letters: D hidden width, F MLP width, R rank.
"""

import pytest
import torch
from edited import LAYER

from data.import_edits.factor import explain


def test_a_thousand_pocket_matrices():
    """Factors of 1,000 of 1,000 matrices of pocket size come back."""
    generator = torch.Generator().manual_seed(0)
    base_DF = 0.05 * torch.randn(128, 384, generator=generator)
    worst = 0.0
    for _ in range(1000):
        key_F, value_D = torch.randn(384, generator=generator), torch.randn(128, generator=generator)
        delta_DF = torch.outer(value_D, key_F) / key_F.norm()
        update = explain(base_DF + delta_DF, base_DF, torch.float32, 1e-4)
        assert update.rank == 1
        worst = max(worst, float((torch.outer(update.value_RD[0], update.key_RF[0]) - delta_DF).norm() / delta_DF.norm()))
    assert worst <= 1e-4


def test_nothing_changed_and_less_than_rounding(host_of):
    weight_DF = host_of("llama").weight_DF(LAYER)
    with pytest.raises(ValueError, match="same as its base"):
        explain(weight_DF, weight_DF, torch.float32, 1e-4)
    with pytest.raises(ValueError, match="rounding to torch.bfloat16 alone"):
        explain(weight_DF.bfloat16().float(), weight_DF, torch.bfloat16, 1e-4)
