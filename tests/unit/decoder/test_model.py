"""The decoder's two passes against slow twins: one edit at a time, written into the weights, no batch.

Shape letters: B edits, M prompt vectors, T object tokens, D hidden width, V vocabulary.
"""

import pytest
import torch
from decoder_twins import CLOSE, IDS_BT, LAYER, B, M, decoder_on, plain_logits, twin_logits
from torch import nn

from decoder.dense import DenseEdit, applied
from decoder.ending import inside_words
from decoder.model import ObjectDecoder
from decoder.training.losses import object_loss


@pytest.mark.parametrize("scope", ["prompt", "all"])
def test_untrained_equals_one_plain_pass(any_host, random_edits, in_place, scope):
    edits = random_edits(any_host, B)
    decoder = decoder_on(any_host, [1], changed=False, scope=scope)
    torch.testing.assert_close(decoder(edits, IDS_BT), plain_logits(decoder, in_place, edits, IDS_BT), **CLOSE)
    assert (decoder(edits, IDS_BT)[0, 0] - decoder(edits, IDS_BT)[1, 0]).abs().max() > 0.01, "edits must differ"


def test_without_a_trained_layer_it_is_plain_generate(any_host, random_edits, in_place):
    """The prompt is a text's own embeddings, so that the library's own decoding of an edited model is the twin."""
    ids_1T = torch.tensor([[3, 8, 5, 11]])
    edits = random_edits(any_host, B)
    prompt_MD = any_host.model.get_input_embeddings()(ids_1T)[0]
    decoder = ObjectDecoder(any_host, edited_layers=[LAYER], trained_layers=[], prompt_MD=prompt_MD)
    for b in range(B):
        twin = in_place(any_host, edits, b, LAYER)
        twin.model.generation_config.eos_token_id = None
        settings = {"do_sample": False, "max_new_tokens": 4, "use_cache": False}
        said_1T = twin.model.generate(ids_1T, attention_mask=torch.ones_like(ids_1T), **settings)[:, 4:]
        assert torch.equal(decoder(edits, said_1T.expand(B, -1))[b].argmax(-1), said_1T[0])


@pytest.mark.parametrize("layers", [[0], [1], [2], [0, 1]], ids=str)
def test_trained_layer_acts_on_the_prompt_only(any_host, random_edits, in_place, layers):
    edits = random_edits(any_host, B)
    decoder = decoder_on(any_host, layers)
    found_BTV = decoder(edits, IDS_BT)
    torch.testing.assert_close(found_BTV, twin_logits(decoder, in_place, edits, IDS_BT), **CLOSE)
    one_pass_BTV = plain_logits(decoder, in_place, edits, IDS_BT, trained=True)
    assert (found_BTV - one_pass_BTV)[:, 1:].abs().max() > 0.01, "the trained layer must matter on object tokens"


@pytest.mark.parametrize("layers", [[0], [1], [2], [0, 1]], ids=str)
def test_scope_all_is_one_pass_with_the_trained_layer(any_host, random_edits, in_place, layers):
    edits = random_edits(any_host, B)
    decoder = decoder_on(any_host, layers, scope="all")
    torch.testing.assert_close(decoder(edits, IDS_BT), plain_logits(decoder, in_place, edits, IDS_BT, trained=True), **CLOSE)


def test_first_token_needs_no_second_pass(host_of, random_edits):
    host = host_of("qwen3 window")
    decoder, edits = decoder_on(host, [2]), random_edits(host, B)
    torch.testing.assert_close(decoder(edits, IDS_BT[:, :1]), decoder(edits, IDS_BT)[:, :1], **CLOSE)


@pytest.mark.parametrize("scope", ["prompt", "all"])
@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("name", ["gpt2", "qwen3 window"])
def test_gradients_equal_those_of_the_plain_batch(host_of, random_edits, in_place, name, layer, scope):
    host = host_of(name)
    edits = random_edits(host, B)
    decoder = decoder_on(host, [layer], scope=scope)
    learnt = list(decoder.parameters())
    found = torch.autograd.grad(object_loss(decoder(edits, IDS_BT), IDS_BT), learnt)
    twin_BTV = twin_logits(decoder, in_place, edits, IDS_BT) if scope == "prompt" else plain_logits(decoder, in_place, edits, IDS_BT, True)
    expected = torch.autograd.grad(object_loss(twin_BTV, IDS_BT), learnt)
    assert found[0].abs().max() > 1e-3 and any(gradient.abs().max() > 1e-3 for gradient in found[1:])
    for gradient, twin in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, twin, rtol=1e-4, atol=1e-5)


