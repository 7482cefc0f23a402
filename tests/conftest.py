"""Tiny random hosts of every supported family and the slow twins that fast paths are compared with.

Shape letters: B edits, T positions, D hidden width, F MLP width.
"""

import copy
import hashlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from unit.tiny_hosts import tiny_tokenizer

from decoder.edit import DenseEdit, Edit, RankOneEdit
from decoder.host import Host, tensor_bytes

D, F, LAYERS, POSITIONS = 32, 48, 3, 64

GPT2_SIZES = {"n_embd": D, "n_inner": F, "n_layer": LAYERS, "n_head": 4, "n_positions": POSITIONS}
LLAMA_SIZES = {
    "hidden_size": D,
    "intermediate_size": F,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": POSITIONS,
}
GROUPED = LLAMA_SIZES | {"num_key_value_heads": 2}
GEMMA = GROUPED | {"head_dim": 8}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
EYES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}
FALCON = {"hidden_size": D, "ffn_hidden_size": F, "num_hidden_layers": LAYERS, "num_attention_heads": 4}
OPT = {"hidden_size": D, "word_embed_proj_dim": D, "ffn_dim": F, "num_hidden_layers": LAYERS, "num_attention_heads": 4}
OPT |= {"max_position_embeddings": POSITIONS}

# name -> config class without "Config", its settings. The first word of a name is the family.
TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", GPT2_SIZES),
    "gpt2 square": ("GPT2", GPT2_SIZES | {"n_inner": D}),
    "gpt_neo": (
        "GPTNeo",
        {
            "hidden_size": D,
            "intermediate_size": F,
            "num_layers": LAYERS,
            "num_heads": 4,
            "max_position_embeddings": POSITIONS,
            "attention_types": [[["global", "local", "global"], 1]],
            "window_size": 3,
        },
    ),
    "gptj": ("GPTJ", GPT2_SIZES | {"rotary_dim": 4}),
    "gpt_neox": ("GPTNeoX", LLAMA_SIZES),
    "llama": ("Llama", GROUPED),
    "llama square": ("Llama", GROUPED | {"intermediate_size": D}),
    "llama bias": ("Llama", GROUPED | {"mlp_bias": True}),
    "mistral": ("Mistral", GROUPED | {"sliding_window": 3}),
    "qwen2": ("Qwen2", GROUPED),
    "qwen3": ("Qwen3", GROUPED | {"head_dim": 8}),
    "qwen3 window": (
        "Qwen3",
        GROUPED
        | {
            "head_dim": 8,
            "use_sliding_window": True,
            "sliding_window": 1,
            "layer_types": ["sliding_attention"] * 2 + ["full_attention"],
            "tie_word_embeddings": True,
        },
    ),
    "qwen3_moe": ("Qwen3Moe", GROUPED | EXPERTS | {"head_dim": 8, "mlp_only_layers": [0, 1, 2]}),
    "deepseek_v3": (
        "DeepseekV3",
        LLAMA_SIZES
        | EXPERTS
        | {"first_k_dense_replace": 1, "n_routed_experts": 4, "n_shared_experts": 2, "moe_intermediate_size": F // 2}
        | {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
        | {"n_group": 1, "topk_group": 1},
    ),
    "gemma": ("Gemma", GEMMA),
    "gemma untied": ("Gemma", GEMMA | {"tie_word_embeddings": False}),
    "gemma2": ("Gemma2", GEMMA | {"sliding_window": 3, "query_pre_attn_scalar": 8}),
    "gemma3_text": ("Gemma3Text", GEMMA | {"sliding_window": 3, "query_pre_attn_scalar": 8}),
    "gemma3": ("Gemma3", {"text_config": GEMMA | {"sliding_window": 3, "query_pre_attn_scalar": 8}, "vision_config": EYES}),
    "llava": ("Llava", {"text_config": GROUPED | {"model_type": "llama"}, "vision_config": EYES | {"model_type": "clip_vision_model"}}),
    "mistral3": (
        "Mistral3",
        {
            "text_config": GROUPED | {"model_type": "mistral"},
            "vision_config": EYES | {"model_type": "pixtral", "head_dim": 8},
            "image_token_index": 1,
        },
    ),
    "phi": ("Phi", LLAMA_SIZES),
    "phi3": ("Phi3", GROUPED | {"pad_token_id": 0}),
    "olmo2": ("Olmo2", GROUPED),
    "starcoder2": ("Starcoder2", GROUPED | {"sliding_window": 3}),
    "falcon": ("Falcon", FALCON),
    "falcon grouped": ("Falcon", FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon alibi": ("Falcon", FALCON | {"alibi": True, "parallel_attn": False, "multi_query": False, "bias": True}),
    "opt": ("OPT", OPT),
    "opt norm after": ("OPT", OPT | {"do_layer_norm_before": False}),
    "bloom": ("Bloom", {"hidden_size": D, "n_layer": LAYERS, "n_head": 4}),
}


def build_host(name: str, *, terminator: str | None = ".", bos: bool = False, seed: int = 0, **settings: Any) -> Host:
    kind, defaults = TINY[name]
    tokenizer = tiny_tokenizer(bos)
    general = {"vocab_size": len(tokenizer), "initializer_range": 0.2}
    if "text_config" in defaults:
        defaults, general = defaults | {"text_config": general | defaults["text_config"]}, {}
    config = getattr(transformers, f"{kind}Config")(**(general | defaults | settings))
    if hasattr(config, "init_std"):
        config.init_std = 0.2
    class_name = {"GPT2": "GPT2LMHeadModel", "Gemma3Text": "Gemma3ForCausalLM"}.get(
        kind, f"{kind}ForCausalLM" if general else f"{kind}ForConditionalGeneration"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(transformers, class_name)(config)
        for parameter in model.parameters():
            if parameter.dim() == 1:
                # Fresh biases are 0 and norms 1: a bias that is forgotten would not show.
                nn.init.normal_(parameter.data, mean=float(parameter.data.mean()), std=0.1)
    return Host(model, tokenizer, name=name, terminator=terminator)


@pytest.fixture(scope="session")
def host_of() -> Callable[[str], Host]:
    """A tiny host by name, built once: for tests that leave it as it is."""
    hosts: dict[str, Host] = {}
    return lambda name: hosts.setdefault(name, hosts.get(name) or build_host(name))


@pytest.fixture(scope="session")
def host_names() -> list[str]:
    return list(TINY)


@pytest.fixture(scope="session")
def new_host() -> Callable[..., Host]:
    """A tiny host of the test's own, with other settings if it likes."""
    return build_host


@pytest.fixture(scope="session", params=list(TINY))
def any_host(request, host_of) -> Host:
    """One host after the other: every family, and the layouts that have traps."""
    return host_of(request.param)


@pytest.fixture(scope="session")
def random_edits() -> Callable[..., RankOneEdit]:
    def make(host: Host, count: int, seed: int = 0, size: float = 0.3) -> RankOneEdit:
        generator = torch.Generator().manual_seed(seed)
        key_BF = torch.randn(count, host.mlp_size(1), generator=generator)
        return RankOneEdit(key_BF, size * torch.randn(count, host.hidden_size, generator=generator))

    return make


@pytest.fixture(scope="session")
def in_place() -> Callable[[Host, Edit, int, int], Host]:
    """The slow twin of the swap: a copy of the host with edit b written into its weights."""

    def edited(host: Host, edits: Edit, b: int, layer: int) -> Host:
        twin = Host(copy.deepcopy(host.model), host.tokenizer, name=host.name)
        weight_DF = twin.weight_DF(layer)
        if isinstance(edits, DenseEdit):
            weight_DF.copy_(edits.weight_BDF[b])
        else:
            weight_DF.add_(torch.outer(edits.value_BD[b], edits.key_BF[b]))
        return twin

    return edited


@pytest.fixture(scope="session")
def weights_hash() -> Callable[[nn.Module], str]:
    def digest(module: nn.Module) -> str:
        return hashlib.sha256(b"".join(bytes(tensor_bytes(tensor)) for tensor in module.state_dict().values())).hexdigest()

    return digest


@pytest.fixture(scope="session")
def hooks() -> Callable[[nn.Module], int]:
    """How many hooks of any kind a model carries."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return lambda model: sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)
