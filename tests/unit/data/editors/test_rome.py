"""ROME's fast path against the plain one; what it refuses, lists and leaves as it was."""

import hashlib
from dataclasses import replace

import pytest
import torch
from rome_twin import CFG, CONTEXTS, LAYER, REQUESTS, delta_weight, make, plain_rome, relative, request
from tiny_hosts import POCKET, build_host
from torch import nn

from data.editors import load_editor
from data.editors.prefix_cache import Suffixes, clean_pass
from data.editors.prompts import prompt_row
from data.editors.rome import Rome, sample_contexts


def weights_hash(host) -> str:
    digest = hashlib.sha256()
    for tensor in host.model.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("build", [POCKET, "gpt2", "llama", "gptj"])
@pytest.mark.parametrize("bos", [False, True])
def test_fast_path_equals_the_plain_loop(build, bos, caplog):
    host = build_host(build, bos=bos)
    reached = make(host, replace(CFG, steps=6)).edit(REQUESTS).loss_B
    # Half of the edits pass this within 6 of the 12 steps.
    cfg = replace(CFG, stop_loss=float(reached.median()) + 1e-3)
    result = make(host, cfg).edit(REQUESTS)
    assert "every block runs" not in caplog.text
    plain = [plain_rome(host, one, cfg, CONTEXTS) for one in REQUESTS]
    assert result.steps_B.tolist() == [steps for _, steps, _ in plain]
    assert len(set(result.steps_B.tolist())) > 1, "the case must have neighbours that stop at different steps"
    for b, (delta, _, weight) in enumerate(plain):
        # 1e-4: float32, and Adam divides by small gradients
        assert relative(result.delta_BD[b], delta) < 1e-4
        assert relative(delta_weight(result, b), weight) < 1e-4


def test_fast_path_equals_the_plain_loop_in_every_family(any_host):
    cfg = replace(CFG, steps=4, stop_loss=0.0)
    # Objects within two positions of the subject: windows of three see no further, and without a gradient Adam follows rounding.
    requests = [REQUESTS[0], REQUESTS[2], REQUESTS[6]]
    result = make(any_host, cfg).edit(requests)
    assert result.kept == [0, 1, 2]
    for b, one in enumerate(requests):
        delta, _, weight = plain_rome(any_host, one, cfg, CONTEXTS)
        # 1e-3: float32, and Adam's first steps have the size of the rate however small a gradient is
        assert relative(result.delta_BD[b], delta) < 1e-3
        assert relative(delta_weight(result, b), weight) < 1e-3


# In the last layer a value acts on its own position only, so the object must follow the subject at once.
@pytest.mark.parametrize(("layer", "requests"), [(0, REQUESTS[:3]), (2, REQUESTS[2:3])])
def test_first_and_last_layer(layer, requests):
    cfg = replace(CFG, layer=layer)
    host = build_host("llama")
    result = make(host, cfg).edit(requests)
    for b, one in enumerate(requests):
        assert relative(result.delta_BD[b], plain_rome(host, one, cfg, CONTEXTS)[0]) < 1e-4


def test_the_clamp_holds_and_equals_the_plain_loop():
    cfg = replace(CFG, clamp=0.5, stop_loss=0.0)
    host = build_host(POCKET)
    result = make(host, cfg).edit(REQUESTS)
    for b, one in enumerate(REQUESTS):
        row = prompt_row(host, one.fact.prompt, one.fact.subject, [0])
        limit = 0.5 * clean_pass(host, LAYER, [row]).output_ND[0].norm()
        assert result.delta_BD[b].norm() <= limit * (1 + 1e-5)
        assert relative(result.delta_BD[b], plain_rome(host, one, cfg, CONTEXTS)[0]) < 1e-4


@pytest.mark.parametrize("essence", ["{} was born", "{} , red green blue", "{}"])
def test_kl_term_does_not_depend_on_what_follows_the_subject(essence):
    host = build_host(POCKET)
    cfg = replace(CFG, kl=1.0)
    delta = make(host, cfg).edit(REQUESTS[3:4]).delta_BD[0]
    assert relative(delta, plain_rome(host, REQUESTS[3], cfg, CONTEXTS, essence)[0]) < 1e-4
    without = make(host, replace(cfg, kl=0.0)).edit(REQUESTS[3:4]).delta_BD[0]
    assert relative(delta, without) > 1e-2, "the term must count here"


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize(
    ("template", "subject", "last"),
    [
        ("{} works as", "Ada", "Ada"),
        ("{}'s city", "Ben of the north", "north"),
        ("the city of {}, born in", "small Dora", "Dora"),
        ("Ada from {}", "Ada", "Ada"),
        ("Hal was born . {} is a", "Eve", "Eve"),
    ],
)
def test_lookup_is_the_last_token_of_the_subject(bos, template, subject, last):
    host = build_host(POCKET, bos=bos)
    ids, lookup = host.prompt_ids(template, subject)
    assert host.tokenizer.convert_ids_to_tokens(ids[lookup]) == last
    before = template.split("{}")[0] + subject
    assert lookup == len(host.text_ids(before)) - 1


