"""Training edits put together anew.

Shape letters: B edits, D hidden width, F MLP width.
"""

import pytest
import torch

from decoder.dense import DenseEdit
from decoder.edit import LayerEdits, RankOneEdit
from decoder.training.augment import varied

B, F, D = 400, 6, 5


def edits() -> RankOneEdit:
    generator = torch.Generator().manual_seed(0)
    return RankOneEdit(torch.randn(B, F, generator=generator), torch.randn(B, D, generator=generator))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_as_asked_some_edits_get_the_key_of_another_and_all_keep_their_value():
    before, after = edits(), varied(edits(), 0.3, 0.0, seeded())
    changed_B = (after.key_BF != before.key_BF).any(1)
    assert 0.2 < float(changed_B.float().mean()) < 0.4
    assert {tuple(key) for key in after.key_BF.tolist()} <= {tuple(key) for key in before.key_BF.tolist()}
    assert torch.equal(after.value_BD, before.value_BD)


def test_noise_has_the_length_asked_for_on_values_of_any_length():
    before = edits()
    before = RankOneEdit(before.key_BF, before.value_BD * torch.logspace(-2, 2, B).unsqueeze(1))
    after = varied(before, 0.0, 0.3, seeded())
    share_B = (after.value_BD - before.value_BD).norm(dim=1) / before.value_BD.norm(dim=1)
    assert float(share_B.square().mean().sqrt()) == pytest.approx(0.3, rel=0.05)
    assert float(share_B[:100].mean()) == pytest.approx(float(share_B[-100:].mean()), rel=0.2)
    assert torch.equal(after.key_BF, before.key_BF)


def test_a_seed_gives_the_same_edits_and_another_seed_others():
    first, again, other = (varied(edits(), 0.3, 0.3, seeded(seed)) for seed in (0, 0, 1))
    assert torch.equal(first.key_BF, again.key_BF) and torch.equal(first.value_BD, again.value_BD)
    assert not torch.equal(first.value_BD, other.value_BD)


def test_nothing_asked_nothing_done_and_whole_matrices_are_refused():
    whole = DenseEdit(torch.ones(2, D, F))
    assert varied(whole, 0.0, 0.0, seeded()) is whole
    with pytest.raises(ValueError, match="optim.recombined=0 optim.value_noise=0"):
        varied(whole, 0.0, 0.1, seeded())


def test_in_several_layers_the_same_edits_get_the_key_of_the_same_other():
    before = LayerEdits({0: edits(), 3: RankOneEdit(2 * edits().key_BF, 3 * edits().value_BD)})
    after = varied(before, 0.3, 0.1, seeded())
    assert torch.equal(after.by_layer[3].key_BF, 2 * after.by_layer[0].key_BF) and after.layers == [0, 3]
    noise = {layer: after.by_layer[layer].value_BD - before.by_layer[layer].value_BD for layer in after.layers}
    assert (noise[3] - 3 * noise[0]).abs().max() > 0.01, "noise of its own in each"
    alone = varied(edits(), 0.3, 0.1, seeded())
    assert torch.equal(alone.key_BF, after.by_layer[0].key_BF) and torch.equal(alone.value_BD, after.by_layer[0].value_BD)
