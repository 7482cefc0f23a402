"""The shipped hosts: layer, path and width against the values of their real configs, and what is said when weights cannot be had.

Shape letters: D hidden width, F MLP width.
"""

import os
import re
import subprocess
import sys
from typing import Any

import huggingface_hub.errors
import pytest
import torch
import transformers
from places import ROOT

from decoder.checkpoint.model_files import load_files, memory_needed, reader
from decoder.config import TrainConfig
from decoder.config.commands import ImportConfig
from decoder.config.compose import compose
from decoder.host import Host

HOSTS = sorted(file.stem for file in (ROOT / "configs" / "host").glob("*.yaml") if file.stem != "pocket")


def gpt2(width: int, layers: int, heads: int) -> tuple[str, dict[str, Any]]:
    return "GPT2", {"n_embd": width, "n_layer": layers, "n_head": heads}


def gated(width: int, layers: int, heads: int, groups: int, inner: int, vocabulary: int, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": groups,
        "intermediate_size": inner, "vocab_size": vocabulary,
    } | more  # fmt: skip


def neox(width: int, layers: int, heads: int, vocabulary: int) -> tuple[str, dict[str, Any]]:
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "intermediate_size": 4 * width}
    return "GPTNeoX", sizes | {"vocab_size": vocabulary}


# name -> config class and the values of the model's real config.json; edited layer, its path, D, F, parameters in millions
REAL: dict[str, tuple[tuple[str, dict[str, Any]], int, str, int, int, float]] = {
    "gpt2": (gpt2(768, 12, 12), 4, "transformer.h.4.mlp.c_proj", 768, 3072, 124.4),
    "gpt2-medium": (gpt2(1024, 24, 16), 8, "transformer.h.8.mlp.c_proj", 1024, 4096, 354.8),
    "gpt2-large": (gpt2(1280, 36, 20), 12, "transformer.h.12.mlp.c_proj", 1280, 5120, 774.0),
    "gpt2-xl": (gpt2(1600, 48, 25), 17, "transformer.h.17.mlp.c_proj", 1600, 6400, 1557.6),
    "gpt-j-6b": (
        ("GPTJ", {"n_embd": 4096, "n_layer": 28, "n_head": 16, "rotary_dim": 64, "vocab_size": 50400, "tie_word_embeddings": False}),
        5, "transformer.h.5.mlp.fc_out", 4096, 16384, 6050.9,
    ),
    "gpt-neox-20b": (neox(6144, 44, 64, 50432), 15, "gpt_neox.layers.15.mlp.dense_4h_to_h", 6144, 24576, 20554.6),
    "pythia-1.4b": (neox(2048, 24, 16, 50304), 8, "gpt_neox.layers.8.mlp.dense_4h_to_h", 2048, 8192, 1414.6),
    "pythia-6.9b": (neox(4096, 32, 32, 50432), 11, "gpt_neox.layers.11.mlp.dense_4h_to_h", 4096, 16384, 6857.3),
    "llama-2-7b": (("Llama", gated(4096, 32, 32, 32, 11008, 32000)), 5, "model.layers.5.mlp.down_proj", 4096, 11008, 6738.4),
    "llama-3-8b": (("Llama", gated(4096, 32, 32, 8, 14336, 128256)), 5, "model.layers.5.mlp.down_proj", 4096, 14336, 8030.3),
    "smollm2-135m": (
        ("Llama", gated(576, 30, 9, 3, 1536, 49152, tie_word_embeddings=True)),
        8, "model.layers.8.mlp.down_proj", 576, 1536, 134.5,
    ),
    "llama-3.2-1b": (
        ("Llama", gated(2048, 16, 32, 8, 8192, 128256, head_dim=64, tie_word_embeddings=True)),
        3, "model.layers.3.mlp.down_proj", 2048, 8192, 1235.8,
    ),
    "mistral-7b": (("Mistral", gated(4096, 32, 32, 8, 14336, 32000)), 5, "model.layers.5.mlp.down_proj", 4096, 14336, 7241.7),
    "qwen2.5-7b": (("Qwen2", gated(3584, 28, 28, 4, 18944, 152064)), 5, "model.layers.5.mlp.down_proj", 3584, 18944, 7615.6),
    "qwen3-8b": (("Qwen3", gated(4096, 36, 32, 8, 12288, 151936, head_dim=128)), 6, "model.layers.6.mlp.down_proj", 4096, 12288, 8190.7),
    "gemma-2-9b": (("Gemma2", gated(3584, 42, 16, 8, 14336, 256000, head_dim=256)), 7, "model.layers.7.mlp.down_proj", 3584, 14336, 9241.7),
}  # fmt: skip
PUBLISHED = {"gpt2-medium", "gpt2-large", "gpt2-xl", "gpt-j-6b", "gpt-neox-20b", "llama-2-7b", "llama-3-8b", "mistral-7b", "qwen2.5-7b"}
MEASURED = {"smollm2-135m"}


def test_every_host_is_here():
    assert set(HOSTS) == set(REAL)


