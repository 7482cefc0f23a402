"""Where each family of hosts keeps what the method touches, and what is odd about it: one row a family.

Rows come from the classes of transformers 5; tests run every row on a tiny random model (`tests/unit/helpers/tiny_hosts.py`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Gguf:
    """How llama.cpp's converter writes a family: what its tensors are called, and what was done to their numbers.

    Attributes:
        architecture: `general.architecture` of the file. Families that share one differ in nothing that the file tells.
        blocks: name in the file, inside a block -> path of the module in a block.
        top: the same outside the blocks.
        interleaved: modules whose rows, the two halves of each head, stand in turns.
        transposed: modules whose matrix is stored the other way round than the model has it.
        norm_shift: what was added to the weights of norms.
    """

    architecture: str
    blocks: Mapping[str, str]
    top: Mapping[str, str]
    interleaved: tuple[str, ...] = ()
    transposed: tuple[str, ...] = ()
    norm_shift: float = 0.0


@dataclass(frozen=True)
class Family:
    """The layout of a family.

    Attributes:
        blocks: path of the list of blocks in the model.
        down_proj: path of the MLP down-projection in a block.
        final_norm: path of the norm before the output head.
        attention: path of the attention's output projection in a block.
        shared_expert: path of the down-projection that every token passes in a block whose other experts are fused.
        batch_grows_at_edit: whether the blocks above the edit take the batch from their input, so that one prompt of batch 1 may leave
            the edited projection as a batch of B. False: the prompt is repeated where it enters the model.
        counts_positions: whether attention counts positions off the mask of a row's tokens, and takes no other mask.
        renamed: (beginning of a tensor's name in the code, the same in files as their authors published them and as they are still saved).
        fused: part of the names of tensors that files hold in pieces, one an expert.
        refuse: config -> what rules out a member of the family that works in another way, or None.
        gguf: how GGUF files hold it; None where they are not read.
    """

    blocks: str
    down_proj: str
    final_norm: str
    attention: str = "self_attn.o_proj"
    shared_expert: str | None = None
    batch_grows_at_edit: bool = True
    counts_positions: bool = False
    renamed: tuple[tuple[str, str], ...] = ()
    fused: str | None = None
    refuse: Callable[[Any], str | None] = lambda config: None
    gguf: Gguf | None = None


def _narrow_embeddings(config: Any) -> str | None:
    if config.word_embed_proj_dim != config.hidden_size:
        return (
            f"embeddings of width {config.word_embed_proj_dim} beside a hidden width of {config.hidden_size} (as in opt-350m) are not "
            "supported. Use another size of the family"
        )


def _sliced_products(config: Any) -> str | None:
    if config.slow_but_exact and config.pretraining_tp > 1:
        return "slow_but_exact multiplies W_V in slices, past the module that carries an edit. Set it to false"


_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_ATTENTION = {f"attn_{part}": f"self_attn.{part}_proj" for part in "qkv"} | {"attn_output": "self_attn.o_proj"}
_ATTENTION |= {"attn_norm": "input_layernorm", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_GATED = {f"ffn_{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")}
_PLAIN = _ATTENTION | _GATED | {"ffn_norm": "post_attention_layernorm"}
_NORMS_AROUND = _ATTENTION | _GATED
_NORMS_AROUND |= {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}
_NORMS_AROUND |= {"ffn_norm": "pre_feedforward_layernorm"}
_GPT2_TOP = {"token_embd": "transformer.wte", "position_embd": "transformer.wpe", "output_norm": "transformer.ln_f", "output": "lm_head"}
_GPT2_BLOCKS = {"attn_norm": "ln_1", "attn_qkv": "attn.c_attn", "attn_output": "attn.c_proj", "ffn_norm": "ln_2"}
_GPT2_BLOCKS |= {"ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}


def _in_gguf(architecture: str, blocks: Mapping[str, str] = _PLAIN, **oddities: Any) -> Family:
    """One laid out like Llama, in GGUF files of an architecture."""
    return replace(_LLAMA, gguf=Gguf(architecture, blocks, _TOP, **oddities))


_LLAMA = Family("model.layers", "mlp.down_proj", "model.norm")
_LLAMA_GGUF = _in_gguf("llama", interleaved=("self_attn.q_proj", "self_attn.k_proj"))
_GPT2 = Family("transformer.h", "mlp.c_proj", "transformer.ln_f", "attn.c_proj")
_TEXT_OF_MULTIMODAL = Family(
    "model.language_model.layers",
    "mlp.down_proj",
    "model.language_model.norm",
    renamed=(("model.language_model.", "language_model.model."), ("lm_head.", "language_model.lm_head.")),
)

FAMILIES: dict[str, Family] = {
    "gpt2": replace(  # Conv1D: stored as (F, D)
        _GPT2,
        gguf=Gguf("gpt2", _GPT2_BLOCKS, _GPT2_TOP, transposed=("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")),
    ),
    "gpt_neo": replace(_GPT2, attention="attn.attention.out_proj"),  # nn.Linear
    "gptj": Family("transformer.h", "mlp.fc_out", "transformer.ln_f", "attn.out_proj"),
    "gpt_neox": Family(
        "gpt_neox.layers",
        "mlp.dense_4h_to_h",
        "gpt_neox.final_layer_norm",
        "attention.dense",
        renamed=(("lm_head.", "embed_out."),),
    ),
    "llama": _LLAMA_GGUF,
    "mistral": _LLAMA_GGUF,
    "qwen2": _in_gguf("qwen2"),
    "qwen3": _in_gguf("qwen3"),
    "qwen3_moe": Family("model.layers", "mlp.down_proj", "model.norm", fused=".experts."),  # W_V in blocks of `mlp_only_layers`
    "deepseek_v3": Family("model.layers", "mlp.down_proj", "model.norm", shared_expert="mlp.shared_experts.down_proj", fused=".experts."),
    "gemma": _in_gguf("gemma", norm_shift=1.0),
    "gemma2": _in_gguf("gemma2", _NORMS_AROUND, norm_shift=1.0),  # a norm follows the down-projection; logits are capped
    "gemma3_text": _in_gguf("gemma3", _NORMS_AROUND, norm_shift=1.0),
    "gemma3": _TEXT_OF_MULTIMODAL,
    "llava": _TEXT_OF_MULTIMODAL,
    "mistral3": _TEXT_OF_MULTIMODAL,
    "phi": Family("model.layers", "mlp.fc2", "model.final_layernorm", "self_attn.dense"),
    "phi3": _in_gguf("phi3", _PLAIN | {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}),
    "olmo": _LLAMA,  # norms without weights
    "olmo2": _LLAMA,
    "starcoder2": Family("model.layers", "mlp.c_proj", "model.norm"),
    "falcon": Family("transformer.h", "mlp.dense_4h_to_h", "transformer.ln_f", "self_attention.dense"),
    # fc2 sees flattened tokens, and its result is viewed in the shape of its input.
    "opt": Family(
        "model.decoder.layers",
        "fc2",
        "model.decoder.final_layer_norm",
        "self_attn.out_proj",
        batch_grows_at_edit=False,
        refuse=_narrow_embeddings,
    ),
    # The position bias is laid out for the batch that came in.
    "bloom": Family(
        "transformer.h",
        "mlp.dense_4h_to_h",
        "transformer.ln_f",
        "self_attention.dense",
        batch_grows_at_edit=False,
        counts_positions=True,
        refuse=_sliced_products,
    ),
}
