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
from decoder.edit import MEMORY_BUDGET, RankOneEdit
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
    with swapped(host, edits, LAYER):
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


def test_factors_are_rounded_chunk_by_chunk_as_in_one_piece():
    generator = torch.Generator().manual_seed(0)
    edits = RankOneEdit(torch.randn(B, 7, generator=generator), torch.randn(B, 3, generator=generator))
    weight_DF = torch.randn(3, 7, generator=generator).bfloat16()
    chunks = [chunk for _, chunk in RoundedEdit(edits, weight_DF).chunks(torch.bfloat16, 2 * 3 * 7 * 6)]
    assert [len(chunk) for chunk in chunks] == [2, 2, 1]
    assert torch.equal(torch.cat(chunks), applied(edits, weight_DF).weight_BDF)


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
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler, swapped(host, edits, LAYER):
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
