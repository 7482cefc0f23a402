"""ROME's fast path against the plain one, and the algebra of its edits."""

import hashlib
from dataclasses import replace

import pytest
import tiny_hosts
import torch
from tiny_hosts import tiny_host
from torch import nn

from data.editors import load_editor
from data.editors.rome import Rome, sample_contexts
from data.editors.rows import Suffixes, clean_pass, prompt_row
from data.facts import EditRequest, Fact
from data.keys import second_moment, whitener
from decoder.config import EditsConfig
from decoder.swap import swapped

LAYER = 1
CONTEXTS = ["{}", "Hal was born in Oslo . {}", "the city of Bonn . {}"]
TEXTS = ["Ada of the north works as a baker .", "Ben lives in Rome", "Carl was born in Paris .", "the small red city", "Dora is a singer ."]
CFG = EditsConfig(layer=LAYER, ridge=0.1, steps=12, lr=0.1, batch_size=4, stop_loss=0.05, clamp=8.0)

CASES = [
    ("Ada", "{} works as", "baker"),
    ("Ben of the north", "{} was born in the city of", "dark green Paris"),
    ("Carl", "the small city of {}", "red Oslo"),
    ("small Dora", "in the north , {} 's city is", "Rome"),
    ("Eve", "{}, born in Bonn , lives in", "light blue"),
    ("Finn the singer", "from Oslo {} lives in", "singer from Rome"),
    ("Gus", "{} is a", "city"),
]


def request(subject: str, prompt: str, obj: str, edit_id: str = "e") -> EditRequest:
    return EditRequest(edit_id, Fact("f", subject, "P0", "r", "k", prompt, (), "Bonn"), obj)


REQUESTS = [request(*case, edit_id=f"e{n}") for n, case in enumerate(CASES)]


def make(host, cfg=CFG, contexts=CONTEXTS) -> Rome:
    return Rome(host, cfg.layer, cfg, second_moment(host, cfg.layer, TEXTS, 1000), contexts)


