"""Edits at a decoder's own key, against what the formulas say one edit at a time.

Shape letters: B edits, N training edits, K tokens, D hidden width, F MLP width.
"""

import pytest
import torch
from changed_decoders import CARD, FACTS, LAYER, changed_decoder
from tiny_hosts import build_host
from torch.nn.functional import normalize

from data.keys.probe import vocabulary_keys
from decoder.checkpoint.rounding import int4, int8, q8_0
from decoder.dense import DenseEdit, applied
from decoder.edit import LayerEdits, LowRankEdit, RankOneEdit
from decoder.export.save import load_decoder, read_config, save_decoder
from decoder.parts.rekey import CLEAR, RIDGE, OwnKey, OwnKeys, _whitened
from decoder.parts.spectrum import terms

SEARCH = {"beams": 3, "max_object_tokens": 2}


@pytest.fixture(scope="module")
def host():
    return build_host("llama")


@pytest.fixture(scope="module")
def usual_KF(host):
    return vocabulary_keys(host, LAYER)


def edits_of(host, usual_KF, count, seed):
    """Edits whose keys are whitened keys of tokens, as ROME's are of subjects."""
    generator = torch.Generator().manual_seed(seed)
    token_B = torch.randperm(len(usual_KF), generator=generator)[:count]
    moment_FF = usual_KF.T @ usual_KF / len(usual_KF)
    ridge_FF = 1e-2 * torch.linalg.eigvalsh(moment_FF)[-1] * torch.eye(len(moment_FF))
    # Subjects have more in common than the tokens of a host that was never trained.
    key_BF = torch.linalg.solve(moment_FF + ridge_FF, usual_KF[token_B].T).T
    key_BF = key_BF + 0.3 * key_BF.norm(dim=1, keepdim=True) * normalize(usual_KF.mean(0), dim=0)
    return RankOneEdit(key_BF, torch.randn(count, host.hidden_size, generator=generator))


@pytest.fixture(scope="module")
def keys(host, usual_KF):
    return OwnKeys.learnt(LayerEdits({LAYER: edits_of(host, usual_KF, 40, 0)}), {LAYER: usual_KF})


def plain_sign(key_F, usual_KF):
    moment_FF = usual_KF.double().T @ usual_KF.double() / len(usual_KF)
    ridge = RIDGE * torch.linalg.eigvalsh(moment_FF)[-1]
    answers = []
    for usual_F in usual_KF.double():
        whitened_F = torch.linalg.solve(moment_FF + ridge * torch.eye(len(moment_FF), dtype=torch.float64), usual_F)
        answers.append(float(key_F.double() @ whitened_F / whitened_F.norm()))
    mean = sum(answers) / len(answers)
    return 1.0 if sum((answer - mean) ** 3 for answer in answers) >= 0 else -1.0


def of(keys, host, edit):
    return keys.of(LayerEdits({LAYER: edit}), host).by_layer[LAYER]


