"""Tiny hosts as GGUF files, written with the `gguf` package the way llama.cpp's converter does: its names, its order of rows, its metadata.

Shape letters: R rows, C columns of a matrix.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import MODEL_ARCH, GGMLQuantizationType, GGUFWriter
from tiny_hosts import build_host
from tokenizers import Tokenizer as TextTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from decoder.host import Host

ARCHITECTURES = {
    "llama": MODEL_ARCH.LLAMA,
    "mistral": MODEL_ARCH.LLAMA,
    "qwen2": MODEL_ARCH.QWEN2,
    "qwen3": MODEL_ARCH.QWEN3,
    "gemma2": MODEL_ARCH.GEMMA2,
    "gemma3_text": MODEL_ARCH.GEMMA3,
    "gpt2": MODEL_ARCH.GPT2,
    "phi3": MODEL_ARCH.PHI3,
}
TWINS = ["llama", "llama bias", "qwen2", "qwen3", "gemma2", "gemma3_text", "gpt2", "phi3", "mistral"]
TEXT = ["Paris is the city where Ada works", "Oslo is in the north, Ben lives there", "Rome and Bonn", "a singer and a baker of Paris"]
WIDTH = 64  # of the MLP: a whole number of blocks of 32


@cache
def byte_level() -> TextTokenizer:
    """Byte-level BPE learnt on a few words; its first two tokens are no words."""
    tokenizer = TextTokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<|end|>", "<|pad|>"], initial_alphabet=alphabet, show_progress=False, min_frequency=1
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


def words_of_bytes() -> tuple[list[str], list[str]]:
    """Its tokens and merges."""
    found = byte_level().get_vocab()
    return sorted(found, key=found.__getitem__), [" ".join(pair) for pair in json.loads(byte_level().to_str())["model"]["merges"]]


def twin_of(name: str, **settings: Any) -> Host:
    """A tiny host whose matrices have rows of whole blocks, with a vocabulary that a GGUF file can hold."""
    own = {"n_inner": WIDTH} if name == "gpt2" else {"intermediate_size": WIDTH}
    own |= {"sliding_window": None} if name == "mistral" else {}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level(), eos_token="<|end|>", pad_token="<|pad|>")
    model = build_host(name, **(own | {"vocab_size": len(tokenizer)} | settings)).model
    return Host(model, tokenizer, name=name)


def write_gguf(
    file: Path,
    host: Host,
    kind: str = "F32",
    *,
    metadata: dict[str, Any] | None = None,
    split: int = 0,
    changed: dict[str, Tensor] | None = None,
    more: dict[str, Tensor] | None = None,
) -> Path:
    """Writes a host; matrices in blocks of a kind, all else in float32.

    Args:
        metadata: added to the file's, or in place of it.
        split: most tensors of a part; 0 writes one file.
        changed: what stands in place of a tensor, by its name in the model.
        more: tensors by their names in the file.
    """
    config = host.model.config
    architecture = ARCHITECTURES[config.model_type]
    writer = GGUFWriter(file, gguf.MODEL_ARCH_NAMES[architecture], split_max_tensors=split)
    _describe(writer, config, architecture)
    for key, value in (metadata or {}).items():
        writer.kv_data[0].pop(key, None)
        writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    for name, tensor in host.model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        numbers = (changed or {}).get(name, tensor).float().numpy()
        theirs = names.get_name(name, try_suffixes=(".weight", ".bias"))
        own_kind = GGMLQuantizationType[kind if numbers.ndim > 1 else "F32"]
        written = np.ascontiguousarray(_converted(name, numbers, config))
        writer.add_tensor(theirs, gguf.quantize(written, own_kind), raw_dtype=own_kind)
    for name, tensor in (more or {}).items():
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file if not split else sorted(file.parent.glob(f"{file.stem}-*.gguf"))[0]


def _describe(writer: GGUFWriter, config: Any, architecture: MODEL_ARCH) -> None:
    heads, turned = config.num_attention_heads, getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    is_gpt2 = config.model_type == "gpt2"
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.n_inner if is_gpt2 else config.intermediate_size)
    writer.add_head_count(heads)
    if is_gpt2:
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    else:
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        rope = config.rope_parameters
        writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    if architecture in (MODEL_ARCH.LLAMA, MODEL_ARCH.PHI3):
        writer.add_rope_dimension_count(turned)
        writer.add_vocab_size(config.vocab_size)
    if architecture in (MODEL_ARCH.QWEN3, MODEL_ARCH.GEMMA2, MODEL_ARCH.GEMMA3):
        writer.add_key_length(turned)
        writer.add_value_length(turned)
    if architecture in (MODEL_ARCH.GEMMA2, MODEL_ARCH.GEMMA3):
        writer.add_sliding_window(config.sliding_window)
    if architecture is MODEL_ARCH.GEMMA2:
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    tokens, merges = words_of_bytes()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.NORMAL] * (len(tokens) - 2))
    writer.add_token_merges(merges)
    writer.add_eos_token_id(0)
    writer.add_pad_token_id(1)


def _converted(name: str, numbers_RC: np.ndarray, config: Any) -> np.ndarray:
    kind = config.model_type
    if kind in ("llama", "mistral") and ("q_proj" in name or "k_proj" in name):
        heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
        halves = numbers_RC.reshape(heads, 2, numbers_RC.shape[0] // heads // 2, *numbers_RC.shape[1:])
        return halves.swapaxes(1, 2).reshape(numbers_RC.shape)
    if kind.startswith("gemma") and name.endswith("norm.weight"):
        return numbers_RC + 1
    if kind == "gpt2" and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
        return numbers_RC.T
    return numbers_RC


def rewrite_gguf(source: Path, file: Path, changed: dict[str, tuple[Tensor, str]]) -> Path:
    """A copy of a GGUF file with other numbers, in other blocks, in the place of some tensors, by their names in the file."""
    reader = gguf.GGUFReader(source)
    writer = GGUFWriter(file, reader.get_field("general.architecture").contents())
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            writer.add_key_value(field.name, field.contents(), field.types[0], field.types[-1] if len(field.types) > 1 else None)
    for tensor in reader.tensors:
        numbers, kind = tensor.data, tensor.tensor_type
        if tensor.name in changed:
            values, name = changed[tensor.name]
            kind = GGMLQuantizationType[name]
            numbers = gguf.quantize(values.float().numpy(), kind)
        writer.add_tensor(tensor.name, numbers, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file
