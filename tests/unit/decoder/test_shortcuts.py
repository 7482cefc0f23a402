"""What the decoder's passes do no more than they must: against a plain batch that was there from the start, and by watching what is run.

Shape letters: B edits, M prompt vectors, N scored tokens, T object tokens, D hidden width, V vocabulary.
"""

from contextlib import contextmanager

import pytest
import torch
from decoder_twins import IDS_BT, LAYER, B, M, decoder_on
from torch import Tensor, nn
from transformers import DynamicCache

from decoder.batch import PADDING
from decoder.metrics import teacher_forced_correct
from decoder.model import ObjectDecoder
from decoder.shortcuts import widen
from decoder.swap import exchanged, swapped
from decoder.training.losses import object_loss

# Each with its own way of attention, and qwen2 with windows that are narrower than the prompt.
LAYOUTS = ["gpt2", "gptj", "gpt_neox", "llama", "qwen2", "qwen2 window", "gemma2", "phi"]
WINDOWS = {"use_sliding_window": True, "sliding_window": 3, "layer_types": ["sliding_attention"] * 2 + ["full_attention"]}


def host_named(new_host, name: str):
    return new_host("qwen2", **WINDOWS) if name == "qwen2 window" else new_host(name)


def plain_batch(decoder: ObjectDecoder, edits, ids_BT: Tensor) -> Tensor:
    """The prompt is there B times from the start; a cache of the library's own, every logit."""
    host, cache = decoder.host, DynamicCache()
    prompt_BMD = decoder.prompt_MD.expand(len(edits), -1, -1).contiguous()
    with swapped(host, {LAYER: edits}):
        with exchanged(host, {int(layer): block for layer, block in decoder.trained.items()}):
            first_BMV = host.model(inputs_embeds=prompt_BMD, **host.with_cache(cache)).logits
        if ids_BT.shape[1] == 1:
            return first_BMV[:, -1:]
        rest_BTV = host.model(ids_BT[:, :-1].clamp(min=0), **host.with_cache(cache)).logits
    return torch.cat([first_BMV[:, -1:], rest_BTV], dim=1)


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_batch_that_grows_at_the_edit_equals_the_plain_batch(new_host, random_edits, name, layer, tokens):
    host, ids_BT = host_named(new_host, name), IDS_BT[:, :tokens]
    edits, decoder = random_edits(host, B), decoder_on(host, [layer])
    found_BTV, expected_BTV = decoder(edits, ids_BT), plain_batch(decoder, edits, ids_BT)
    assert host.batch_grows_at_edit
    torch.testing.assert_close(found_BTV, expected_BTV, rtol=1e-5, atol=1e-5)
    found, expected = (gradients(decoder, object_loss(logits, ids_BT)) for logits in (found_BTV, expected_BTV))
    for gradient, twin in zip(found, expected, strict=True):
        # Relative to the whole gradient of prompt or block: its small entries are differences of large ones.
        assert float((gradient - twin).norm() / twin.norm()) < 1e-5
    assert expected[0].norm() > 1e-3 and expected[1].norm() > 1e-3


def gradients(decoder: ObjectDecoder, loss: Tensor) -> tuple[Tensor, Tensor]:
    """Of the prompt, and of the trained block as one vector."""
    prompt_MD, *block = torch.autograd.grad(loss, [decoder.prompt_MD, *decoder.trained.parameters()])
    return prompt_MD, torch.cat([gradient.flatten() for gradient in block])


def test_a_family_that_falls_back_says_so_once(new_host, random_edits, caplog):
    host = new_host("falcon alibi", attn_implementation="eager")
    edits, decoder = random_edits(host, B), decoder_on(host, [2])
    torch.testing.assert_close(decoder(edits, IDS_BT), plain_batch(decoder, edits, IDS_BT), rtol=1e-5, atol=1e-5)
    decoder.read(edits, beams=2, max_object_tokens=2)
    assert host.batch_grows_at_edit is False and caplog.text.count("cannot grow at the edit") == 1


