"""Where each family of hosts keeps what the method touches, and what is odd about it: one row a family.

Rows come from the classes of transformers 5; tests run every row on a tiny random model (`tests/unit/helpers/tiny_hosts.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Family:
    """The layout of a family.

    Attributes:
        blocks: path of the list of blocks in the model.
        down_proj: path of the MLP down-projection in a block.
        final_norm: path of the norm before the output head.
        shared_expert: path of the down-projection that every token passes in a block whose other experts are fused.
        batch_grows_at_edit: whether the blocks above the edit take the batch from their input, so that one prompt of batch 1 may leave
            the edited projection as a batch of B. False: the prompt is repeated where it enters the model.
        renamed: (beginning of a tensor's name in the code, the same in files as their authors published them and as they are still saved).
        fused: part of the names of tensors that files hold in pieces, one an expert.
        refuse: config -> what rules out a member of the family that works in another way, or None.
    """

    blocks: str
    down_proj: str
    final_norm: str
    shared_expert: str | None = None
    batch_grows_at_edit: bool = True
    renamed: tuple[tuple[str, str], ...] = ()
    fused: str | None = None
    refuse: Callable[[Any], str | None] = lambda config: None


def _narrow_embeddings(config: Any) -> str | None:
    if config.word_embed_proj_dim != config.hidden_size:
        return (
            f"embeddings of width {config.word_embed_proj_dim} beside a hidden width of {config.hidden_size} (as in opt-350m) are not "
            "supported. Use another size of the family"
        )


def _sliced_products(config: Any) -> str | None:
    if config.slow_but_exact and config.pretraining_tp > 1:
        return "slow_but_exact multiplies W_V in slices, past the module that carries an edit. Set it to false"


_LLAMA = Family("model.layers", "mlp.down_proj", "model.norm")
_GPT2 = Family("transformer.h", "mlp.c_proj", "transformer.ln_f")
_TEXT_OF_MULTIMODAL = Family(
    "model.language_model.layers",
    "mlp.down_proj",
    "model.language_model.norm",
    renamed=(("model.language_model.", "language_model.model."), ("lm_head.", "language_model.lm_head.")),
)

FAMILIES: dict[str, Family] = {
    "gpt2": _GPT2,  # Conv1D: stored as (F, D)
    "gpt_neo": _GPT2,  # the same names, but nn.Linear
    "gptj": Family("transformer.h", "mlp.fc_out", "transformer.ln_f"),
    "gpt_neox": Family("gpt_neox.layers", "mlp.dense_4h_to_h", "gpt_neox.final_layer_norm", renamed=(("lm_head.", "embed_out."),)),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "qwen3_moe": Family("model.layers", "mlp.down_proj", "model.norm", fused=".experts."),  # W_V in blocks of `mlp_only_layers`
    "deepseek_v3": Family("model.layers", "mlp.down_proj", "model.norm", shared_expert="mlp.shared_experts.down_proj", fused=".experts."),
    "gemma": _LLAMA,
    "gemma2": _LLAMA,  # a norm follows the down-projection; logits are capped
    "gemma3_text": _LLAMA,
    "gemma3": _TEXT_OF_MULTIMODAL,
    "llava": _TEXT_OF_MULTIMODAL,
    "mistral3": _TEXT_OF_MULTIMODAL,
    "phi": Family("model.layers", "mlp.fc2", "model.final_layernorm"),
    "phi3": _LLAMA,
    "olmo": _LLAMA,  # norms without weights
    "olmo2": _LLAMA,
    "starcoder2": Family("model.layers", "mlp.c_proj", "model.norm"),
    "falcon": Family("transformer.h", "mlp.dense_4h_to_h", "transformer.ln_f"),
    # fc2 sees flattened tokens, and its result is viewed in the shape of its input.
    "opt": Family("model.decoder.layers", "fc2", "model.decoder.final_layer_norm", batch_grows_at_edit=False, refuse=_narrow_embeddings),
    # The position bias is laid out for the batch that came in.
    "bloom": Family("transformer.h", "mlp.dense_4h_to_h", "transformer.ln_f", batch_grows_at_edit=False, refuse=_sliced_products),
}
