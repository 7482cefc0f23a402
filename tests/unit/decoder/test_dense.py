"""Whole matrices: in chunks of a budget, in memory, or made of factors, against an edit written into the weights.

Shape letters: B edits, C of them at a time, T positions, D hidden width, F MLP width.
"""

import json

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from data.hosts import open_host
from decoder.config import TrainConfig
from decoder.dense import DenseEdit, RoundedEdit, applied
from decoder.edit import MEMORY_BUDGET, LowRankEdit, RankOneEdit
from decoder.model import ObjectDecoder
from decoder.swap import swapped

B, T, LAYER = 5, 4, 1
# float32: chunks are other batches of the same product, and three layers carry the rounding on.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def matrices(host, dtype: torch.dtype = torch.float32) -> Tensor:
    """Of full rank, on a grid that a dtype holds exactly."""
    noise_BDF = torch.randn(B, host.hidden_size, host.mlp_size(LAYER), generator=torch.Generator().manual_seed(3))
    return (host.weight_DF(LAYER) + 0.3 * noise_BDF).to(dtype)


@pytest.mark.parametrize("per_chunk", [1, 2, B])
@pytest.mark.parametrize("rows", [1, B])
@pytest.mark.parametrize("name", ["gpt2", "llama bias", "opt"])
def test_chunks_equal_an_in_place_swap(new_host, in_place, name, rows, per_chunk):
    """Forward, and backward to what reaches the projection; the matrices are float16 in memory, so every chunk is a copy."""
    host = new_host(name)
    weight_BDF = matrices(host, torch.float16)
    host.memory_budget = per_chunk * weight_BDF[0].numel() * 4
    edits = DenseEdit(weight_BDF)
    assert [len(chunk) for _, chunk in edits.chunks(torch.float32, host.memory_budget)][0] == per_chunk
    inputs_BTD = torch.randn(rows, T, host.hidden_size, generator=torch.Generator().manual_seed(1)).requires_grad_()
    with swapped(host, {LAYER: edits}):
        found_BTV = host.model(inputs_embeds=inputs_BTD, use_cache=False).logits
    twins = [in_place(host, DenseEdit(weight_BDF.float()), b, LAYER).model for b in range(B)]
    expected_BTV = torch.cat([twin(inputs_embeds=inputs_BTD[[b % rows]], use_cache=False).logits for b, twin in enumerate(twins)])
    torch.testing.assert_close(found_BTV, expected_BTV, **CLOSE)
    found, expected = (torch.autograd.grad(logits.square().mean(), inputs_BTD)[0] for logits in (found_BTV, expected_BTV))
    assert float((found - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize("rows", ["shared", "own"])
def test_repeated_matrices_are_not_copied(rows):
    generator = torch.Generator().manual_seed(0)
    edits = DenseEdit(torch.randn(B, 3, 7, generator=generator))
    x_BTF = torch.randn(1 if rows == "shared" else 2 * B, T, 7, generator=generator)
    copied = DenseEdit(edits.weight_BDF.repeat_interleave(2, dim=0))
    found_BTD = edits.repeat_interleave(2).output(x_BTF, x_BTF[..., :3], None)
    torch.testing.assert_close(found_BTD, copied.output(x_BTF, x_BTF[..., :3], None), rtol=1e-6, atol=1e-6)
    assert len(edits.repeat_interleave(2)) == 2 * B and edits.repeat_interleave(2).edits is edits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rank", [1, 3])
def test_factors_are_rounded_chunk_by_chunk_to_the_whole_matrix(rank, dtype):
    """Whole numbers, so that every sum is exact before it is rounded, and too many of them for bfloat16."""
    generator = torch.Generator().manual_seed(0)
    key_BRF, value_BRD = (torch.randint(-20, 20, (B, rank, size), generator=generator).float() for size in (7, 3))
    weight_1DF = torch.randint(-200, 200, (1, 3, 7), generator=generator).to(dtype)
    edits = LowRankEdit(key_BRF, value_BRD) if rank > 1 else RankOneEdit(key_BRF[:, 0], value_BRD[:, 0])
    exact_BDF = weight_1DF.double() + sum(value_BRD[:, r, :, None].double() * key_BRF[:, r, None] for r in range(rank))
    matrix = 3 * 7 * (4 if dtype == torch.float32 else 6)
    chunks = [chunk for _, chunk in RoundedEdit(edits, weight_1DF[0]).chunks(dtype, 2 * matrix)]
    assert [len(chunk) for chunk in chunks] == [2, 2, 1]
    assert torch.equal(torch.cat(chunks), exact_BDF.to(dtype)) and torch.equal(
        applied(edits, weight_1DF[0]).weight_BDF, exact_BDF.to(dtype)
    )
    assert torch.equal(exact_BDF.to(dtype).double(), exact_BDF) is (dtype == torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_dense_arithmetic_reads_edits_of_any_rank_as_their_whole_matrices(new_host, name, rank, dtype):
    host, generator = new_host(name), torch.Generator().manual_seed(0)
    host.model.to(dtype)
    key_BRF = torch.randn(B, rank, host.mlp_size(LAYER), generator=generator)
    value_BRD = 0.3 * torch.randn(B, rank, host.hidden_size, generator=generator)
    edits = LowRankEdit(key_BRF, value_BRD) if rank > 1 else RankOneEdit(key_BRF[:, 0], value_BRD[:, 0])
    settings = {"edited_layers": [LAYER], "trained_layers": [LAYER], "prompt_MD": torch.randn(T, host.hidden_size, generator=generator)}
    dense, factors = (ObjectDecoder(host, arithmetic=arithmetic, **settings) for arithmetic in ("dense", "factors"))
    whole, ids_BT = applied(edits, host.weight_DF(LAYER)), torch.arange(2, 2 + 2 * B).view(B, 2)
    found, *forced = dense.read_and_scored(edits, ids_BT, beams=3, max_object_tokens=3)
    expected, *expected_forced = factors.read_and_scored(whole, ids_BT, beams=3, max_object_tokens=3)
    assert found.tokens == expected.tokens and torch.equal(found.probability_BK, expected.probability_BK)
    assert all(torch.equal(*pair) for pair in zip(forced, expected_forced, strict=True))
    assert not torch.equal(factors.scored(edits, ids_BT)[0], forced[0]), "the terms, added one by one, are rounded otherwise"


@pytest.mark.parametrize("kind", ["memory", "factors"])
def test_temporary_memory_follows_the_budget(tmp_path, new_host, random_edits, kind):
    """Wide matrices of another dtype than the host's: what is allocated at once, forward and backward."""
    host = new_host("llama", intermediate_size=4096)
    rounded = RoundedEdit(random_edits(host, B), host.weight_DF(LAYER))
    edits = rounded if kind == "factors" else DenseEdit(matrices(host, torch.float16))
    matrix = host.weight_DF(LAYER).numel() * 4
    peak = {}
    for per_chunk in (1, B):
        host.memory_budget = per_chunk * matrix
        inputs_1TD = torch.zeros(1, 1, host.hidden_size, requires_grad=True)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler, swapped(host, {LAYER: edits}):
            host.model(inputs_embeds=inputs_1TD, use_cache=False).logits.sum().backward()
        peak[per_chunk] = peak_bytes(profiler, tmp_path / "trace.json")
    assert peak[1] < 1.5 * matrix, "more than one matrix at a time"
    assert peak[B] > 4.5 * matrix, "the meter sees what is allocated"


def peak_bytes(profiler: profile, file) -> int:
    profiler.export_chrome_trace(str(file))
    events = [event for event in json.loads(file.read_text())["traceEvents"] if event["name"] == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event["ts"]):
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    return peak


def test_the_setting_reaches_the_host(tmp_path, new_host):
    host, cfg = new_host("llama"), TrainConfig()
    assert host.memory_budget == MEMORY_BUDGET == cfg.swap.memory_budget * 2**30
    host.model.save_pretrained(tmp_path)
    host.tokenizer.save_pretrained(tmp_path)
    cfg.host.path, cfg.trainer.accelerator, cfg.swap.memory_budget = str(tmp_path), "cpu", 0.25
    assert open_host(cfg).memory_budget == 2**28
    cfg.swap.memory_budget = 0
    with pytest.raises(ValueError, match=r"swap.memory_budget=0: expected GiB above 0"):
        open_host(cfg)