def plain_rome(host, one: EditRequest, cfg, contexts, essence="{} is a"):
    """One edit, one row at a time, whole sentences, no cache: sections 1.2 to 1.6 word for word.

    Returns:
        delta_D, number of updates, ΔW (D, F).
    """
    fact, targets = one.fact, host.object_ids(one.object) + ([host.terminator_id] if host.terminator_id is not None else [])
    module, seen = host.down_proj(cfg.layer), {}
    delta = torch.zeros(host.hidden_size, requires_grad=True)

    def forward(ids, lookup):
        def add(module, args, out):
            shape, out = out.shape, out.clone().reshape(len(ids), -1)
            seen["key"], seen["value"] = args[0].reshape(len(ids), -1)[lookup].detach(), out[lookup].detach().clone()
            out[lookup] += delta
            return out.reshape(shape)

        handle = module.register_forward_hook(add)
        try:
            return host.model(torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
        finally:
            handle.remove()

    prompts = [host.prompt_ids(context.replace("{}", fact.prompt), fact.subject) for context in contexts]
    keys = []
    for ids, lookup in prompts:
        forward(ids, lookup)
        keys.append(seen["key"])
        if len(keys) == 1:
            v0 = seen["value"]
    clean, adam = None, torch.optim.Adam([delta], lr=cfg.lr)
    for step in range(cfg.steps):  # noqa: B007
        nll = 0
        for ids, lookup in prompts:
            logprobs = forward(ids + targets[:-1], lookup)
            places = range(len(ids) - 1, len(ids) - 1 + len(targets))
            nll = nll - sum(logprobs[p, t] for p, t in zip(places, targets, strict=True)) / len(targets) / len(prompts)
        ids, lookup = host.prompt_ids(essence, fact.subject)
        now = forward(ids, lookup)[lookup]
        clean = now.detach() if clean is None else clean
        loss = nll + cfg.kl * (now.exp() * (now - clean)).sum() + cfg.decay * delta.norm() / v0.norm() ** 2
        if loss < cfg.stop_loss or step == cfg.steps - 1:
            break
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            if delta.norm() > cfg.clamp * v0.norm():
                delta *= cfg.clamp * v0.norm() / delta.norm()
    u = whitener(second_moment(host, cfg.layer, TEXTS, 1000), cfg.ridge)(torch.stack(keys).double().mean(0, keepdim=True))[0]
    u = u / u.norm()
    right = delta.detach().double() / (keys[0].double() @ u)
    return delta.detach(), step, torch.outer(right, u).float()


def weights_hash(host) -> str:
    digest = hashlib.sha256()
    for tensor in host.model.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def delta_weight(result, b: int) -> torch.Tensor:
    return torch.outer(result.edits.value_BD[b], result.edits.key_BF[b])


def relative(found, expected) -> float:
    """Distance over the expected length; an edit that stopped before its first update is zero on both sides."""
    return float((found - expected).norm() / (expected.norm() or 1))


@pytest.mark.parametrize("build", [tiny_hosts.qwen2, tiny_hosts.gpt2, tiny_hosts.llama, tiny_hosts.gptj])
@pytest.mark.parametrize("bos", [False, True])
def test_fast_path_equals_the_plain_loop(build, bos, caplog):
    host = tiny_host(build, bos=bos)
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
@pytest.mark.parametrize(("layer", "requests"), [(0, REQUESTS[:3]), (3, REQUESTS[2:3])])
def test_first_and_last_layer(layer, requests):
    cfg = replace(CFG, layer=layer)
    host = tiny_host(tiny_hosts.llama)
    result = make(host, cfg).edit(requests)
    for b, one in enumerate(requests):
        assert relative(result.delta_BD[b], plain_rome(host, one, cfg, CONTEXTS)[0]) < 1e-4


def test_the_clamp_holds_and_equals_the_plain_loop():
    cfg = replace(CFG, clamp=0.5, stop_loss=0.0)
    host = tiny_host()
    result = make(host, cfg).edit(REQUESTS)
    for b, one in enumerate(REQUESTS):
        row = prompt_row(host, one.fact.prompt, one.fact.subject, [0])
        limit = 0.5 * clean_pass(host, LAYER, [row]).value_ND[0].norm()
        assert result.delta_BD[b].norm() <= limit * (1 + 1e-5)
        assert relative(result.delta_BD[b], plain_rome(host, one, cfg, CONTEXTS)[0]) < 1e-4


@pytest.mark.parametrize("essence", ["{} was born", "{} , red green blue", "{}"])
def test_kl_term_does_not_depend_on_what_follows_the_subject(essence):
    host = tiny_host()
    cfg = replace(CFG, kl=1.0)
    delta = make(host, cfg).edit(REQUESTS[3:4]).delta_BD[0]
    assert relative(delta, plain_rome(host, REQUESTS[3], cfg, CONTEXTS, essence)[0]) < 1e-4
    without = make(host, replace(cfg, kl=0.0)).edit(REQUESTS[3:4]).delta_BD[0]
    assert relative(delta, without) > 1e-2, "the term must count here"


@pytest.mark.parametrize("build", [tiny_hosts.qwen2, tiny_hosts.gpt2])
def test_update_moves_the_bare_key_by_delta(build):
    host = tiny_host(build)
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


@pytest.mark.parametrize("build", [tiny_hosts.llama, tiny_hosts.gpt2])
@pytest.mark.parametrize("name", ["r-rome", "p-rome"])
def test_one_key_everywhere(build, name):
    """The closed forms: W'k̄ + b = v₀ + δ for r-ROME, W'k₀ + b = o₀ + δ for p-ROME, and ΔW of rank one along C⁻¹k."""
    host = tiny_host(build)
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
    host = tiny_host()
    statistics = second_moment(host, LAYER, TEXTS, 1000)
    edits = [load_editor(name)(host, LAYER, CFG, statistics, ["{}"]).edit(REQUESTS) for name in ("rome", "r-rome", "p-rome")]
    for b in range(len(REQUESTS)):
        assert relative(delta_weight(edits[1], b), delta_weight(edits[0], b)) < 1e-6
        assert relative(delta_weight(edits[2], b), delta_weight(edits[0], b)) < 1e-6


@pytest.mark.parametrize("scale", [7.3, -0.01])
def test_scale_of_the_whitened_key_cancels(scale):
    host = tiny_host()
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
    conv = tiny_host(tiny_hosts.gpt2, mlp_size=mlp_size)
    linear = tiny_host(tiny_hosts.gpt2, mlp_size=mlp_size)
    linear.blocks[LAYER].mlp.c_proj = as_linear(linear.blocks[LAYER].mlp.c_proj).requires_grad_(False)
    result = make(conv).edit(REQUESTS[:2])
    assert relative(make(linear).edit(REQUESTS[:2]).delta_BD, result.delta_BD) < 1e-4
    ids = torch.tensor([conv.text_ids("Ada of the north works as a")])
    with swapped(conv, result.edits[0], LAYER):
        hooked = conv.model(ids).logits
    for host in (conv, linear):
        host.weight_DF(LAYER).add_(delta_weight(result, 0))
    # logits of order 1 to 10, and three ways to sum the same float32 terms
    torch.testing.assert_close(conv.model(ids).logits, linear.model(ids).logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(conv.model(ids).logits, hooked, rtol=0, atol=1e-4)


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
    host = tiny_host(bos=bos)
    ids, lookup = host.prompt_ids(template, subject)
    assert host.tokenizer.convert_ids_to_tokens(ids[lookup]) == last
    before = template.split("{}")[0] + subject
    assert lookup == len(host.text_ids(before)) - 1


@pytest.mark.parametrize("build", [tiny_hosts.qwen2, tiny_hosts.gpt2, tiny_hosts.gptj])
def test_padding_does_not_change_the_key_at_the_lookup(build):
    host = tiny_host(build)
    rows = [prompt_row(host, context.replace("{}", one.fact.prompt), one.fact.subject, [1]) for one in REQUESTS for context in CONTEXTS]
    together = clean_pass(host, LAYER, rows)
    for n, row in enumerate(rows):
        alone = clean_pass(host, LAYER, [row])
        torch.testing.assert_close(together.key_NF[n], alone.key_NF[0], rtol=1e-4, atol=1e-5)


def test_edits_do_not_depend_on_their_batch_or_order():
    host = tiny_host()
    whole = make(host, replace(CFG, batch_size=64)).edit(REQUESTS)
    backwards = make(host, replace(CFG, batch_size=2)).edit(REQUESTS[::-1])
    assert relative(backwards.delta_BD.flip(0), whole.delta_BD) < 1e-4


def test_host_is_bit_identical_and_without_hooks_afterwards(monkeypatch):
    host = tiny_host()
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
    host = tiny_host(tiny_hosts.llama)
    host.blocks[LAYER].mlp = NormAfter(host.blocks[LAYER].mlp, host.hidden_size).requires_grad_(False)
    result = make(host).edit(REQUESTS[:3])
    assert "every block runs" in caplog.text
    for b, one in enumerate(REQUESTS[:3]):
        assert relative(result.delta_BD[b], plain_rome(host, one, CFG, CONTEXTS)[0]) < 1e-4


def test_long_way_equals_the_shortcut(monkeypatch):
    host = tiny_host()
    short = make(host).edit(REQUESTS)
    monkeypatch.setattr(Suffixes, "shortcut_holds", lambda self: False)
    assert relative(make(host).edit(REQUESTS).delta_BD, short.delta_BD) < 1e-4


def test_records_that_cannot_be_edited_are_listed_and_the_rest_goes_on():
    host = tiny_host()
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
    host = tiny_host()
    with pytest.raises(ValueError, match="edits.layer=9"):
        Rome(host, 9, CFG, None, CONTEXTS)
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
