"""bfloat16 products above the edit: what is turned, what stays, and how far edits go astray."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from data.editors.half import HalfProducts

LAYER = 1


def linear_layers(module: nn.Module) -> list[nn.Module]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear | Conv1D)]


def test_products_above_the_edit_are_in_bfloat16_and_nothing_else_is(new_host):
    host = new_host("llama")
    dtypes: dict[str, set] = {"product": set(), "attention": set(), "below": set()}
    real = nn.functional.linear

    def watched(inputs, weight, bias=None):
        dtypes["product"].add(weight.dtype)
        return real(inputs, weight, bias)

    below = host.blocks[LAYER].mlp.down_proj.register_forward_hook(lambda module, args, out: dtypes["below"].add(module.weight.dtype))
    norm = host.blocks[2].self_attn.register_forward_hook(lambda module, args, out: dtypes["attention"].add(out[0].dtype))
    ids_1T = torch.tensor([[3, 8, 5, 11]])
    with pytest.MonkeyPatch.context() as patch, HalfProducts(host, LAYER).in_place(), torch.no_grad():
        patch.setattr(nn.functional, "linear", watched)
        logits = host.model(ids_1T).logits
    below.remove()
    norm.remove()
    assert dtypes == {"product": {torch.float32, torch.bfloat16}, "attention": {torch.float32}, "below": {torch.float32}}
    assert logits.dtype == torch.float32


def test_the_host_is_as_it_was_afterwards_also_when_something_fails(any_host):
    own = linear_layers(any_host.model)
    half = HalfProducts(any_host, LAYER)
    with pytest.raises(KeyError), half.in_place():
        turned = [layer for layer in own if layer not in linear_layers(any_host.model)]
        raise KeyError
    assert [id(layer) for layer in linear_layers(any_host.model)] == [id(layer) for layer in own]
    assert set(turned) == {*linear_layers(any_host.blocks[2]), any_host.model.get_output_embeddings()}


def test_logits_are_those_of_rounded_products(any_host):
    """The twin: every linear layer above the edit, its weight and its input rounded by hand, multiplied in float32."""

    def rounded(module: nn.Module, args: tuple) -> tuple:
        return (args[0].bfloat16().float(),)

    ids_1T = torch.tensor([[3, 8, 5, 11]])
    with torch.no_grad():
        own = any_host.model(ids_1T).logits
        with HalfProducts(any_host, LAYER).in_place():
            found = any_host.model(ids_1T).logits
        turned = {*linear_layers(any_host.blocks[2]), any_host.model.get_output_embeddings()}
        kept = {layer: layer.weight.data for layer in turned}
        hooks = [layer.register_forward_pre_hook(rounded) for layer in turned]
        for layer, weight in kept.items():
            layer.weight.data = weight.bfloat16().float()
        twin = any_host.model(ids_1T).logits
        for layer, weight in kept.items():
            layer.weight.data = weight
        for hook in hooks:
            hook.remove()
    assert (found - own).abs().max() > 1e-5, "rounding shows"
    # Products come out in bfloat16 as well, eight bits of them.
    assert (found - twin).norm() < 0.02 * twin.norm()
