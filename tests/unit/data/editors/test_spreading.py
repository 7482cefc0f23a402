"""MEMIT and its kin over several layers against the published loop: layer by layer, written into the weights, keys anew each time.

Shape letters: B hosts, N facts of one, D hidden width, F MLP width.
"""

import copy

import pytest
import torch
from closed_forms import LAYERS, make, over, seen
from rome_twin import LAYER, REQUESTS, TEXTS, relative, request, second_moment
from tiny_hosts import POCKET, build_host

from data.editors.prefix_cache import Suffixes
from data.keys.whiten import null_space, whitener
from decoder.edit import LayerEdits, LowRankEdit
from decoder.host import Host

HOSTS = [REQUESTS[:3], REQUESTS[3:6]]


@pytest.fixture(scope="module")
def host():
    return build_host("llama")


@torch.no_grad()
def published(host, requests, delta_ND, solver, weight: float) -> list[torch.Tensor]:
    """ΔW of each layer, by the loop of Meng et al. 2023 (algorithm 1), without batches or factors."""
    twin, changes = Host(copy.deepcopy(host.model), host.tokenizer, name=host.name, terminator="."), []
    goal_ND = torch.stack([seen(twin, 0, one)[1] for one in requests]) + delta_ND
    for place, layer in enumerate(LAYERS):
        key_NF, state_ND = (torch.stack(part) for part in zip(*(seen(twin, layer, one) for one in requests), strict=True))
        left_ND = (goal_ND - state_ND) / (len(LAYERS) - place)
        turned_NF = solver(layer)(key_NF)
        system_NN = weight * torch.eye(len(requests), dtype=torch.float64) + key_NF @ turned_NF.T
        change_DF = left_ND.T @ torch.linalg.solve(system_NN, turned_NF)
        twin.weight_DF(layer).add_(change_DF.float())
        changes.append(change_DF)
    return changes


# Where a first layer sees one token at a time, text that has all tokens leaves AlphaEdit no direction there.
@pytest.mark.parametrize(
    ("build", "name"),
    [*((build, name) for build in ("llama", "gpt2", "gptj", POCKET) for name in ("memit", "emmet")), ("llama", "alphaedit")],
)
def test_layers_are_those_of_the_published_loop(build, name):
    host = build_host(build)
    threshold = 1e-5 * float(torch.linalg.eigvalsh(second_moment(host, 0, TEXTS, 1000).moment_FF.double())[-1])
    settings = {"memit": {"ridge": 0.1, "weight": 0.5}, "emmet": {"ridge": 0.1}, "alphaedit": {"threshold": threshold, "weight": 0.2}}[name]
    made = over(name, host, **settings).edit_together(HOSTS)
    assert isinstance(made.edits, LayerEdits) and made.edits.layers == LAYERS and made.kept == [0, 1]

    def solver(layer):
        counted = second_moment(host, layer, TEXTS, 1000)
        return null_space(counted, threshold) if name == "alphaedit" else whitener(counted, 0.1)

    for b, requests in enumerate(HOSTS):
        delta_ND = make(name, host, **settings).edit(requests).delta_BD.double()
        expected = published(host, requests, delta_ND, solver, settings.get("weight", 0.0))
        for layer, change_DF in zip(LAYERS, expected, strict=True):
            assert relative(made.edits.by_layer[layer].delta()[b].double(), change_DF) < 1e-3, layer
    strength_BR = made.edits.last.value_BRD.norm(dim=2)
    assert (strength_BR[:, :-1] >= strength_BR[:, 1:]).all(), "strongest first"


def test_with_nothing_that_weighs_against_it_the_whole_value_is_there(host):
    """At the bare prompt, where it is the only context: what the first layer does not bring, the second does."""
    made = over("emmet", host, contexts=["{}"], ridge=0.1).edit(REQUESTS[:2])
    delta_BD = make("emmet", host, contexts=["{}"], ridge=0.1).edit(REQUESTS[:2]).delta_BD.double()
    for b, one in enumerate(REQUESTS[:2]):
        twin = Host(copy.deepcopy(host.model), host.tokenizer, name=host.name, terminator=".")
        clean_D, shares = seen(twin, 0, one)[1], []
        for layer in LAYERS:
            twin.weight_DF(layer).add_(made.edits.by_layer[layer].delta()[b])
            shares.append(relative(seen(twin, 0, one)[1] - clean_D, delta_BD[b]))
        assert shares[1] < 1e-3 and shares[0] > 0.1, "left over after each layer"


def test_of_one_layer_it_is_the_edit_of_today(host):
    for name in ("memit", "emmet"):
        editor = make(name, host, ridge=0.1)
        jobs_BN = [[editor._job(n, one) for n, one in enumerate(requests)] for requests in HOSTS]
        plain = editor.edit_together(HOSTS).edits
        delta_BND = torch.stack([editor.edit(requests).delta_BD for requests in HOSTS]).double()
        (spread,) = editor._spread(jobs_BN, delta_BND).values()
        assert isinstance(plain, LowRankEdit) and relative(spread.delta(), plain.delta()) < 1e-5
        assert over(name, host, [LAYER], ridge=0.1).edit(REQUESTS[:2]).edits.key_BF.shape == (2, 48)


def test_batches_do_not_count_and_the_host_is_as_it_was(host, weights_hash, hooks):
    before = weights_hash(host.model), hooks(host.model)
    whole, small = (over("memit", host, ridge=0.1, batch_size=size).edit_together(HOSTS).edits for size in (64, 2))
    alone = over("memit", host, ridge=0.1).edit(REQUESTS[:3])
    together = over("memit", host, ridge=0.1, batch_size=2).edit_together([[one] for one in REQUESTS[:3]]).edits
    for layer in LAYERS:
        assert relative(small.by_layer[layer].delta(), whole.by_layer[layer].delta()) < 1e-3
        assert relative(together.by_layer[layer].delta(), alone.edits.by_layer[layer].delta()) < 1e-3
    assert (weights_hash(host.model), hooks(host.model)) == before


def test_what_cannot_be_spread_is_listed_or_refused(host, monkeypatch):
    bad = request("Ada", "no place", "Rome", "bad")
    made = over("memit", host).edit([bad, REQUESTS[0]])
    assert made.kept == [1] and len(made.edits) == 1 and [name for name, _ in made.skipped] == [bad.edit_id]
    assert len(over("memit", host).edit([bad]).edits) == 0
    monkeypatch.setattr(Suffixes, "shortcut_holds", lambda self: False)
    with pytest.raises(ValueError, match=r"edits.layer=\[0, 1\]: .* has a norm behind W_V.*Give one layer"):
        over("memit", host).edit(REQUESTS[:1])