@pytest.mark.parametrize("name", HOSTS)
def test_layer_path_and_width_are_the_real_models(host_of, name):
    (kind, values), layer, path, width, inner, millions = REAL[name]
    cfg = compose(TrainConfig, "train", [f"host={name}"])
    config = getattr(transformers, f"{kind}Config")(**values)
    tokenizer = host_of("llama").tokenizer
    with torch.device("meta"):
        host = Host(reader(config).from_config(config), tokenizer, name=name)
    assert (cfg.edits.layer, cfg.decoder.layer) == (layer, layer)
    assert host.module_path(cfg.edits.layer) == path and host.weight_DF(layer).shape == (width, inner)
    assert sum(parameter.numel() for parameter in host.model.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)
    assert cfg.host.source == ("published" if name in PUBLISHED else "measured" if name in MEASURED else "untested")
    if cfg.host.source == "untested":
        assert layer == round((0.17 if hasattr(host.blocks[0].mlp, "gate_proj") else 0.35) * host.layers)


@pytest.mark.parametrize("name", HOSTS)
def test_settings_are_as_published(name):
    cfg = compose(TrainConfig, "train", [f"host={name}"])
    edits = cfg.edits
    contexts, lr, stop_loss = (5, 1.0, 0.15) if name in MEASURED else (21, 0.5, 0.05)
    assert (edits.contexts, edits.lr, edits.kl, edits.stop_loss, cfg.host.terminator) == (contexts, lr, 0.0625, stop_loss, None)
    gated_family = name.startswith(("llama", "mistral", "qwen", "gemma", "smollm"))
    steps = 20 if name in MEASURED or not gated_family else 25
    ridge = 3e-2 if name in MEASURED else "identity"
    assert (edits.steps, edits.decay, edits.ridge) == ((steps, 1e-3, ridge) if gated_family else (20, 0.5, 0))
    assert edits.clamp == (3 if name in ("gpt2", "gpt2-medium") else 4)


def test_hosts_are_pinned_to_commits_of_their_own():
    """`main` moves; where no commit could be told for sure it stays, and the file says so."""
    revisions = {name: compose(TrainConfig, "train", [f"host={name}"]).host.revision for name in HOSTS}
    assert {name for name, revision in revisions.items() if revision == "main"} == {"pythia-6.9b"}
    pinned = [revision for revision in revisions.values() if revision != "main"]
    assert all(re.fullmatch("[0-9a-f]{40}", revision) for revision in pinned) and len(set(pinned)) == len(pinned)


def test_the_command_line_and_other_groups_win_over_a_hosts_file():
    cfg = compose(TrainConfig, "train", ["host=gpt2-xl", "edits=r-rome", "edits.layer=20", "decoder.layer=[17,18]"])
    assert (cfg.edits.editor, cfg.edits.layer, cfg.decoder.layer, cfg.edits.clamp) == ("r-rome", 20, [17, 18], 4)
    assert compose(TrainConfig, "train", []).edits == TrainConfig().edits, "a host that was not chosen sets nothing"


def test_a_program_without_edits_passes_over_them():
    cfg = compose(ImportConfig, "import_edits", ["host=gpt2-xl"])
    assert cfg.host.path == "openai-community/gpt2-xl"


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (OSError("You are trying to access a gated repo.\nMake sure to have access to it"), "HF_TOKEN"),
        (OSError("We couldn't connect to 'https://huggingface.co' to load the files"), "HF_HUB_OFFLINE"),
        (huggingface_hub.errors.LocalEntryNotFoundError("no entry\nhere"), "HF_HUB_OFFLINE"),
        (OSError("x does not appear to have a file named model.safetensors"), "does not appear to have"),
    ],
)
def test_weights_that_cannot_be_had_are_one_line_with_what_to_do(monkeypatch, error, advice):
    def refuse(*args, **kwargs):
        raise error

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", refuse)
    for ask in (load_files, memory_needed):
        with pytest.raises(ValueError, match="host llama-3-8b: nothing to load at some/where") as refused:
            ask("some/where", name="llama-3-8b", dtype="float32", revision=None)
        assert advice in str(refused.value) and "host.path=" in str(refused.value) and "\n" not in str(refused.value)


def test_absent_host_offline_is_one_line_and_exit_2(tmp_path):
    line = [sys.executable, "-m", "data.produce", "host=llama-3-8b", f"cache_dir={tmp_path}"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "meta-llama/Meta-Llama-3-8B" in done.stderr and "host.path=" in done.stderr


@pytest.mark.parametrize("name", ["llama", "gemma3", "llava"])
def test_memory_is_known_before_loading_and_the_text_part_is_found(new_host, tmp_path, name):
    host = new_host(name)
    host.model.save_pretrained(tmp_path)
    host.tokenizer.save_pretrained(tmp_path)
    count, gigabytes = memory_needed(tmp_path, name=name, dtype="bfloat16", revision=None)
    assert count == sum(parameter.numel() for parameter in host.model.parameters()) and gigabytes == pytest.approx(2e-9 * count)
    loaded = Host.load(tmp_path, name=name)
    assert torch.equal(loaded.weight_DF(1), host.weight_DF(1)) and loaded.module_path(1) == host.module_path(1)
