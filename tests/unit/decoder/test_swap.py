"""The swap against edits written into the weights, one at a time.

Shape letters: B edits, T positions, D hidden width, F MLP width.
"""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from decoder.dense import DenseEdit, applied
from decoder.edit import LowRankEdit, RankOneEdit
from decoder.swap import exchanged, projection_inputs, swapped

B, T, LAYER = 3, 5, 1
# float32: the swap adds the rank-one term to an output, the twin to the weights, and three layers carry the rounding on.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def token_ids(host, rows: int) -> Tensor:
    return torch.randint(2, len(host.tokenizer), (rows, T), generator=torch.Generator().manual_seed(7))


def dense_edits(host) -> DenseEdit:
    """Of full rank."""
    noise_BDF = torch.randn(B, host.hidden_size, host.mlp_size(LAYER), generator=torch.Generator().manual_seed(3))
    return DenseEdit(host.weight_DF(LAYER) + 0.3 * noise_BDF)


@pytest.mark.parametrize("form", ["factors", "dense"])
@pytest.mark.parametrize("rows", [1, B])
def test_equals_in_place_edit(any_host, random_edits, in_place, form, rows):
    edits = random_edits(any_host, B) if form == "factors" else dense_edits(any_host)
    ids_BT = token_ids(any_host, rows)
    with torch.no_grad(), swapped(any_host, {LAYER: edits}):
        found_BTV = any_host.model(ids_BT, use_cache=False).logits
    assert found_BTV.shape[:2] == (B, T)
    clean_BTV = any_host.model(ids_BT, use_cache=False).logits
    for b in range(B):
        twin_TV = in_place(any_host, edits, b, LAYER).model(ids_BT[b % rows].unsqueeze(0), use_cache=False).logits[0]
        torch.testing.assert_close(found_BTV[b], twin_TV, **CLOSE)
        assert (found_BTV[b] - clean_BTV[b % rows]).abs().max() > 0.05, "the edit must matter"


@pytest.mark.parametrize("rows", [1, B])
def test_several_layers_equal_edits_in_place(any_host, random_edits, in_place, rows):
    """The lower layer with edits of rank two, the upper with whole matrices; what the lower does reaches the upper."""
    last = any_host.layers - 1
    low, high = [random_edits(any_host, B, seed) for seed in (1, 2)], random_edits(any_host, B, 3)
    rank_two = LowRankEdit(*(torch.stack([getattr(edits, name) for edits in low], dim=1) for name in ("key_BF", "value_BD")))
    edits = {LAYER: rank_two, last: applied(high, any_host.weight_DF(last))}
    ids_BT = token_ids(any_host, rows)
    with torch.no_grad(), swapped(any_host, edits):
        found_BTV = any_host.model(ids_BT, use_cache=False).logits
    assert found_BTV.shape[:2] == (B, T)
    for b in range(B):
        twin = in_place(in_place(any_host, low[0], b, LAYER), low[1], b, LAYER)
        lower_TV = twin.model(ids_BT[b % rows].unsqueeze(0), use_cache=False).logits[0]
        twin_TV = in_place(twin, high, b, last).model(ids_BT[b % rows].unsqueeze(0), use_cache=False).logits[0]
        torch.testing.assert_close(found_BTV[b], twin_TV, **CLOSE)
        assert (twin_TV - lower_TV).abs().max() > 0.05, "the upper edit must matter"


def test_layers_that_do_not_go_together_are_refused(host_of, random_edits):
    host = host_of("llama")
    two, three = random_edits(host, 2), random_edits(host, 3)
    for edits, words in (
        ({}, r"layers \[\]: expected one at least"),
        ({2: two, 1: two}, r"layers \[2, 1\]: expected one at least, the lowest first"),
        ({1: two, 2: three}, r"edits by layer: \{1: 2, 2: 3\}; expected as many in each"),
    ):
        with pytest.raises(ValueError, match=words), swapped(host, edits):
            pass


def test_hosts_cover_the_traps(host_of):
    assert isinstance(host_of("gpt2").down_proj(0), Conv1D) and host_of("gpt2").down_proj(0).bias.abs().min() > 0
    assert host_of("gpt2").weight_DF(0).shape == host_of("llama").weight_DF(0).shape == (32, 48)
    assert host_of("gpt2 square").weight_DF(0).shape == (32, 32)
    assert host_of("phi").down_proj(0).bias is not None and host_of("llama").down_proj(0).bias is None


def test_dense_layer_between_fused_experts(new_host, random_edits, in_place):
    host = new_host("qwen3_moe", mlp_only_layers=[LAYER])
    edits, ids_1T = random_edits(host, B), token_ids(host, 1)
    with torch.no_grad(), swapped(host, {LAYER: edits}):
        found_BTV = host.model(ids_1T, use_cache=False).logits
    for b in range(B):
        torch.testing.assert_close(found_BTV[b], in_place(host, edits, b, LAYER).model(ids_1T, use_cache=False).logits[0], **CLOSE)


def test_where_the_batch_grows(host_of, host_names, random_edits):
    """The self-check agrees with the table; a family that fails it falls back and says so."""
    for name in host_names:
        host = host_of(name)
        with swapped(host, {LAYER: random_edits(host, 2)}):
            pass
        assert host.batch_grows_at_edit is host.family.batch_grows_at_edit, name