@contextmanager
def watched(module: nn.Module, note):
    handle = module.register_forward_hook(note, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def test_scored_are_the_logits_of_tokens_that_are_no_padding(any_host, random_edits):
    edits, decoder = random_edits(any_host, B), decoder_on(any_host, [2])
    for ids_BT in (IDS_BT, IDS_BT[:, :1], IDS_BT[2:]):
        some = edits[: len(ids_BT)]
        logits_NV, ids_N = decoder.scored(some, ids_BT)
        everything_BTV = decoder(some, ids_BT)
        planted_BT = ids_BT != PADDING
        later_NV = everything_BTV[:, 1:][planted_BT[:, 1:]]
        torch.testing.assert_close(logits_NV, torch.cat([everything_BTV[:, 0], later_NV]), rtol=1e-5, atol=1e-5)
        assert ids_N.tolist() == [*ids_BT[:, 0].tolist(), *ids_BT[:, 1:][planted_BT[:, 1:]].tolist()]
        loss = object_loss(logits_NV.unsqueeze(0), ids_N.unsqueeze(0))
        torch.testing.assert_close(loss, object_loss(everything_BTV, ids_BT), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("ends", [False, True])
def test_a_teacher_forced_object_is_right_where_greedy_search_finds_it(any_host, random_edits, monkeypatch, ends):
    edits, decoder = random_edits(any_host, 6), decoder_on(any_host, [2])
    found = decoder.read(edits, beams=1, max_object_tokens=3)
    if ends:
        # What the first edit's object ends with, so that one object at least is shorter than search allows.
        monkeypatch.setattr(any_host, "terminator_id", found.tokens[0][0][-1])
        found = decoder.read(edits, beams=1, max_object_tokens=8)
    end = [any_host.terminator_id] if ends else []
    planted = [torch.tensor([*objects[0], *end]) for objects in found.tokens]
    planted[1], planted[2][0], planted[3][-1] = planted[1].flip(0), planted[2][0] + 1, planted[3][-1] + 1
    ids_BT = torch.nn.utils.rnn.pad_sequence(planted, batch_first=True, padding_value=PADDING)
    first_B, whole_B = teacher_forced_correct(decoder.scored(edits, ids_BT)[0], ids_BT, any_host.terminator_id)
    # Search must end an object at its greatest length, whatever is likelier; teacher forcing need not.
    free = [b for b, objects in enumerate(found.tokens) if not ends or len(objects[0]) < 8]
    found_B = [[*objects[0], *end] == ids.tolist() for objects, ids in zip(found.tokens, planted, strict=True)]
    assert [bool(whole_B[b]) for b in free] == [found_B[b] for b in free] and (ends or found_B[0])
    assert first_B.tolist() == [objects[0][0] == int(ids[0]) for objects, ids in zip(found.tokens, planted, strict=True)]
    assert not whole_B[2] and not (whole_B[3] and 3 in free)


def test_only_what_is_scored_leaves_the_head(any_host, random_edits):
    """By pass: the first token of each edit, then the later tokens that are no padding; in a search one row a beam."""
    edits, decoder, rows = random_edits(any_host, B), decoder_on(any_host, [2]), []
    decoder(edits, IDS_BT[:, :1])  # the self-check, if this host has not had it
    with watched(any_host.model.get_output_embeddings(), lambda module, args, kwargs, logits: rows.append(logits.shape[:-1].numel())):
        decoder(edits, IDS_BT[:, :1])
        assert rows == [B]
        decoder.scored(edits, IDS_BT)
        assert rows[1:] == [B, 3]
        decoder.read(edits, beams=4, max_object_tokens=3)
        searched = rows[4:]
        assert rows[3] == B and searched[0] == 4 * B
        assert searched == sorted(searched, reverse=True), "finished beams leave"


def test_a_forward_that_breaks_leaves_the_host_as_it_was(new_host, random_edits, hooks):
    """In the last block's MLP, when everything is in place."""
    host = new_host("gpt2")
    edits, decoder, broken = random_edits(host, B), decoder_on(host, [2]), nn.Linear(1, 1)
    decoder(edits, IDS_BT)
    own = list(host.blocks)
    for module in (host.blocks[2].mlp, decoder.trained["2"].mlp):
        module.act = broken
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            decoder(edits, IDS_BT)
        assert hooks(host.model) == 0 and list(host.blocks) == own and "forward" not in vars(module)
        module.act = nn.GELU()


def test_one_token_needs_no_cache(host_of, random_edits):
    """More tokens do, and the cache holds the prompt."""
    host, caches = host_of("llama"), []
    edits, decoder = random_edits(host, B), decoder_on(host, [2])
    decoder(edits, IDS_BT[:, :1])
    with watched(host.model, lambda module, args, kwargs, output: caches.append(kwargs.get("cache", kwargs.get("past_key_values")))):
        decoder(edits, IDS_BT[:, :1])
        decoder.scored(edits, IDS_BT[:, :1])
        assert caches == [None, None]
        decoder(edits, IDS_BT)
    assert caches[2] is caches[3] and caches[2].get_seq_length() == M + IDS_BT.shape[1] - 1


def test_layers_up_to_the_edit_run_once(host_of, random_edits):
    host = host_of("gpt2")
    edits, decoder, batches = random_edits(host, B), decoder_on(host, [2]), []
    decoder(edits, IDS_BT[:, :1])
    with watched(host.blocks[0], lambda module, args, kwargs, output: batches.append(len(args[0]))):
        decoder(edits, IDS_BT[:, :1])
    assert batches == [1]


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("settings", [{}, {"scope": "all"}, {"arithmetic": "dense"}], ids=str)
@pytest.mark.parametrize("name", [*LAYOUTS, "falcon alibi"])
def test_reading_and_scoring_share_the_prompt(new_host, random_edits, name, settings, beams):
    host, prompts = host_named(new_host, name), []
    edits, decoder, search = random_edits(host, B), decoder_on(host, [2], **settings), {"beams": beams, "max_object_tokens": 3}
    decoder.take_prior(0.3)
    for ids_BT in (IDS_BT, IDS_BT[:, :1]):
        expected, (logits_NV, ids_N) = decoder.read(edits, **search), decoder.scored(edits, ids_BT)
        with watched(host.model, lambda module, args, kwargs, output: prompts.append(kwargs.get("inputs_embeds") is not None)):
            found, *forced = decoder.read_and_scored(edits, ids_BT, **search)
        assert sum(prompts) == 1 and len(prompts) > 1
        prompts.clear()
        assert found.tokens == expected.tokens and torch.equal(found.first_token_B, expected.first_token_B)
        torch.testing.assert_close(found.probability_BK, expected.probability_BK, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(forced[0], logits_NV, rtol=1e-6, atol=1e-6)
        assert torch.equal(forced[1], ids_N) and not forced[0].requires_grad


@pytest.mark.parametrize("times", [1, 4])
def test_what_all_edits_share_is_repeated_as_a_view(times):
    cache, generator = DynamicCache(), torch.Generator().manual_seed(0)
    shared, own = (torch.randn(rows, 2, M, 8, generator=generator) for rows in (1, B))
    cache.update(shared, 2 * shared, 0)
    cache.update(own, 2 * own, 1)
    widen(cache, B, times)
    for layer, tensor in zip(cache.layers, (shared.expand(B, -1, -1, -1), own), strict=True):
        expected = tensor.repeat_interleave(times, dim=0)
        assert torch.equal(layer.keys, expected) and torch.equal(layer.values, 2 * expected)
    assert cache.layers[0].keys.untyped_storage().nbytes() == shared.nbytes


@pytest.mark.parametrize("train_prompt", [True, False])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_no_graph_below_what_is_learnt(host_of, random_edits, layer, train_prompt):
    host, in_graph = host_of("llama"), {}
    edits, decoder = random_edits(host, B), decoder_on(host, [layer], train_prompt=train_prompt)

    def note(module, args, kwargs, output):
        in_graph[len(in_graph)] = (output if isinstance(output, Tensor) else output[0]).requires_grad

    with exchanged(host, {layer: decoder.trained[str(layer)]}):
        watchers = [watched(block, note) for block in host.blocks]
    with watchers[0], watchers[1], watchers[2]:
        decoder(edits, IDS_BT[:, :1])
    assert [in_graph[n] for n in range(3)] == [train_prompt or n >= layer for n in range(3)]


def test_a_trained_layer_with_gradient_checkpointing_is_refused(new_host, random_edits):
    """Under it the library drops the cache with a warning, and re-runs blocks without the edit."""
    host = new_host("llama")
    decoder = decoder_on(host, [2])
    decoder.trained["2"].gradient_checkpointing = True
    with pytest.raises(ValueError, match="gradient checkpointing"):
        decoder(random_edits(host, B), IDS_BT)
