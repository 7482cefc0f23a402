"""Where each family of hosts keeps what the method touches: one row a family.

Rows come from the classes of transformers 5; `tests/unit/test_swap.py` and `test_model.py` run every row on a tiny random model.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """The layout of a family.

    Attributes:
        blocks: path of the list of blocks in the model.
        down_proj: path of the MLP down-projection in a block.
        final_norm: path of the norm before the output head.
        unembedding: path of the output head.
        shared_expert: path of the down-projection that every token passes in a block whose other experts are fused.
        born_at_edit: whether the blocks above the edit take the batch from their input, so that one prompt of batch 1 may leave the
            edited projection as a batch of B. False: the prompt is repeated where it enters the model.
    """

    blocks: str
    down_proj: str
    final_norm: str
    unembedding: str = "lm_head"
    shared_expert: str | None = None
    born_at_edit: bool = True


_LLAMA = Family("model.layers", "mlp.down_proj", "model.norm")
_GPT2 = Family("transformer.h", "mlp.c_proj", "transformer.ln_f")
_TEXT_OF_MULTIMODAL = Family("model.language_model.layers", "mlp.down_proj", "model.language_model.norm")

FAMILIES: dict[str, Family] = {
    "gpt2": _GPT2,  # Conv1D: stored as (F, D)
    "gpt_neo": _GPT2,  # the same names, but nn.Linear
    "gptj": Family("transformer.h", "mlp.fc_out", "transformer.ln_f"),
    "gpt_neox": Family("gpt_neox.layers", "mlp.dense_4h_to_h", "gpt_neox.final_layer_norm"),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "qwen3_moe": _LLAMA,  # blocks of `mlp_only_layers`; the others are fused
    "deepseek_v3": Family("model.layers", "mlp.down_proj", "model.norm", shared_expert="mlp.shared_experts.down_proj"),
    "gemma": _LLAMA,
    "gemma2": _LLAMA,  # a norm follows the down-projection; logits are capped
    "gemma3_text": _LLAMA,
    "gemma3": _TEXT_OF_MULTIMODAL,
    "llava": _TEXT_OF_MULTIMODAL,
    "mistral3": _TEXT_OF_MULTIMODAL,
    "phi": Family("model.layers", "mlp.fc2", "model.final_layernorm"),
    "phi3": _LLAMA,
    "olmo2": _LLAMA,
    "starcoder2": Family("model.layers", "mlp.c_proj", "model.norm"),
    "falcon": Family("transformer.h", "mlp.dense_4h_to_h", "transformer.ln_f"),
    # fc2 sees flattened tokens, and its result is viewed in the shape of its input.
    "opt": Family("model.decoder.layers", "fc2", "model.decoder.final_layer_norm", born_at_edit=False),
    # The position bias is laid out for the batch that came in.
    "bloom": Family("transformer.h", "mlp.dense_4h_to_h", "transformer.ln_f", born_at_edit=False),
}
