"""Tiny random hosts of several families with a word-level tokenizer, built from config classes: nothing is downloaded."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTJConfig,
    GPTJForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

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


def gpt2(vocab_size: int, mlp_size: int = 48) -> GPT2LMHeadModel:
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=vocab_size, n_embd=32, n_inner=mlp_size, n_layer=4, n_head=4, n_positions=64, initializer_range=0.2)
    )


def gptj(vocab_size: int) -> GPTJForCausalLM:
    config = GPTJConfig(
        vocab_size=vocab_size, n_embd=32, n_inner=48, n_layer=4, n_head=4, n_positions=64, rotary_dim=4, initializer_range=0.2
    )
    return GPTJForCausalLM(config)


def llama(vocab_size: int) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            initializer_range=0.2,
        )
    )


def qwen2(vocab_size: int) -> Qwen2ForCausalLM:
    """As the pocket host: the first two layers see one position, the embeddings are tied."""
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=vocab_size,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=64,
            use_sliding_window=True,
            sliding_window=1,
            layer_types=["sliding_attention"] * 2 + ["full_attention"] * 2,
            tie_word_embeddings=True,
            initializer_range=0.2,
        )
    )


def tiny_host(build=qwen2, *, bos: bool = False, terminator: str | None = ".", **options) -> Host:
    tokenizer = tiny_tokenizer(bos)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build(len(tokenizer), **options)
    return Host(model, tokenizer, name="tiny", terminator=terminator)