def test_a_host_that_cannot_grow_a_batch_falls_back_and_says_so(new_host, random_edits, in_place, caplog):
    host = new_host("falcon alibi", attn_implementation="eager")
    edits, ids_1T = random_edits(host, B), token_ids(host, 1)
    with torch.no_grad(), swapped(host, {LAYER: edits}):
        found_BTV = host.model(ids_1T, use_cache=False).logits
    assert host.batch_grows_at_edit is False and "cannot grow at the edit" in caplog.text
    for b in range(B):
        torch.testing.assert_close(found_BTV[b], in_place(host, edits, b, LAYER).model(ids_1T, use_cache=False).logits[0], **CLOSE)


def test_whole_matrices_of_a_rank_one_edit_are_the_same_edit(any_host, random_edits):
    edits = random_edits(any_host, B)
    ids_1T = token_ids(any_host, 1)
    with torch.no_grad(), swapped(any_host, {LAYER: edits}):
        factors_BTV = any_host.model(ids_1T).logits
    with torch.no_grad(), swapped(any_host, {LAYER: applied(edits, any_host.weight_DF(LAYER))}):
        dense_BTV = any_host.model(ids_1T).logits
    torch.testing.assert_close(dense_BTV, factors_BTV, **CLOSE)


def test_nothing_is_left(any_host, random_edits, hooks, weights_hash):
    before = hooks(any_host.model), weights_hash(any_host.model), any_host.model(token_ids(any_host, 2)).logits
    with swapped(any_host, {LAYER: random_edits(any_host, 2)}):
        assert hooks(any_host.model) == before[0] + (1 if any_host.batch_grows_at_edit else 2)
        any_host.model(token_ids(any_host, 2))
    with swapped(any_host, {LAYER: random_edits(any_host, 2), 2: random_edits(any_host, 2)}):
        assert hooks(any_host.model) == before[0] + (2 if any_host.batch_grows_at_edit else 3)
    assert (hooks(any_host.model), weights_hash(any_host.model)) == before[:2]
    assert torch.equal(any_host.model(token_ids(any_host, 2)).logits, before[2])


def test_nothing_is_left_after_an_exception(host_of, random_edits, hooks, weights_hash):
    host = host_of("llama")
    before = hooks(host.model), weights_hash(host.model)
    with pytest.raises(KeyboardInterrupt), swapped(host, {LAYER: random_edits(host, 2)}):
        raise KeyboardInterrupt
    with pytest.raises(ValueError, match="edits meet"), swapped(host, {LAYER: random_edits(host, 2)}):
        host.model(token_ids(host, 3))
    assert (hooks(host.model), weights_hash(host.model)) == before


def test_wrong_batch_is_refused(host_of, random_edits):
    host = host_of("llama")
    with pytest.raises(ValueError, match=r"3 edits meet an input of shape \(2, 5, 48\): expected \(3, T, F\) or \(1, T, F\)"):
        with swapped(host, {LAYER: random_edits(host, B)}):
            host.model(token_ids(host, 2))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_wrong_width_is_refused(host_of, name):
    host = host_of(name)
    turned = RankOneEdit(torch.zeros(2, 32), torch.zeros(2, 48)), DenseEdit(torch.zeros(2, 48, 32))
    for edits in turned:
        with pytest.raises(ValueError, match=r"\(48, 32\).*\(32, 48\)"), swapped(host, {LAYER: edits}):
            pass


def test_absent_layer_is_refused(host_of, random_edits):
    host = host_of("llama")
    for layer in (3, -1):
        with pytest.raises(ValueError, match=rf"layer={layer}.*0 to 2"), swapped(host, {layer: random_edits(host, 2)}):
            pass


def test_gradient_checkpointing_is_refused(new_host, random_edits):
    host = new_host("llama")
    host.model.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match="gradient checkpointing"), swapped(host, {LAYER: random_edits(host, 2)}):
        pass


def test_output_is_contiguous(host_of):
    @dataclass(frozen=True)
    class Permuted(DenseEdit):
        def output(self, x_BTF, y_BTD, bias_D, memory_budget=0):
            return y_BTD.expand(len(self), -1, -1).transpose(0, 1).contiguous().transpose(0, 1)

    host = host_of("llama")
    edits = Permuted(torch.zeros(B, 32, 48))
    x_1TF = torch.randn(1, T, 48)
    assert not edits.output(x_1TF, host.down_proj(LAYER)(x_1TF), None).is_contiguous()
    with swapped(host, {LAYER: edits}):
        assert host.down_proj(LAYER)(x_1TF).is_contiguous()


def test_exchanged_puts_blocks_in_and_back(host_of):
    host = host_of("llama")
    own = list(host.blocks)
    other = host_of("llama bias").blocks[2]
    with exchanged(host, {0: other, 1: own[2]}):
        assert host.blocks[0] is other and host.blocks[1] is own[2] and host.blocks[2] is own[2]
    assert all(found is block for found, block in zip(host.blocks, own, strict=True))
    with pytest.raises(KeyboardInterrupt), exchanged(host, {0: other, 1: own[2]}):
        raise KeyboardInterrupt
    assert all(found is block for found, block in zip(host.blocks, own, strict=True))


def test_inputs_of_the_projection_are_the_callers_alone(new_host, random_edits):
    """Also on a host whose self-check has not run: its forwards are none of the caller's."""
    host = new_host("qwen2")
    assert host.batch_grows_at_edit is None
    ids_BT = token_ids(host, 1)
    with torch.no_grad(), projection_inputs(host, LAYER) as inputs, swapped(host, {LAYER: random_edits(host, B)}):
        host.model(ids_BT, use_cache=False)
    assert [tuple(x_BTF.shape) for x_BTF in inputs] == [(1, T, host.mlp_size(LAYER))]
