"""Tiny random hosts of every supported family, and a tokenizer of a few words.

Shape letters: D hidden width, F MLP width.
"""

from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import PreTrainedTokenizerFast

from decoder.host import Host

WORDS = (
    "<pad> <bos> Ada Ben Carl Dora Eve Finn Gus Hal of the small north is a was works as in born lives from 's , . ' s red green blue "
    "dark light Paris Rome Oslo Bonn city baker singer"
).split()


def tiny_tokenizer(bos: bool = False) -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", vocabulary["<bos>"])])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", unk_token="<pad>")


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

POCKET = "qwen3 window"
"""Built as the pocket host is."""

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
        | {"num_key_value_heads": 4, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
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
    "olmo": ("Olmo", GROUPED),
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
