"""The entries of `config.json` that a GGUF file's metadata stand for."""

import math
from collections.abc import Mapping
from typing import Any

from decoder.checkpoint.gguf_file import GgufFile
from decoder.checkpoint.gguf_header import AGAIN

SIZES = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "feed_forward_length": "intermediate_size",
}
NEEDED = (*SIZES, "context_length")
MORE = {
    "context_length": "max_position_embeddings",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
GPT2 = {
    "embedding_length": "n_embd",
    "block_count": "n_layer",
    "attention.head_count": "n_head",
    "feed_forward_length": "n_inner",
    "context_length": "n_positions",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
}
SPECIAL = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "padding_token_id": "pad_token_id"}
LARGEST_GEMMAS = {("gemma2", 46), ("gemma3", 62)}  # of 27 billion parameters; what llama.cpp knows them by
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}  # of Llama 3.1 to 3.3


def sizes_of(file: GgufFile) -> dict[str, Any]:
    """The sizes of the model, as far as the file tells them."""
    names = {ours: theirs for theirs, ours in (GPT2 if file.model_type == "gpt2" else SIZES).items()}
    sizes = {ours: file.of(theirs) for ours, theirs in names.items() if file.of(theirs) is not None}
    embeddings = file.tensors.get(f"{file.family.gguf.top['token_embd']}.weight")
    return sizes | ({"vocab_size": embeddings.shape[0]} if embeddings else {})


def config_of(file: GgufFile) -> dict[str, Any]:
    """The config of the model, as keyword arguments of its class.

    Raises:
        ValueError: the file does not say how large something is, or positions are scaled in a way that is not read.
    """
    if absent := [name for name in NEEDED if not isinstance(file.of(name), int)]:
        key = f"{file.family.gguf.architecture}.{absent[0]}"
        raise ValueError(f"{file.file}: its metadata has no whole number {key}. Convert it again with llama.cpp")
    names = GPT2 if file.model_type == "gpt2" else MORE
    config = sizes_of(file) | {ours: file.of(theirs) for theirs, ours in names.items() if file.of(theirs) is not None}
    config |= {ours: file.metadata.get(f"tokenizer.ggml.{theirs}") for theirs, ours in SPECIAL.items()}
    config["tie_word_embeddings"] = "lm_head.weight" not in file.tensors
    return config if file.model_type == "gpt2" else config | _of_gated(file, config)


def _of_gated(file: GgufFile, config: Mapping[str, Any]) -> dict[str, Any]:
    """What all but GPT-2 have besides."""
    architecture = file.family.gguf.architecture
    width = config["hidden_size"] // config["num_attention_heads"]
    turned = file.of("rope.dimension_count")
    head = config.get("head_dim", turned if architecture == "llama" and turned else width)
    found: dict[str, Any] = {"rope_theta": file.of("rope.freq_base", 10000.0)}
    if architecture in ("gemma2", "gemma3"):
        is_largest = (architecture, config["num_hidden_layers"]) in LARGEST_GEMMAS
        found["query_pre_attn_scalar"] = width if is_largest else head
    if architecture == "llama":
        block = f"{file.family.blocks}.0"
        found |= {
            "head_dim": head,
            "attention_bias": f"{block}.self_attn.q_proj.bias" in file.tensors,
            "mlp_bias": f"{block}.mlp.down_proj.bias" in file.tensors,
        }
    if architecture == "phi3" and turned and turned != head:
        found["partial_rotary_factor"] = turned / head
    scaling = _scaling(file, found["rope_theta"], head)
    return found | ({"rope_scaling": scaling} if scaling else {})


def _scaling(file: GgufFile, theta: float, head: int) -> dict[str, Any] | None:
    """How positions are scaled: linearly, as in Llama 3.1, or not at all."""
    kind, architecture = file.of("rope.scaling.type", "none"), file.family.gguf.architecture
    if kind == "linear" and not architecture.startswith("gemma3"):
        return {"rope_type": "linear", "factor": file.of("rope.scaling.factor", 1.0)}
    if (frequencies := file.tensors.get("rope_freqs.weight")) is not None:
        if frequencies.shape != (head // 2,):
            told = f"rope_freqs.weight is {frequencies.shape}, heads of {head} have {head // 2} frequencies"
            raise ValueError(f"{file.file}: {told}. {AGAIN}")
        slower = frequencies.rows().tolist()
        scaling = LLAMA3 | {"rope_type": "llama3", "factor": max(slower)}
        if all(math.isclose(found, known, rel_tol=1e-3) for found, known in zip(slower, _llama3(theta, head, max(slower)), strict=True)):
            return scaling
        kind = "by rope_freqs.weight"
    if any(name.startswith("rope_factors_") for name in file.tensors):
        kind = "by rope_factors"
    if kind != "none":
        raise ValueError(f"{file.file}: positions are scaled {kind}, which is not read from GGUF. Give the safetensors checkpoint")
    return None


def _llama3(theta: float, head: int, factor: float) -> list[float]:
    """By what each frequency is divided, of the rule of Llama 3.1."""
    low, high, length = LLAMA3["low_freq_factor"], LLAMA3["high_freq_factor"], LLAMA3["original_max_position_embeddings"]
    found = []
    for turn in range(0, head, 2):
        waves = length / (2 * math.pi * theta ** (turn / head))
        smooth = min(max((waves - low) / (high - low), 0.0), 1.0)
        found.append(1 / ((1 - smooth) / factor + smooth))
    return found
