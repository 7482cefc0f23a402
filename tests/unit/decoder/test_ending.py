"""Where objects end on a host without a terminator: the regression, the search with an end, and what is said of its answers.

Shape letters: N states, D hidden width, V vocabulary, B edits, T object tokens.
"""

import math

import pytest
import torch
from changed_decoders import FACTS, changed_decoder
from decoder_twins import IDS_BT, LAYER, B, decoder_on, put_in
from torch import nn
from transformers import DynamicCache

from decoder import model
from decoder.answers import object_texts, read_batch
from decoder.audit.decoded.answer import answer
from decoder.batch import EditBatch
from decoder.ending import Ending, fit_ending, inside_words, word_ends
from decoder.export.opened import Voters
from decoder.export.save import load_decoder, save_decoder
from decoder.scores import exact_match

INSIDE = torch.tensor([False, True, True, False, False, True, False])


def drawn_states(count: int = 60, width: int = 5) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """States whose first entry says, with some noise, whether an object ends; every object has two."""
    generator = torch.Generator().manual_seed(0)
    state_ND = torch.randn(count, width, generator=generator) * torch.tensor([1.0, 10.0, 0.1, 1.0, 1.0]) + 3
    ended_N = state_ND[:, 0] + 0.5 * torch.randn(count, generator=generator) > 3
    return state_ND, ended_N, [n // 2 for n in range(count)]


def test_the_regression_has_no_slope_left_at_one_of_its_ridges():
    state_ND, ended_N, objects = drawn_states()
    word_N = torch.randn(60, generator=torch.Generator().manual_seed(2))
    ending = fit_ending(state_ND, word_N, ended_N, objects, INSIDE)
    state_ND = torch.cat([state_ND, word_N.unsqueeze(1)], 1)
    weights = torch.cat([ending.weight_D, ending.word_weight.view(1)]).double()
    mean_D, scale_D = state_ND.double().mean(0), state_ND.double().std(0, unbiased=False)
    scale_D[-1] /= 10
    weight_D = (weights * scale_D).requires_grad_()
    bias = (ending.bias.double() + weights @ mean_D).requires_grad_()
    logit_N = (state_ND.double() - mean_D) / scale_D @ weight_D + bias
    loss = nn.functional.binary_cross_entropy_with_logits(logit_N, ended_N.double())
    slope_D, slope = torch.autograd.grad(loss, (weight_D, bias))
    assert abs(float(slope)) < 1e-4
    ridge = -slope_D / weight_D
    assert min((ridge / known - 1).abs().max() for known in (1e-4, 1e-3, 1e-2, 1e-1)) < 0.05
    assert ((logit_N > 0) == ended_N).float().mean() > 0.75, "a coin gives 0.5"


def test_the_ridge_is_chosen_on_objects_that_were_left_out():
    """Sixty states that name their object, not whether it ends: only a strong ridge does no harm on others."""
    state_ND = torch.eye(30).repeat_interleave(2, 0) + 0.01 * torch.randn(60, 30, generator=torch.Generator().manual_seed(0))
    ended_N = (torch.rand(30, generator=torch.Generator().manual_seed(1)) < 0.5).repeat_interleave(2)
    ending = fit_ending(state_ND, torch.zeros(60), ended_N, [n // 2 for n in range(60)], INSIDE)
    assert (state_ND @ ending.weight_D + ending.bias).sigmoid().sub(ended_N.float()).abs().min() > 0.05, "it has learnt no object by heart"


def test_the_end_is_one_more_token():
    ending = Ending(4, INSIDE)
    ending.weight_D.copy_(torch.tensor([1.0, -1.0, 0.0, 2.0]))
    ending.bias.fill_(0.5)
    ending.word_weight.fill_(0.25)
    logits_NV, state_ND = torch.randn(3, 7), torch.randn(3, 4)
    inside_N = logits_NV.softmax(-1)[:, INSIDE].sum(1)
    odds_N = ((1 - inside_N) / inside_N).log()
    chance_NV = ending.with_end(logits_NV, state_ND).exp()
    torch.testing.assert_close(chance_NV.sum(1), torch.ones(3))
    torch.testing.assert_close(chance_NV[:, -1], (state_ND @ ending.weight_D + 0.25 * odds_N + 0.5).sigmoid())
    torch.testing.assert_close(chance_NV[:, :-1] / (1 - chance_NV[:, -1:]), logits_NV.softmax(-1))


def test_a_vocabulary_without_pieces_of_words_gives_no_infinity():
    logits_NV = torch.randn(2, 7)
    assert word_ends(logits_NV, torch.zeros(7, dtype=torch.bool)).tolist() == [15.0, 15.0]
    assert word_ends(logits_NV, torch.ones(7, dtype=torch.bool)).tolist() == [-15.0, -15.0]


def test_pieces_that_go_on_within_a_word(fact_host):
    """The pocket's byte-pair tokenizer has both kinds; `▁` is how it writes a space."""
    names = {id: token for token, id in fact_host.tokenizer.get_vocab().items()}
    inside = {names[id] for id in inside_words(fact_host).nonzero().flatten().tolist()}
    assert len(inside) > 50 and fact_host.tokenizer.pad_token not in inside
    assert not [name for name in inside if name.startswith("▁")] and len([name for name in names.values() if name.startswith("▁")]) > 50


@pytest.fixture(params=["llama", "gpt2", "gemma2", "opt"])
def endless(request, new_host):
    return new_host(request.param, terminator=None)


def test_the_probability_of_an_answer_is_that_of_its_tokens_and_its_end(endless, random_edits, in_place):
    """Every beam against one edit written into the weights, token by token, with the host's own last states."""
    edits, decoder = random_edits(endless, B), decoder_on(endless, [LAYER])
    decoder.learn_end(edits, IDS_BT)
    assert decoder.end_id == len(endless.unembedding_VD)
    found = decoder.read(edits, beams=3, max_object_tokens=4)
    assert any(len(ids) < 4 for objects in found.tokens for ids in objects), "some object ends before it must"
    for b in range(B):
        for ids, probability in zip(found.tokens[b], found.probability_BK[b].tolist(), strict=True):
            assert probability == pytest.approx(math.exp(log_probability(decoder, in_place, edits, b, ids, most=4)), rel=1e-3)


def log_probability(decoder, in_place, edits, b: int, ids: list[int], most: int) -> float:
    twin = in_place(decoder.host, edits, b, LAYER)
    own = list(twin.blocks)
    put_in(decoder, twin)
    cache, states = DynamicCache(), []
    twin.model.get_output_embeddings().register_forward_pre_hook(lambda module, args: states.append(args[0][0, -1]))
    logits_V = twin.model(inputs_embeds=decoder.prompt_MD.unsqueeze(0), **twin.with_cache(cache)).logits[0, -1]
    for layer, block in enumerate(own):
        twin.blocks[layer] = block
    total, inside_V = 0.0, inside_words(decoder.host)
    for place, token in enumerate(ids, 1):
        total += float(logits_V.log_softmax(-1)[token])
        logits_V = twin.model(torch.tensor([[token]]), **twin.with_cache(cache)).logits[0, -1]
        end = states[-1] @ decoder.ending.weight_D + decoder.ending.word_weight * word_ends(logits_V, inside_V) + decoder.ending.bias
        # Even the longest object has to end.
        total += float(nn.functional.logsigmoid(end if place == len(ids) else -end))
    assert len(ids) <= most
    return total


def test_scores_predictions_and_an_audit_say_the_same_of_an_answer(endless, random_edits, tmp_path):
    edits, decoder = random_edits(endless, B), changed_decoder(endless)
    decoder.learn_end(edits, IDS_BT)
    search = {"beams": 3, "max_object_tokens": 2}
    texts = object_texts(endless, decoder.read(edits, **search))
    right = [endless.object_ids(next(iter(objects))) for objects in texts]
    ids_BT = torch.nn.utils.rnn.pad_sequence([torch.tensor(right[0]), IDS_BT[1], torch.tensor(right[2])], True, padding_value=-100)
    readings = read_batch(endless, decoder.read(edits, **search), EditBatch(edits, ids_BT, torch.arange(B)))
    assert [reading.exact_match for reading in readings] == [True, False, True]
    save_decoder(tmp_path / "decoder", decoder, FACTS)
    again = load_decoder(tmp_path / "decoder", endless)
    for b, reading in enumerate(readings):
        told = answer(Voters([again], [FACTS | {"host": {"id": "tiny"}, "edited_layer": LAYER}]), edits[b], top=1)["objects"][0]
        assert told == {"text": reading.predicted, "probability": pytest.approx(reading.probability, rel=1e-5)}
        assert reading.exact_match == exact_match(told["text"], endless.tokenizer.decode([i for i in ids_BT[b].tolist() if i >= 0]))


def test_edits_side_by_side_teach_the_same_end_as_one_by_one(endless, random_edits, monkeypatch):
    """Objects of one token, and of several, in no order: padding, and who lies beside whom, are of no account."""
    lengths = [3, 1, 2, 1, 1, 3, 2, 1]
    ids_BT = torch.full((len(lengths), 4), -100)
    for b, length in enumerate(lengths):
        ids_BT[b, :length] = 3 + 4 * b + torch.arange(length)
    edits, fitted = random_edits(endless, len(lengths)), []

    def kept(state_ND, word_ends_N, ended_N, object_N, inside_V):
        rows = torch.cat([state_ND, word_ends_N.unsqueeze(1), ended_N.unsqueeze(1), torch.tensor(object_N).unsqueeze(1)], dim=1)
        fitted.append(rows[rows[:, 0].argsort()])

    monkeypatch.setattr(model, "fit_ending", kept)
    for chunk in (1, 3, 64):
        monkeypatch.setattr(model, "CHUNK", chunk)
        decoder_on(endless, [LAYER]).learn_end(edits, ids_BT)
    # Slow twin: an edit by itself, and its object as it stands in its row.
    alone = []
    for b, length in enumerate(lengths):
        decoder_on(endless, [LAYER]).learn_end(edits[b], ids_BT[b : b + 1, :length])
        alone.append(fitted.pop())
        alone[-1][:, -1] = b
    torch.testing.assert_close(fitted[0], torch.cat(alone)[torch.cat(alone)[:, 0].argsort()], rtol=1e-4, atol=1e-4)
    for other in fitted[1:]:
        torch.testing.assert_close(fitted[0], other, rtol=1e-4, atol=1e-4)


def test_a_host_with_a_terminator_learns_no_end(host_of, random_edits):
    host = host_of("llama")
    decoder = decoder_on(host)
    decoder.learn_end(random_edits(host, B), IDS_BT)
    assert decoder.ending is None and decoder.end_id == host.terminator_id


def test_a_decoder_that_was_exported_before_ends_could_be_learnt_reads_as_it_did(endless, random_edits, tmp_path):
    decoder = changed_decoder(endless)
    save_decoder(tmp_path / "decoder", decoder, FACTS)
    edits = random_edits(endless, B)
    found = load_decoder(tmp_path / "decoder", endless).read(edits, beams=2, max_object_tokens=3)
    assert {len(ids) for objects in found.tokens for ids in objects} == {3}
    assert found.tokens == decoder.read(edits, beams=2, max_object_tokens=3).tokens
