"""The algebra of ROME's edits and of its two variants, in closed form."""

import pytest
import torch
from rome_twin import CFG, CONTEXTS, LAYER, REQUESTS, TEXTS, delta_weight, make, relative, second_moment
from tiny_hosts import POCKET, build_host
from torch import nn

from data.editors import load_editor
from data.facts.fact import EditRequest
from data.keys.whiten import whitener
from decoder.swap import swapped


@pytest.mark.parametrize("build", [POCKET, "gpt2"])
def test_update_moves_the_bare_key_by_delta(build):
    host = build_host(build)
    result = make(host).edit(REQUESTS)
    keys = {}
    host.down_proj(LAYER).register_forward_hook(lambda module, args, out: keys.update(x=args[0]))
    for b, one in enumerate(REQUESTS):
        ids, lookup = host.prompt_ids(one.fact.prompt, one.fact.subject)
        host.model(torch.tensor([ids]))
        assert relative(delta_weight(result, b) @ keys["x"][0, lookup], result.delta_BD[b]) < 1e-5


def keys_and_outputs(host, one: EditRequest) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys (contexts, F) and outputs (contexts, D) of the projection at the subject, one plain forward a context."""
    caught = []
    handle = host.down_proj(LAYER).register_forward_hook(lambda module, args, out: caught.append((args[0], out)))
    lookups = []
    for context in CONTEXTS:
        ids, lookup = host.prompt_ids(context.replace("{}", one.fact.prompt), one.fact.subject)
        host.model(torch.tensor([ids]))
        lookups.append(lookup)
    handle.remove()
    keys, outputs = zip(*((x[0, place], y[0, place]) for (x, y), place in zip(caught, lookups, strict=True)), strict=True)
    return torch.stack(keys), torch.stack(outputs)


@pytest.mark.parametrize("build", ["llama", "gpt2"])
@pytest.mark.parametrize("name", ["r-rome", "p-rome"])
def test_one_key_everywhere(build, name):
    """The closed forms: W'k̄ + b = v₀ + δ for r-ROME, W'k₀ + b = o₀ + δ for p-ROME, and ΔW of rank one along C⁻¹k."""
    host = build_host(build)
    statistics = second_moment(host, LAYER, TEXTS, 1000)
    result = load_editor(name)(host, LAYER, CFG, statistics, CONTEXTS).edit(REQUESTS)
    rome = make(host).edit(REQUESTS)
    bias = host.down_proj(LAYER).bias
    for b, one in enumerate(REQUESTS):
        keys, outputs = keys_and_outputs(host, one)
        key = keys.mean(dim=0) if name == "r-rome" else keys[0]
        edited = host.weight_DF(LAYER) + delta_weight(result, b)
        found = edited @ key + (0 if bias is None else bias)
        assert relative(found, outputs[0] + result.delta_BD[b]) < 1e-5
        direction = whitener(statistics, CFG.ridge)(key[None].double())[0]
        assert abs(float(torch.cosine_similarity(direction, result.edits.key_BF[b].double(), dim=0))) > 1 - 1e-6
        # δ is found the same way; only what is made of it differs.
        assert torch.equal(result.delta_BD[b], rome.delta_BD[b])
        assert relative(delta_weight(result, b), delta_weight(rome, b)) > 1e-3


def test_without_contexts_the_three_editors_agree():
    host = build_host(POCKET)
    statistics = second_moment(host, LAYER, TEXTS, 1000)
    edits = [load_editor(name)(host, LAYER, CFG, statistics, ["{}"]).edit(REQUESTS) for name in ("rome", "r-rome", "p-rome")]
    for b in range(len(REQUESTS)):
        assert relative(delta_weight(edits[1], b), delta_weight(edits[0], b)) < 1e-6
        assert relative(delta_weight(edits[2], b), delta_weight(edits[0], b)) < 1e-6


@pytest.mark.parametrize("scale", [7.3, -0.01])
def test_scale_of_the_whitened_key_cancels(scale):
    host = build_host(POCKET)
    rome, scaled = make(host), make(host)
    scaled.whiten = lambda keys: scale * rome.whiten(keys)
    one, other = rome.edit(REQUESTS[:3]), scaled.edit(REQUESTS[:3])
    for b in range(3):
        assert relative(delta_weight(other, b), delta_weight(one, b)) < 1e-5


def as_linear(conv: nn.Module) -> nn.Linear:
    linear = nn.Linear(conv.weight.shape[0], conv.weight.shape[1])
    linear.weight.data, linear.bias.data = conv.weight.data.T.clone(), conv.bias.data.clone()
    return linear


@pytest.mark.parametrize("mlp_size", [32, 48], ids=["square", "wide"])
def test_conv1d_and_linear_copies_agree_after_the_edit(mlp_size):
    conv = build_host("gpt2", n_inner=mlp_size)
    linear = build_host("gpt2", n_inner=mlp_size)
    linear.blocks[LAYER].mlp.c_proj = as_linear(linear.blocks[LAYER].mlp.c_proj).requires_grad_(False)
    result = make(conv).edit(REQUESTS[:2])
    assert relative(make(linear).edit(REQUESTS[:2]).delta_BD, result.delta_BD) < 1e-4
    ids = torch.tensor([conv.text_ids("Ada of the north works as a")])
    with swapped(conv, {LAYER: result.edits[0]}):
        hooked = conv.model(ids).logits
    for host in (conv, linear):
        host.weight_DF(LAYER).add_(delta_weight(result, 0))
    # logits of order 1 to 10, and three ways to sum the same float32 terms
    torch.testing.assert_close(conv.model(ids).logits, linear.model(ids).logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(conv.model(ids).logits, hooked, rtol=0, atol=1e-4)
