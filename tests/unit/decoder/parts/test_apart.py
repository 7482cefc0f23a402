"""Hosts of several facts, read part by part: as their parts are read alone.

Shape letters: B edits, N parts, D hidden width, F MLP width.
"""

import pytest
import torch
from changed_decoders import LAYER, changed_decoder
from tiny_hosts import build_host
from torch.nn.functional import normalize

from decoder.answers import object_texts
from decoder.beam import Beams
from decoder.dense import applied
from decoder.edit import LayerEdits, LowRankEdit, RankOneEdit
from decoder.parts.apart import parts_of, read_apart

SEARCH = {"beams": 3, "max_object_tokens": 2}


@pytest.fixture(scope="module")
def host():
    return build_host("llama")


def sparse(rows, width, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, width, generator=generator) * (0.02 + (torch.rand(rows, width, generator=generator) < 0.15))


def facts(host, hosts, each, seed=0):
    """Edits that plant `each` facts, and these facts as edits of their own."""
    key_NF = sparse(hosts * each, host.mlp_size(LAYER), seed)
    value_ND = torch.randn(hosts * each, host.hidden_size, generator=torch.Generator().manual_seed(seed + 1))
    return LowRankEdit(key_NF.view(hosts, each, -1), value_ND.view(hosts, each, -1)), RankOneEdit(key_NF, value_ND)


def test_a_host_says_what_its_facts_say_alone(host):
    together, alone = facts(host, 2, 2)
    decoder = changed_decoder(host)
    each = object_texts(host, decoder.read(alone, **SEARCH))
    decoder.apart = True
    found = object_texts(host, decoder.read(together, **SEARCH))
    for b in range(2):
        own = each[2 * b : 2 * b + 2]
        firsts = {next(iter(texts)) for texts in own}
        assert set(list(found[b])[: len(firsts)]) == firsts
        for text, probability in found[b].items():
            said = [texts[text] for texts in own if next(iter(texts)) == text] or [texts[text] for texts in own if text in texts]
            assert probability == pytest.approx(max(said), abs=0.05)


def test_whole_matrices_are_read_as_their_factors_are(host):
    together, _ = facts(host, 2, 2, seed=5)
    decoder = changed_decoder(host, apart=True)
    factors, whole = (decoder.read(edits, **SEARCH) for edits in (together, applied(together, host.weight_DF(LAYER))))
    assert factors.tokens == whole.tokens and torch.allclose(factors.probability_BK, whole.probability_BK, atol=1e-3)


def test_an_edit_of_one_fact_is_read_as_it_is(host):
    _, alone = facts(host, 3, 1)
    plain, apart = (changed_decoder(host, apart=apart).read(alone, **SEARCH) for apart in (False, True))
    assert [set(map(tuple, ids)) for ids in plain.tokens] == [set(map(tuple, ids)) for ids in apart.tokens]
    assert plain.tokens[0][0] == apart.tokens[0][0] and torch.allclose(plain.first_BV, apart.first_BV, atol=1e-3)


def said(host, *parts):
    """A reader of parts that say texts with probabilities, and how many parts it was asked about."""
    asked = []

    def read(edits):
        asked.append(len(edits))
        tokens = [[host.object_ids(text) for text in part] for part in parts]
        first_NV = torch.arange(len(parts))[:, None] * torch.ones(1, 4)
        return Beams(tokens, torch.tensor([list(part.values()) for part in parts]), first_NV)

    return read, asked


def test_answers_of_parts_come_first_and_a_text_counts_once(host):
    together, _ = facts(host, 1, 3)
    read, _ = said(host, {"red": 0.5, "green": 0.4}, {"blue": 0.9, "red": 0.6}, {"blue": 0.2, "Oslo": 0.1})
    found = read_apart(host, LayerEdits({LAYER: together}), read)
    # "red" is a part's answer, which is more than what another one says beside its own; "green" is no answer, however probable.
    assert object_texts(host, found) == [pytest.approx({"blue": 0.9, "red": 0.5, "green": 0.4, "Oslo": 0.1})]
    assert list(object_texts(host, found)[0]) == ["blue", "red", "green", "Oslo"]
    assert found.first_BV[0, 0] == 1


def test_a_host_that_comes_again_is_read_once(host):
    together, _ = facts(host, 2, 2)
    again = LayerEdits({LAYER: together[torch.tensor([0, 0, 1, 1, 1])]})
    read, asked = said(host, {"red": 0.5}, {"blue": 0.4}, {"Oslo": 0.3}, {"Rome": 0.2})
    found = read_apart(host, again, read)
    assert asked == [4]
    assert [list(texts) for texts in object_texts(host, found)] == [["red", "blue"]] * 2 + [["Oslo", "Rome"]] * 3


def test_hosts_of_fewer_parts_say_no_more_than_they_do(host):
    together, _ = facts(host, 2, 2)
    together.value_BRD[1, 1] = 0
    read, _ = said(host, {"red": 0.5}, {"blue": 0.4}, {"Oslo": 0.3})
    found = read_apart(host, LayerEdits({LAYER: together}), read)
    assert object_texts(host, found)[1] == pytest.approx({"Oslo": 0.3}) and found.probability_BK.shape == (2, 2)


def test_a_fact_that_is_spread_over_layers_is_one_part(host):
    together, alone = facts(host, 1, 3)
    other = LowRankEdit(sparse(3, host.mlp_size(LAYER), 9)[None], 0.5 * together.value_BRD[:, [2, 0, 1]])
    parts = parts_of(host, LayerEdits({LAYER: together, 2: other}))
    assert parts.layers == [LAYER, 2] and len(parts) == 3
    upper, lower = (normalize(parts.by_layer[layer].value_BD, dim=1) for layer in (LAYER, 2))
    assert ((upper * lower).sum(1).abs() > 0.95).all()
    assert torch.allclose(parts.by_layer[2].value_BD.T @ parts.by_layer[2].key_BF, other.delta()[0], atol=1e-4)
