"""Weights that stay in their files: nothing of them is copied, and what is computed is what float32 computes."""

import copy
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_hosts import TINY

from decoder.checkpoint.folders import WHOLE
from decoder.checkpoint.reader import Checkpoint
from decoder.checkpoint.streamed import compute_in_float32, dtype_kept
from decoder.host import Host

SMAPS = Path("/proc/self/smaps")
FUSED = ("qwen3_moe", "deepseek_v3")  # experts that files hold one by one are put together


def in_memory(model, folder) -> list[str]:
    """Names of the weights that are not the folder's files themselves, or were written to."""
    mappings = []
    for line in SMAPS.read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \S+ *(.*)", line):
            mappings.append([int(found[1], 16), int(found[2], 16), found[3], 0])
        elif line.startswith("Anonymous:"):
            mappings[-1][3] = int(line.split()[1])
    own = [(start, end) for start, end, file, copied in mappings if file.startswith(str(folder)) and not copied]
    weights = {name: tensor.data_ptr() for name, tensor in model.named_parameters()}
    return [name for name, place in weights.items() if not any(start <= place < end for start, end in own)]


def opened(folder) -> Host:
    host = Host.load(folder, name="kept", dtype=str(dtype_kept(Checkpoint(folder))).removeprefix("torch."))
    compute_in_float32(host.model)
    return host


@pytest.mark.skipif(not SMAPS.exists(), reason="only Linux says what a process maps")
@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, torch.bfloat16) for name in TINY), ("llama", torch.float16), ("llama", torch.float32)]
)
def test_weights_are_the_files_and_answers_those_of_float32(host_of, name, dtype, tmp_path):
    copy.deepcopy(host_of(name).model).to(dtype).save_pretrained(tmp_path, max_shard_size="100KB")
    host_of(name).tokenizer.save_pretrained(tmp_path)
    kept, plain = opened(tmp_path), Host.load(tmp_path, name="plain")
    assert kept.dtype == dtype and plain.dtype == torch.float32
    ids = torch.randint(2, 20, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found, expected = (host.model(input_ids=ids).logits for host in (kept, plain))
    # Gemma multiplies its embeddings with a number that is rounded as its weights are.
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3 if "gemma" in name else 1e-5)
    moved = in_memory(kept.model, tmp_path)
    assert not moved or (kept.model_type in FUSED and all(".experts." in name or name.endswith(".gate.weight") for name in moved))
    assert kept.fingerprint == Host.load(tmp_path, name="x", dtype=str(dtype).removeprefix("torch.")).fingerprint
    assert in_memory(kept.model, tmp_path) == moved, "read, and not written to"


@pytest.mark.skipif(not SMAPS.exists(), reason="only Linux says what a process maps")
def test_so_are_those_of_wrapped_names(host_of, tmp_path):
    host = host_of("llama")
    copy.deepcopy(host.model).bfloat16().save_pretrained(tmp_path)
    host.tokenizer.save_pretrained(tmp_path)
    wrapped = {f"_orig_mod.{name}": tensor.clone() for name, tensor in load_file(tmp_path / WHOLE).items()}
    (tmp_path / WHOLE).unlink()
    save_file(wrapped, tmp_path / WHOLE, metadata={"format": "pt"})
    assert not in_memory(opened(tmp_path).model, tmp_path)


def test_what_must_be_copied_anyway_becomes_bfloat16(tmp_path):
    for dtype, expected in ((torch.float64, torch.bfloat16), (torch.float8_e4m3fn, torch.bfloat16), (torch.float16, torch.float16)):
        save_file({"small": torch.ones(2), "large": torch.ones(3, 4).to(dtype)}, tmp_path / "w.safetensors")
        assert dtype_kept(Checkpoint(tmp_path / "w.safetensors")) == expected


def test_a_forward_that_fails_leaves_the_weights_as_they_are(host_of):
    host = Host(copy.deepcopy(host_of("llama").model).bfloat16(), host_of("llama").tokenizer, name="x")
    compute_in_float32(host.model)
    with pytest.raises(RuntimeError):
        host.down_proj(1)(torch.ones(1, 1))
    assert host.weight_DF(1).dtype == torch.bfloat16
