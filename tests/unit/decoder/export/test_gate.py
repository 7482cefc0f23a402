"""Which of several decoders to believe, by how far edits move them and how sure they are.

Shape letters: B edits, K decoders, E features.
"""

import json

import numpy as np
import pytest
import torch
from changed_decoders import LAYER, M, changed_decoder
from scipy.special import softmax

from decoder.dense import applied
from decoder.edit import LayerEdits, RankOneEdit
from decoder.export.gate import FEATURES, Gate, evidence, fit_gate, seen
from decoder.model import ObjectDecoder
from decoder.utils.errors import UserError

NAMES, F = ("a", "b", "c"), len(FEATURES)


def drawn(count=240):
    """Edits of three kinds: each decoder reads one kind and is moved far by it alone, but is as sure of its answer as the others are."""
    generator = torch.Generator().manual_seed(0)
    kind_B = torch.arange(count) % 3
    right_BK = torch.nn.functional.one_hot(kind_B, 3).bool()
    moved_BK = torch.where(right_BK, 4.0, 2.0) * (1 + 0.1 * torch.randn(count, 3, generator=generator, dtype=torch.float64))
    probability_BK = torch.rand(count, 3, generator=generator, dtype=torch.float64)
    return seen(moved_BK.T, probability_BK.T), right_BK


def fitted(evidence_BE, right_BK, names=NAMES):
    return fit_gate(names, evidence_BE, right_BK, [f"edit {b}" for b in range(len(right_BK))])[0]


def test_the_decoder_that_reads_a_kind_of_edits_is_believed_there():
    evidence_BE, right_BK = drawn()
    old, new = slice(0, 120), slice(120, None)
    gate = fitted(evidence_BE[old], right_BK[old])
    chance_BK = gate.chances(evidence_BE[new])
    assert torch.allclose(chance_BK.sum(1), torch.ones(120, dtype=torch.float64))
    assert right_BK[new].gather(1, chance_BK.argmax(1, keepdim=True)).float().mean() > 0.98
    surest_B1 = evidence_BE[new][:, F - 1 :: F].argmax(1, keepdim=True)
    assert right_BK[new].gather(1, surest_B1).float().mean() < 0.5, "else there was nothing to learn"


def test_what_nobody_reads_teaches_nothing_and_of_several_that_read_none_is_preferred():
    evidence_BE, right_BK = drawn()
    gate, lost_BK = fitted(evidence_BE, right_BK), right_BK.clone()
    lost_BK[::5] = False
    kept = fitted(evidence_BE[lost_BK.any(1)], lost_BK[lost_BK.any(1)])
    assert np.allclose(fitted(evidence_BE, lost_BK).weight_KE, kept.weight_KE)
    both = fitted(evidence_BE, torch.stack([right_BK[:, 0], right_BK[:, 0], ~right_BK[:, 0]], 1))
    chance_BK = both.chances(evidence_BE[right_BK[:, 0]])
    assert chance_BK[:, :2].sum(1).min() > 0.9 and torch.allclose(chance_BK[:, 0], chance_BK[:, 1], atol=1e-3)
    assert gate.chances(evidence_BE).max(1).values.mean() > 0.9


def test_the_chances_are_a_softmax_of_linear_maps():
    """The slow twin: weights of standardised features were folded into weights of features as they come."""
    evidence_BE, right_BK = drawn()
    gate = fitted(evidence_BE, right_BK)
    for b in range(5):
        rows = zip(gate.weight_KE, gate.bias_K, strict=True)
        scores = [sum(w * x for w, x in zip(row, evidence_BE[b].tolist(), strict=True)) + bias for row, bias in rows]
        assert gate.chances(evidence_BE)[b].tolist() == pytest.approx(softmax(scores).tolist())


def test_a_gate_is_kept_in_a_file_and_follows_the_order_of_its_decoders(tmp_path):
    evidence_BE, right_BK = drawn()
    gate = fitted(evidence_BE, right_BK)
    gate.save(tmp_path / "gate.json")
    again = Gate.load(tmp_path / "gate.json").of(["c", "a", "b"])
    moved_BE = evidence_BE.view(-1, 3, F)[:, [2, 0, 1]].flatten(1)
    assert torch.allclose(again.chances(moved_BE), gate.chances(evidence_BE)[:, [2, 0, 1]])
    with pytest.raises(UserError, match="the gate is of 3 decoders, 2 came, 1 of them unknown to it. .*python -m data.gate"):
        gate.of(["a", "d"])