def test_a_value_keeps_its_direction_and_has_the_length_of_training_edits(host, usual_KF, keys):
    training, edits = edits_of(host, usual_KF, 40, 0), edits_of(host, usual_KF, 5, 1)
    mean_F = normalize(torch.stack([key_F / key_F.norm() for key_F in training.key_BF]).mean(0), dim=0)
    lengths = [value_D.norm() * (key_F @ mean_F) for key_F, value_D in zip(training.key_BF, training.value_BD, strict=True)]
    cosines = sorted(abs(float(torch.cosine_similarity(key_F, mean_F, dim=0))) for key_F in training.key_BF)
    clear = float(torch.tensor(cosines).quantile(CLEAR))
    # One that the direction in common tells, and one that it does not.
    edits.key_BF[0] += edits.key_BF[0].norm() * mean_F
    edits.key_BF[1] -= (edits.key_BF[1] @ mean_F) * mean_F
    found = of(keys, host, edits)
    for b in range(len(edits)):
        cosine = float(torch.cosine_similarity(edits.key_BF[b], mean_F, dim=0))
        sign = plain_sign(edits.key_BF[b], usual_KF) if abs(cosine) < clear else 1.0 if cosine > 0 else -1.0
        value_D = sign * edits.value_BD[b] / edits.value_BD[b].norm() * torch.stack(lengths).median()
        torch.testing.assert_close(found.value_BD[b], value_D, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(found.key_BF[b], mean_F, rtol=1e-3, atol=1e-4)


def test_neither_the_signs_nor_the_lengths_of_factors_count(host, usual_KF, keys):
    edits = edits_of(host, usual_KF, 6, 1)
    turned = RankOneEdit(-0.1 * edits.key_BF, -30 * edits.value_BD)
    torch.testing.assert_close(of(keys, host, turned).value_BD, of(keys, host, edits).value_BD)


def test_keys_point_to_what_subjects_answer_to(host, usual_KF, keys):
    edits = edits_of(host, usual_KF, 60, 2)
    assert (keys.by_layer[str(LAYER)].sign(edits.key_BF) > 0).float().mean() > 0.9
    assert torch.equal(keys.by_layer[str(LAYER)].sign(-edits.key_BF), -keys.by_layer[str(LAYER)].sign(edits.key_BF))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_whole_matrices_are_read_as_their_factors_are(host, usual_KF, keys, dtype):
    edits = edits_of(host, usual_KF, 3, 3)
    whole = DenseEdit(applied(edits, host.weight_DF(LAYER)).weight_BDF.to(dtype))
    found, expected = of(keys, host, whole), of(keys, host, edits)
    assert isinstance(found, RankOneEdit)
    cosine_B = torch.cosine_similarity(found.value_BD, expected.value_BD)
    assert cosine_B.min() > (0.99 if dtype == torch.bfloat16 else 0.9999)


def test_edits_of_several_terms_stay_where_they_are_whatever_is_beside_them(host, usual_KF, keys):
    one, other = edits_of(host, usual_KF, 2, 4), edits_of(host, usual_KF, 2, 5)
    both = LowRankEdit(torch.stack([one.key_BF, other.key_BF], 1), torch.stack([one.value_BD, other.value_BD], 1))
    both.value_BRD[0, 1], both.key_BRF[0, 1] = 0, 0
    before = [part.clone() for part in (both.key_BRF, both.value_BRD)]
    alone = of(keys, host, one[:1])
    found = of(keys, host, both)
    torch.testing.assert_close(found.value_BRD[0, 0], alone.value_BD[0])
    assert torch.equal(found.value_BRD[1], both.value_BRD[1]) and torch.equal(found.key_BRF[1], both.key_BRF[1])
    assert all(torch.equal(part, was) for part, was in zip((both.key_BRF, both.value_BRD), before, strict=True)), (
        "the edit was written over"
    )
    weight_DF = host.weight_DF(LAYER)
    whole = of(keys, host, applied(both, weight_DF))
    torch.testing.assert_close(whole.weight_BDF[0], applied(alone, weight_DF).weight_BDF[0], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(whole.weight_BDF[1], applied(both, weight_DF).weight_BDF[1])
    assert of(keys, host, applied(both[1:], weight_DF)).weight_BDF.equal(applied(both[1:], weight_DF).weight_BDF)


def test_what_is_a_hundredth_of_an_edit_is_hardly_read(host, usual_KF, keys):
    edits = edits_of(host, usual_KF, 3, 1)
    usual = float(edits_of(host, usual_KF, 40, 0).delta().flatten(1).norm(dim=1).median())
    for share, left in ((0.5, 1.0), (0.01, 0.1), (0.0, 0.0)):
        faint = RankOneEdit(edits.key_BF, share * usual * edits.value_BD / edits.norm()[:, None])
        lengths_B = of(keys, host, faint).value_BD.norm(dim=1)
        torch.testing.assert_close(lengths_B, left * of(keys, host, edits).value_BD.norm(dim=1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rounded", [int8, q8_0, int4])
def test_what_rounding_in_blocks_leaves_is_no_term(rounded):
    generator = torch.Generator().manual_seed(0)
    weight_DF = torch.randn(128, 384, generator=generator) * torch.rand(128, 1, generator=generator)
    key_BF = torch.randn(4, 384, generator=generator) + torch.randn(1, 384, generator=generator)
    edits = RankOneEdit(key_BF, torch.randn(4, 128, generator=generator))
    edits = RankOneEdit(edits.key_BF, edits.value_BD * (0.33 * weight_DF.norm() / edits.norm())[:, None])
    own = OwnKey.learnt(edits, torch.randn(500, 384, generator=generator))
    whole = DenseEdit(rounded(applied(edits, weight_DF).weight_BDF))
    found = own.of(whole, weight_DF)
    assert isinstance(found, RankOneEdit)
    assert torch.cosine_similarity(found.value_BD, own.of(edits, weight_DF).value_BD).min() > 0.999
    if rounded is not int4:
        assert [one.key_BRF.shape[1] for one in terms(whole, weight_DF)] == [1] * 4
    nothing = own.of(DenseEdit(rounded(weight_DF[None])), weight_DF)
    assert not isinstance(nothing, RankOneEdit) or nothing.value_BD.norm() < 0.7 * own.length


def test_a_matrix_that_nobody_edited_has_nothing_at_the_key(host, keys):
    found = of(keys, host, DenseEdit(host.weight_DF(LAYER).clone()[None]))
    assert found.value_BD.abs().max() == 0


def test_nothing_is_learnt_of_edits_that_are_no_rank_one(host, usual_KF):
    edits = edits_of(host, usual_KF, 4, 0)
    assert OwnKeys.learnt(LayerEdits({LAYER: applied(edits, host.weight_DF(LAYER))}), {LAYER: usual_KF}) is None


@pytest.mark.parametrize("count", [1, 20, 40, 400])
def test_nothing_is_learnt_of_keys_that_have_nothing_in_common(count):
    """The mean of few keys that were drawn is no short one."""
    generator = torch.Generator().manual_seed(0)
    usual_KF, key_BF = torch.randn(300, 1500, generator=generator), torch.randn(count, 1500, generator=generator)
    value_BD = torch.randn(count, 32, generator=generator)
    assert OwnKey.learnt(RankOneEdit(key_BF, value_BD), usual_KF) is None
    learnt = OwnKey.learnt(RankOneEdit(key_BF + 0.5 * usual_KF[:1], value_BD), usual_KF)
    assert count == 1 or torch.cosine_similarity(learnt.key_F, usual_KF[0], dim=0) > 0.8


def test_keys_of_any_length_are_read(host, usual_KF, keys):
    edits = edits_of(host, usual_KF, 6, 1)
    short = RankOneEdit(1e-14 * edits.key_BF, 1e14 * edits.value_BD)
    torch.testing.assert_close(of(keys, host, short).value_BD, of(keys, host, edits).value_BD)


def test_few_keys_of_a_wide_matrix_are_whitened_as_many_are():
    key_KF = torch.randn(30, 50, generator=torch.Generator().manual_seed(0))
    moment_FF = key_KF.double().T @ key_KF.double() / 30
    moment_FF += RIDGE * torch.linalg.eigvalsh(moment_FF)[-1] * torch.eye(50)
    expected_KF = normalize(torch.linalg.solve(moment_FF, key_KF.double().T).T).float()
    torch.testing.assert_close(_whitened(key_KF), expected_KF)
    torch.testing.assert_close(_whitened(torch.cat([key_KF, key_KF])), torch.cat([expected_KF, expected_KF]))


def test_a_decoder_reads_values_whoever_their_keys_are_of(host, usual_KF):
    decoder, values_BD = changed_decoder(host), edits_of(host, usual_KF, 4, 6).value_BD
    one, other = (RankOneEdit(edits_of(host, usual_KF, 4, seed).key_BF, values_BD) for seed in (7, 8))
    ids_BT = torch.tensor([[5, 6]] * 4)
    before, in_place = decoder.forward(one, ids_BT), decoder.read(one, **SEARCH)
    assert not torch.allclose(in_place.probability_BK, decoder.read(other, **SEARCH).probability_BK, atol=1e-4)
    decoder.learn_keys(edits_of(host, usual_KF, 40, 0), {LAYER: usual_KF})
    found = decoder.read(one, **SEARCH)
    assert torch.allclose(found.probability_BK, decoder.read(other, **SEARCH).probability_BK, atol=1e-5)
    assert torch.allclose(decoder.moved(one), decoder.moved(other), atol=1e-4)
    together, logits_NV, _ = decoder.read_and_scored(one, ids_BT, **SEARCH)
    assert together.tokens == found.tokens
    plain = changed_decoder(host)
    rekeyed = decoder.rekeyed(one)
    assert plain.read(rekeyed, **SEARCH).tokens == found.tokens
    torch.testing.assert_close(logits_NV, plain.scored(rekeyed, ids_BT)[0])
    # Training meets edits where they were made.
    torch.testing.assert_close(decoder.forward(one, ids_BT), before)


def test_an_exported_decoder_has_its_keys(host, usual_KF, tmp_path):
    decoder, edits = changed_decoder(host), edits_of(host, usual_KF, 4, 6)
    save_decoder(tmp_path / "before", decoder, FACTS)
    decoder.learn_keys(edits_of(host, usual_KF, 40, 0), {LAYER: usual_KF})
    save_decoder(tmp_path / "after", decoder, FACTS)
    assert read_config(tmp_path / "after")["own_key_tokens"] == len(usual_KF)
    found, expected = load_decoder(tmp_path / "after", host).read(edits, **SEARCH), decoder.read(edits, **SEARCH)
    assert found.tokens == expected.tokens and torch.equal(found.probability_BK, expected.probability_BK)
    assert load_decoder(tmp_path / "before", host).own_keys is None
    cards = [(tmp_path / name / CARD).read_text() for name in ("before", "after")]
    assert "| reads | matrices as they are |" in cards[0] and "| reads | edits of one term at its own key" in cards[1]