@pytest.mark.parametrize("build", [POCKET, "gpt2", "gptj"])
def test_padding_does_not_change_the_key_at_the_lookup(build):
    host = build_host(build)
    rows = [prompt_row(host, context.replace("{}", one.fact.prompt), one.fact.subject, [1]) for one in REQUESTS for context in CONTEXTS]
    together = clean_pass(host, LAYER, rows)
    for n, row in enumerate(rows):
        alone = clean_pass(host, LAYER, [row])
        torch.testing.assert_close(together.key_NF[n], alone.key_NF[0], rtol=1e-4, atol=1e-5)


def test_edits_do_not_depend_on_their_batch_or_order():
    host = build_host(POCKET)
    whole = make(host, replace(CFG, batch_size=64)).edit(REQUESTS)
    backwards = make(host, replace(CFG, batch_size=2)).edit(REQUESTS[::-1])
    assert relative(backwards.delta_BD.flip(0), whole.delta_BD) < 1e-4


def test_host_is_bit_identical_and_without_hooks_afterwards(monkeypatch):
    host = build_host(POCKET)
    before, blocks = weights_hash(host), list(host.blocks)
    rome = make(host)
    rome.edit(REQUESTS)
    head, calls = host.head, []

    def fail_late(hidden):
        calls.append(1)
        if len(calls) > 2:
            raise RuntimeError("late")
        return head(hidden)

    monkeypatch.setattr(host, "head", fail_late)
    with pytest.raises(RuntimeError, match="late"):
        rome.edit(REQUESTS)
    assert weights_hash(host) == before
    assert all(one is other for one, other in zip(host.blocks, blocks, strict=True))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in host.model.modules())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in host.model.parameters())


class NormAfter(nn.Module):
    """An MLP whose down-projection is followed by a norm, as in Gemma 2."""

    def __init__(self, mlp: nn.Module, width: int) -> None:
        super().__init__()
        self.mlp, self.norm = mlp, nn.LayerNorm(width)

    @property
    def down_proj(self) -> nn.Module:
        return self.mlp.down_proj

    def forward(self, x):
        return self.norm(self.mlp(x))


def test_a_norm_after_the_projection_takes_the_long_way(caplog):
    host = build_host("llama")
    host.blocks[LAYER].mlp = NormAfter(host.blocks[LAYER].mlp, host.hidden_size).requires_grad_(False)
    result = make(host).edit(REQUESTS[:3])
    assert "every block runs" in caplog.text
    for b, one in enumerate(REQUESTS[:3]):
        assert relative(result.delta_BD[b], plain_rome(host, one, CFG, CONTEXTS)[0]) < 1e-4


def test_long_way_equals_the_shortcut(monkeypatch):
    host = build_host(POCKET)
    short = make(host).edit(REQUESTS)
    monkeypatch.setattr(Suffixes, "shortcut_holds", lambda self: False)
    assert relative(make(host).edit(REQUESTS).delta_BD, short.delta_BD) < 1e-4


def test_records_that_cannot_be_edited_are_listed_and_the_rest_goes_on():
    host = build_host(POCKET)
    bad = [
        request("Ada", "no place", "Rome", "no-place"),
        request(" ", "{} is", "Rome", "no-subject"),
        request("Ada", "{} is", " ", "no-object"),
    ]
    long = request("Ada", "{}" + " red" * 80, "Rome", "too-long")
    result = make(host).edit([bad[0], REQUESTS[0], bad[1], bad[2], long, REQUESTS[1]])
    assert result.kept == [1, 5]
    assert [edit_id for edit_id, _ in result.skipped] == ["no-place", "no-subject", "no-object", "too-long"]
    assert len(result.edits) == 2
    nothing = make(host).edit(bad)
    assert (nothing.kept, len(nothing.edits), len(nothing.skipped)) == ([], 0, 3)


def test_bad_settings_are_refused():
    host = build_host(POCKET)
    with pytest.raises(ValueError, match="bare"):
        make(host, contexts=["red . {}"])
    with pytest.raises(ValueError, match="did you mean 'rome'"):
        load_editor("rom")
    assert load_editor("rome") is Rome


def test_contexts_are_whole_sentences_and_follow_the_seed():
    texts = [f"Ada the {word} was born . Ben" for word in ("red", "green", "blue", "dark", "l{i}ght")]
    contexts = sample_contexts(texts, 5, seed=1)
    assert contexts[0] == "{}" and len(set(contexts)) == 5
    assert all(context.endswith("was born . {}") and context.count("{}") == 1 for context in contexts[1:])
    assert contexts == sample_contexts(texts[::-1], 5, seed=1) != sample_contexts(texts, 5, seed=2)
    with pytest.raises(ValueError, match="sentences"):
        sample_contexts(texts, 9, seed=0)