def test_parameters_are_prompt_and_trained_layer_without_the_edited_matrix(any_host):
    decoder = decoder_on(any_host, [LAYER, 2])
    leaf = any_host.down_proj_path(2)
    names = set(decoder.state_dict())
    assert names == {name for name, _ in decoder.named_parameters()} | {name for name, _ in decoder.named_buffers() if name in names}
    assert "prompt_MD" in names and {name.split(".")[1] for name in names - {"prompt_MD", "prior_V"}} == {str(LAYER), "2"}
    assert not any(name.startswith(f"trained.{LAYER}.{any_host.down_proj_path(LAYER)}") for name in names)
    assert any(name.startswith(f"trained.2.{leaf}") for name in names)
    block = sum(parameter.numel() for parameter in any_host.blocks[LAYER].parameters())
    projection = sum(parameter.numel() for parameter in any_host.down_proj(LAYER).parameters())
    assert sum(parameter.numel() for parameter in decoder.parameters()) == decoder.prompt_MD.numel() + 2 * block - projection
    assert all(parameter.dtype == torch.float32 and parameter.requires_grad for parameter in decoder.parameters())


def test_training_changes_what_is_learnt_and_nothing_else(any_host, random_edits, weights_hash, hooks):
    decoder, edits = decoder_on(any_host, [LAYER], changed=False), random_edits(any_host, B)
    host, prompt_MD, own = weights_hash(any_host.model), decoder.prompt_MD.detach().clone(), list(any_host.blocks)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=1e-2)
    losses = []
    for _ in range(3):
        loss = object_loss(decoder(edits, IDS_BT), IDS_BT)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[2] < losses[0]
    assert weights_hash(any_host.model) == host and hooks(any_host.model) == 0
    assert all(found is block for found, block in zip(any_host.blocks, own, strict=True))
    assert all(parameter.grad is None for parameter in any_host.model.parameters())
    assert not torch.equal(decoder.prompt_MD, prompt_MD)
    trained, block = dict(decoder.trained[str(LAYER)].named_parameters()), dict(any_host.blocks[LAYER].named_parameters())
    assert trained and not any(torch.equal(trained[name], block[name]) for name in trained if trained[name].grad.any())
    assert any(parameter.grad.any() for parameter in trained.values())


def test_prompt_can_stay_fixed(host_of, random_edits):
    host = host_of("llama")
    decoder = decoder_on(host, [2], train_prompt=False)
    object_loss(decoder(random_edits(host, B), IDS_BT), IDS_BT).backward()
    assert decoder.prompt_MD.grad is None and decoder.trained["2"].mlp.up_proj.weight.grad is not None


def test_the_given_prompt_is_copied(host_of):
    prompt_MD = torch.zeros(M, 32)
    decoder = ObjectDecoder(host_of("llama"), edited_layers=[1], trained_layers=[], prompt_MD=prompt_MD)
    decoder.prompt_MD.data += 1
    assert not prompt_MD.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_dense_arithmetic_is_the_whole_matrix(new_host, random_edits, dtype):
    host = new_host("gpt2")
    host.model.to(dtype)
    edits = random_edits(host, B)
    whole = applied(edits, host.weight_DF(LAYER))
    assert isinstance(whole, DenseEdit) and whole.weight_BDF.dtype == dtype
    dense_BTV = decoder_on(host, arithmetic="dense")(edits, IDS_BT)
    assert torch.equal(dense_BTV, decoder_on(host)(whole, IDS_BT))
    assert not torch.equal(dense_BTV, decoder_on(host)(edits, IDS_BT)), "the two arithmetics round differently"


@pytest.mark.parametrize("layer", [0, LAYER])
def test_half_precision_host_with_a_trained_layer(new_host, random_edits, layer):
    host = new_host("llama")
    host.model.to(torch.bfloat16)
    decoder = decoder_on(host, [layer])
    loss = object_loss(decoder(random_edits(host, B), IDS_BT), IDS_BT)
    loss.backward()
    assert loss.isfinite() and all(parameter.dtype == parameter.grad.dtype == torch.float32 for parameter in decoder.parameters())


