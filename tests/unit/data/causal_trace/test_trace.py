"""Traces against whole forwards with plain hooks: one fact, one draw of noise, one position, one row.

Shape letters: N rows, T tokens, D hidden width.
"""

from contextlib import ExitStack

import pytest
import torch
from tiny_hosts import POCKET, build_host

from data.causal_trace.trace import KINDS, Asked, Tracer, asked_of, subject_spread, window_of, writers
from data.facts.fact import Fact

FACT = Fact("f0", "small Ada of the north", "P0", "r", "k", "the {} lives in", (), "dark green Paris")
NORM_BEHIND = ("gemma2", "gemma3", "gemma3_text", "olmo2", "opt norm after")


@pytest.fixture
def traced(any_host):
    asked = asked_of(any_host, FACT)
    return asked, Tracer(any_host, 3 * subject_spread(any_host, [asked]), draws=3, window=2, seed=0)


def first(output):
    return output[0] if isinstance(output, tuple) else output


@torch.no_grad()
def forward(host, asked: Asked, hooks: dict) -> float:
    """Probability of the object where modules give what a function makes of their output."""
    with ExitStack() as stack:
        for module, change in hooks.items():

            def hook(module, args, output, change=change):
                changed = change(first(output).clone())
                return (changed, *output[1:]) if isinstance(output, tuple) else changed

            stack.enter_context(module.register_forward_hook(hook))
        logits_TV = host.model(input_ids=torch.tensor([asked.ids]), use_cache=False).logits[0].float()
    logprobs = logits_TV.log_softmax(-1)[asked.prompt_length - 1 :]
    return float(logprobs[range(len(asked.object_ids)), asked.object_ids].sum().exp())


def twin(host, asked: Asked, noised_1TD, kind: str, layers: range, position: int) -> float:
    """The slow way: a clean forward that keeps what the modules give, and one under noise that gets one position of it back."""
    kept, modules = {}, [writers(host, kind)[layer] for layer in layers]

    def keep(module):
        def change(output):
            kept[module] = output.clone()
            return output

        return change

    def put_back(module):
        def change(output):
            output.reshape(len(asked.ids), -1)[position] = kept[module].reshape(len(asked.ids), -1)[position]
            return output

        return change

    forward(host, asked, {module: keep(module) for module in modules})
    noise = {host.model.get_input_embeddings(): lambda output: noised_1TD}
    return forward(host, asked, noise | {module: put_back(module) for module in modules})


@pytest.mark.parametrize("tokens_a_batch", [16384, 30])
def test_traces_equal_plain_forwards_in_every_family(any_host, traced, tokens_a_batch, monkeypatch):
    monkeypatch.setattr("data.causal_trace.trace.BATCH_TOKENS", tokens_a_batch)
    asked, tracer = traced
    trace = tracer.trace(asked)
    noised_STD = tracer.states(asked)[1].inputs_NTD
    assert trace.clean == pytest.approx(forward(any_host, asked, {}), rel=1e-4)
    for kind in KINDS:
        assert trace.restored[kind].shape == (len(asked.positions), any_host.layers)
        for place, layer in ((0, 0), (4, 1), (4, 2), (len(asked.positions) - 1, 1)):
            layers = range(layer, layer + 1) if kind == "hidden" else range(max(0, layer - 1), layer + 1)
            each = [twin(any_host, asked, noised, kind, layers, asked.positions[place]) for noised in noised_STD.unsqueeze(1)]
            # relative: a tiny host gives an object of three tokens a probability near 1e-6
            assert float(trace.restored[kind][place, layer]) == pytest.approx(sum(each) / 3, rel=1e-4), (kind, place, layer)
    assert abs(trace.clean - trace.corrupted) > 0.02 * trace.clean


def test_restoring_everything_is_clean_and_nothing_is_corrupted(any_host, traced):
    asked, tracer = traced
    clean, corrupted = tracer.states(asked)
    everything_1T = torch.ones(1, len(asked.ids), dtype=torch.bool)
    for layer in range(any_host.layers):
        restored = tracer.restored(asked, clean, corrupted, "hidden", range(layer, layer + 1), everything_1T)
        assert float(restored) == pytest.approx(float(clean.probability_N), rel=1e-4)
    for kind in KINDS:
        layers = range(1, 2) if kind == "hidden" else range(any_host.layers)
        restored = tracer.restored(asked, clean, corrupted, kind, layers, ~everything_1T)
        assert float(restored) == pytest.approx(float(corrupted.probability_N.mean()), rel=1e-4)


def test_mlp_and_attention_are_all_that_a_block_adds(host_of, host_names):
    hosts = [host_of(name) for name in host_names if name not in NORM_BEHIND] + [build_host("qwen3_moe", mlp_only_layers=[0])]
    for host in hosts:
        asked = asked_of(host, FACT)
        clean = Tracer(host, 0.1, 1, 1, 0).states(asked)[0]
        hidden, mlp, attention = (clean.outputs[kind] for kind in KINDS)
        for layer in range(1, host.layers):
            # float32 sums of numbers up to 10
            torch.testing.assert_close(
                hidden[layer] - hidden[layer - 1], mlp[layer] + attention[layer], rtol=1e-4, atol=2e-5, msg=host.name
            )


def test_noise_is_on_the_subject_alone_and_as_large_as_asked(host_of):
    host = host_of(POCKET)
    asked = asked_of(host, FACT)
    clean, corrupted = Tracer(host, 0.5, 400, 1, 0).states(asked)
    noise_NTD = corrupted.inputs_NTD - clean.inputs_NTD
    assert host.tokenizer.decode([asked.ids[place] for place in asked.subject]) == "small Ada of the north"
    assert {place for place in range(len(asked.ids)) if noise_NTD[:, place].abs().max() > 0} == set(asked.subject)
    assert float(noise_NTD[:, list(asked.subject)].std()) == pytest.approx(0.5, rel=0.02)
    again, other = (Tracer(host, 0.5, 400, 1, seed).states(asked)[1].inputs_NTD for seed in (0, 1))
    assert torch.equal(again, corrupted.inputs_NTD) and not torch.equal(other, again)


def test_spread_of_the_subjects(host_of):
    host = host_of(POCKET)
    asked = [asked_of(host, FACT), asked_of(host, Fact("f1", "Ben", "P0", "r", "k", "{} is", (), "red"))]
    rows = host.tokenizer("small Ada of the north Ben")["input_ids"]
    assert subject_spread(host, asked) == pytest.approx(float(host.model.get_input_embeddings().weight[rows].std()), rel=1e-6)


def test_windows_lie_around_their_layer():
    assert [window_of(layer, 1, 4) for layer in range(4)] == [range(layer, layer + 1) for layer in range(4)]
    # as published: 10 layers of 48
    assert window_of(20, 10, 48) == range(15, 25) and window_of(2, 10, 48) == range(0, 7) and window_of(46, 10, 48) == range(41, 48)
    assert window_of(1, 3, 4) == range(0, 3)


def test_the_host_is_left_as_it_was(host_of, weights_hash, hooks):
    host = host_of("gpt2")
    before, blocks = weights_hash(host.model), list(host.blocks)
    Tracer(host, 0.5, 2, 1, 0).trace(asked_of(host, FACT))
    assert weights_hash(host.model) == before and hooks(host.model) == 0 and list(host.blocks) == blocks