def test_an_edit_counts_once_however_many_stores_have_it():
    evidence_BE, right_BK = drawn(60)
    edits = [f"edit {b % 20}" for b in range(60)]
    right_BK = right_BK & torch.tensor([edit in ("edit 1", "edit 2") for edit in edits]).unsqueeze(1)
    with pytest.raises(ValueError, match="2 of 20 validation edits are read by any of 3 decoders, expected 5"):
        fit_gate(NAMES, evidence_BE, right_BK, edits)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"bias": [0.0]}, "3 decoders, but 3 rows of weights and 1 biases; fit the gate again"),
        ({"weight": [[0.0]] * 3}, "fit the gate again"),
        ({"weight": "none"}, "weight is 'none', expected"),
        ({"format": 2}, "format 2, this version reads 1"),
        ({"decoders": ["a"]}, "fit the gate again"),
    ],
)
def test_a_damaged_gate_is_refused(changed, said, tmp_path):
    gate = fitted(*drawn())
    gate.save(tmp_path / "gate.json")
    told = json.loads((tmp_path / "gate.json").read_text(encoding="utf-8"))
    (tmp_path / "gate.json").write_text(json.dumps(told | changed), encoding="utf-8")
    with pytest.raises(ValueError, match=said):
        Gate.load(tmp_path / "gate.json")
    for name, came in (("other.json", "no such file"), (".", "is a folder")):
        with pytest.raises(ValueError, match=f"{came}; expected a file that"):
            Gate.load(tmp_path / name)


def test_a_gate_needs_decoders_and_edits_that_they_read():
    evidence_BE, right_BK = drawn()
    with pytest.raises(ValueError, match="80 of 240 validation edits are read by any of 1 decoders, expected 5 edits or more, and two"):
        fitted(evidence_BE[:, :F], right_BK[:, :1], ("a",))
    with pytest.raises(ValueError, match="0 of 240 .* read by any of 3 decoders.* Give stores of the editors"):
        fitted(evidence_BE, torch.zeros_like(right_BK))


def test_what_is_said_of_a_gate_is_of_edits_that_were_left_out():
    """Evidence that says nothing: a gate fits it a little, and is right by chance alone on what was left out."""
    generator = torch.Generator().manual_seed(1)
    noise_BE = torch.randn(24, 3 * F, generator=generator, dtype=torch.float64)
    right_BK = torch.nn.functional.one_hot(torch.randint(3, (24,), generator=generator), 3).bool()
    gate, hits_B = fit_gate(NAMES, noise_BE, right_BK, [f"edit {b}" for b in range(24)])
    in_sample_B = right_BK.gather(1, gate.chances(noise_BE).argmax(1, keepdim=True))
    assert hits_B.float().mean() < 0.5 < in_sample_B.float().mean()
    # An edit and its twins of other editors are left out together.
    twins_BE, twice_BK = noise_BE.repeat(2, 1), right_BK.repeat(2, 1)
    _, together_B = fit_gate(NAMES, twins_BE, twice_BK, [f"edit {b}" for b in range(24)] * 2)
    _, apart_B = fit_gate(NAMES, twins_BE, twice_BK, [f"edit {b}" for b in range(48)])
    assert together_B.float().mean() < min(0.45, float(apart_B.float().mean()))


def last_state(host, prompt_MD):
    """The slow twin: where a decoder's prompt ends on a host that has its edit in its weights, or none."""
    seen = []
    decoder = changed_decoder(host, prompt_MD=prompt_MD)
    hook = host.model.get_output_embeddings().register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad(), decoder._trained_in_place():
        host.model(inputs_embeds=prompt_MD.unsqueeze(0).to(host.dtype), use_cache=False)
    hook.remove()
    return seen[0].flatten(0, -2)[-1]


def test_evidence_is_how_far_edits_move_a_prompts_last_state_and_how_sure_answers_are(any_host, random_edits, in_place):
    prompt_MD = torch.randn(M, any_host.hidden_size)
    decoder, edits = changed_decoder(any_host, prompt_MD=prompt_MD), random_edits(any_host, 3)
    found = decoder.read(edits, beams=2, max_object_tokens=2)
    moved_B, probability_B, sure_B = evidence([decoder], edits, [found]).T
    assert torch.equal(probability_B, sure_B.clamp(min=1e-4).log()) and (sure_B >= found.probability_BK[:, 0].double() - 1e-9).all()
    clean_D = last_state(any_host, prompt_MD)
    expected = [float((last_state(in_place(any_host, edits, b, LAYER), prompt_MD) - clean_D).norm()) for b in range(3)]
    assert moved_B.exp().tolist() == pytest.approx(expected, rel=2e-3, abs=1e-4)
    silent = RankOneEdit(edits.key_BF[:1], 0 * edits.value_BD[:1])
    assert decoder.moved(silent).item() == pytest.approx(0, abs=1e-5)


def test_edits_that_come_first_on_a_host_and_whole_matrices_move_a_decoder_as_ever(new_host, random_edits):
    host = new_host("llama")
    decoder, edits = changed_decoder(host), random_edits(host, 3)
    moved_B = decoder.moved(edits)
    assert moved_B.tolist() == pytest.approx(decoder.moved(applied(edits, host.weight_DF(LAYER))).tolist(), rel=1e-3)
    both = ObjectDecoder(host, edited_layers=[0, LAYER], trained_layers=[2], prompt_MD=torch.randn(M, 32))
    silent = RankOneEdit(edits.key_BF, 0 * edits.value_BD)
    only = ObjectDecoder(host, edited_layers=[LAYER], trained_layers=[2], prompt_MD=both.prompt_MD)
    assert both.moved(LayerEdits({0: silent, LAYER: edits})).tolist() == pytest.approx(only.moved(edits).tolist(), rel=1e-4)