@pytest.mark.parametrize("scope", ["prompt", "all"])
def test_read_says_what_forward_scores(any_host, random_edits, scope):
    """The probability of every beam is the product of the teacher-forced ones: caches are reordered with their beams."""
    decoder, edits = decoder_on(any_host, [2], scope=scope), random_edits(any_host, B)
    end = any_host.terminator_id
    beams = decoder.read(edits, beams=4, max_object_tokens=3)
    assert beams.probability_BK.shape == (B, 4) and not beams.probability_BK.requires_grad
    for b, objects in enumerate(beams.tokens):
        for ids, probability in zip(objects, beams.probability_BK[b].tolist(), strict=True):
            logits_TV = decoder(edits[b], torch.tensor([[*ids, end]]))[0].detach()
            # An empty object is no answer: the first token is drawn from all but the terminator.
            logits_TV[0, end] = -torch.inf
            logprobs = logits_TV.log_softmax(-1)[range(len(ids) + 1), [*ids, end]]
            assert probability == pytest.approx(float(logprobs.sum().exp()), rel=1e-4)
    assert len({tuple(ids) for ids in beams.tokens[0]}) == 4
    assert torch.equal(beams.first_token_B, decoder(edits, IDS_BT)[:, 0].argmax(-1))


@torch.no_grad()
def test_the_prior_is_what_the_unedited_host_says(any_host, random_edits):
    decoder, edits = decoder_on(any_host, [LAYER, 2]), random_edits(any_host, B)
    first_BV = decoder(edits, IDS_BT[:, :1])[:, 0].log_softmax(-1)
    unedited = DenseEdit(any_host.weight_DF(LAYER)[None].clone())
    null_V = decoder(unedited, IDS_BT[:1, :1])[0, 0].log_softmax(-1)
    decoder.take_prior(0.3)
    torch.testing.assert_close(decoder.prior_V, 0.3 * null_V, **CLOSE)
    found = decoder.read(edits, beams=2, max_object_tokens=2)
    expected_BV = first_BV - 0.3 * null_V
    assert found.first_token_B.tolist() == expected_BV.argmax(-1).tolist()
    assert torch.equal(decoder(edits, IDS_BT[:, :1])[:, 0].log_softmax(-1), first_BV), "training does not see it"


@torch.no_grad()
def test_objects_begin_as_words_do_where_those_of_training_do(fact_host, random_edits):
    decoder, edits = decoder_on(fact_host, [LAYER]), random_edits(fact_host, B)
    logprob_BV = decoder(edits, IDS_BT[:, :1])[:, 0].log_softmax(-1)
    inside = inside_words(fact_host).nonzero().flatten().tolist()
    begun = sorted({*range(1, len(logprob_BV[0]))} - {*inside})[:5]
    decoder.prior_V[inside] = -5.0  # they would come first
    free = decoder.read(edits, beams=4, max_object_tokens=2)
    assert {ids[0] for objects in free.tokens for ids in objects} <= {*inside}
    decoder.learn_start([*begun, inside[3]])
    again = decoder.read(edits, beams=4, max_object_tokens=2)
    assert again.tokens == free.tokens, "of a script without spaces any token may begin an object"
    decoder.learn_start(begun)
    found = decoder.read(edits, beams=4, max_object_tokens=2)
    logprob_BV[:, [*inside, fact_host.terminator_id]] = -torch.inf
    assert found.first_token_B.tolist() == logprob_BV.argmax(-1).tolist(), "all others are as likely as before"
    assert {ids[0] for objects in found.tokens for ids in objects}.isdisjoint(inside)


def test_read_is_the_same_in_any_batch(host_of, random_edits):
    host = host_of("qwen3 window")
    decoder, edits = decoder_on(host, [1]), random_edits(host, B)
    together = decoder.read(edits, beams=3, max_object_tokens=3)
    for b in range(B):
        alone = decoder.read(edits[b], beams=3, max_object_tokens=3)
        assert alone.tokens[0] == together.tokens[b]
        torch.testing.assert_close(alone.probability_BK[0], together.probability_BK[b], **CLOSE)


def test_absent_layers_are_refused(host_of):
    host = host_of("llama")
    with pytest.raises(ValueError, match=r"edits.layer=3.*0 to 2"):
        ObjectDecoder(host, edited_layers=[3], trained_layers=[], prompt_MD=torch.zeros(M, 32))
    with pytest.raises(ValueError, match=r"decoder.layer=5.*0 to 2"):
        ObjectDecoder(host, edited_layers=[1], trained_layers=[0, 5], prompt_MD=torch.zeros(M, 32))


def test_host_is_outside_the_module_tree(host_of):
    decoder = decoder_on(host_of("llama"), [LAYER])
    assert decoder.host is host_of("llama") and not any(module is decoder.host.model for module in decoder.modules())
    assert not any(isinstance(module, nn.Embedding) for module in decoder.modules())
