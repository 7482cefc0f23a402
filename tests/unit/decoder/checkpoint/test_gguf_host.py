"""A GGUF file as a host: what the model and its tokenizer say is what the twin says; opened from the cache from then on."""

import json
import re
from pathlib import Path

import pytest
import torch
from gguf_files import TEXT, TWINS, WIDTH, twin_of, words_of_bytes, write_gguf

from decoder.checkpoint.gguf_config import _llama3
from decoder.checkpoint.gguf_host import host_folder
from decoder.checkpoint.gguf_tokenizer import tokenizer_of
from decoder.host import Host

SPACE = "\u2581"
TOKENS = words_of_bytes()[0]
CAPS = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}


def loaded(path, cache, name="tiny", dtype="float32") -> Host:
    return Host.load(host_folder(path, name=name, dtype=dtype, cache_dir=str(cache), shown=True), name=name, dtype=dtype)


@pytest.fixture(scope="module")
def llama():
    return twin_of("llama")


@pytest.mark.parametrize(("name", "settings"), [*((name, {}) for name in TWINS), ("llama", {"head_dim": 16}), ("gemma2", CAPS)])
def test_logits_are_the_twins(name, settings, tmp_path):
    twin = twin_of(name, **settings)
    host = loaded(write_gguf(tmp_path / "twin.gguf", twin), tmp_path / "cache")
    assert host.family.gguf == twin.family.gguf and host.layers == twin.layers
    ids = torch.randint(2, 300, (2, 9), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(host.model(input_ids=ids).logits, twin.model(input_ids=ids).logits, rtol=1e-5, atol=1e-5)
    assert host.longest_input == 64 and "quantization_config" not in host.model.config.to_dict()


def test_the_tokenizer_is_the_files(llama, tmp_path):
    host = loaded(write_gguf(tmp_path / "twin.gguf", llama), tmp_path / "cache")
    assert host.tokenizer.get_vocab() == {token: n for n, token in enumerate(words_of_bytes()[0])}
    for text in [*TEXT, "  Two of 1998's naïve <|end|> cities!\n\n", ""]:
        assert host.text_ids(text) == llama.text_ids(text), text
        assert host.tokenizer.decode(host.text_ids(text)) == text
    assert host.tokenizer.all_special_tokens == ["<|end|>", "<|pad|>"] and host.object_ids("Paris") == host._plain_ids(" Paris")
    assert host.prompt_ids("{} works", "Ada") == (host.text_ids("Ada works"), len(host._plain_ids("Ada")) - 1)


@pytest.mark.parametrize("adds", [True, False, None])
def test_a_first_token_is_added_where_the_file_says_so(llama, tmp_path, adds):
    metadata = {"tokenizer.ggml.bos_token_id": 0} | ({} if adds is None else {"tokenizer.ggml.add_bos_token": adds})
    host = loaded(write_gguf(tmp_path / "twin.gguf", llama, metadata=metadata), tmp_path / "cache")
    plain = host._plain_ids("Ada")
    assert host.text_ids("Ada") == ([0] * bool(adds) + plain)
    assert host.prompt_ids("{} works", "Ada")[1] == len(plain) - 1 + bool(adds)


SPLITS = {
    "llama-bpe": ["It", "'s", "Ġ", "201", "2", ",", "ĠDon", "'T"],
    "qwen2": ["It", "'s", "Ġ", "2", "0", "1", "2", ",", "ĠDon", "'T"],
    "smollm": ["It", "'s", "Ġ", "2", "0", "1", "2", ",", "ĠDon", "'", "T"],
    "gpt-2": ["It", "'s", "Ġ2012", ",", "ĠDon", "'", "T"],
    "tekken": ["It", "'s", "Ġ", "2", "0", "1", "2", ",", "ĠDon", "'T"],
}


@pytest.mark.parametrize("rule", SPLITS)
def test_text_is_split_as_the_vocabulary_was_learnt(rule):
    """Every piece is a token, so tokens are the pieces."""
    pieces = sorted({piece for found in SPLITS.values() for piece in found}, key=lambda piece: (-len(piece), piece))
    letters = sorted({letter for piece in pieces for letter in piece} - set(pieces))
    merges = [f"{piece[:cut]} {piece[cut]}" for piece in pieces for cut in range(1, len(piece))]
    tokens = letters + pieces + sorted({"".join(merge.split()) for merge in merges} - set(pieces))
    metadata = {"general.architecture": "llama", "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": rule}
    metadata |= {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.merges": list(dict.fromkeys(merges))}
    assert tokenizer_of(metadata).tokenize("It's 2012, Don'T") == SPLITS[rule]


@pytest.mark.parametrize(("rule", "whole"), [("gpt-2", False), ("qwen2", False), ("llama-bpe", True), ("tekken", True)])
def test_a_piece_that_is_a_token_is_taken_whole_by_some(rule, whole):
    metadata = {"general.architecture": "llama", "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": rule}
    metadata |= {"tokenizer.ggml.tokens": ["x", "y", "xy", "yx", "xyx"], "tokenizer.ggml.merges": ["x y", "y x"]}
    assert tokenizer_of(metadata).tokenize("xyx") == (["xyx"] if whole else ["xy", "x"])


@pytest.mark.parametrize(("architecture", "prefix"), [("llama", True), ("gemma3", False)])
def test_sentencepiece(architecture, prefix):
    words = [f"{SPACE}Paris", f"{SPACE}is", "Paris", "is"]
    grown = list(dict.fromkeys(word[:end] for word in words for end in range(2, len(word) + 1)))
    blanks = ["  ", "   "] if architecture == "gemma3" else [SPACE * 2, SPACE * 3]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), SPACE, *"Pariséx", *grown, *blanks]
    kinds = [2, 3, 3] + [6] * 256 + [1] * (len(tokens) - 259)
    metadata = {"general.architecture": architecture, "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": tokens}
    metadata |= {"tokenizer.ggml.token_type": kinds, "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.unknown_token_id": 0}
    metadata |= {"tokenizer.ggml.scores": [-float(n) for n in range(len(tokens))], "tokenizer.ggml.add_space_prefix": prefix}
    tokenizer = tokenizer_of(metadata)
    first = [f"{SPACE}Paris"] if prefix else ["Paris"]
    assert tokenizer.tokenize("Paris is é") == [*first, f"{SPACE}is", SPACE, "é"]
    assert tokenizer.tokenize("Paris   is") == [*first, SPACE * 2, f"{SPACE}is"]
    assert tokenizer.convert_ids_to_tokens(tokenizer("ñ")["input_ids"])[-2:] == ["<0xC3>", "<0xB1>"]
    assert tokenizer.tokenize("Paris</s>")[-1] == "</s>", "a control token is one token"
    assert tokenizer("Paris")["input_ids"][0] == 1
    assert tokenizer.decode(tokenizer("Paris is")["input_ids"], skip_special_tokens=True) == "Paris is"


def test_frequencies_of_llama_3(tmp_path):
    """The file has them as a tensor; the model computes them from the rule."""
    scaling = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    twin = twin_of("llama", rope_parameters={"rope_theta": 500000.0} | scaling)
    slower = torch.tensor(_llama3(500000.0, 8, 32.0))
    (plain,) = {twin_of("llama", rope_parameters={"rope_theta": 500000.0, "rope_type": "default"})}
    torch.testing.assert_close(plain.model.model.rotary_emb.inv_freq / slower, twin.model.model.rotary_emb.inv_freq)
    host = loaded(write_gguf(tmp_path / "twin.gguf", twin, more={"rope_freqs.weight": slower}), tmp_path / "cache")
    torch.testing.assert_close(host.model.model.rotary_emb.inv_freq, twin.model.model.rotary_emb.inv_freq)
    with pytest.raises(ValueError, match="scaled by rope_freqs.weight, which is not read from GGUF"):
        loaded(write_gguf(tmp_path / "other.gguf", twin, more={"rope_freqs.weight": slower + 1}), tmp_path / "cache")
    with pytest.raises(ValueError, match=r"short.gguf: rope_freqs.weight is \(3,\), heads of 8 have 4 frequencies"):
        loaded(write_gguf(tmp_path / "short.gguf", twin, more={"rope_freqs.weight": slower[:3]}), tmp_path / "cache")


EXPERTS = [{"metadata": {"llama.expert_count": 8}}, {"more": {"blk.0.ffn_gate_exps.weight": torch.zeros(2, 64, 32)}}]


@pytest.mark.parametrize("told", EXPERTS)
def test_a_mixture_of_experts_is_refused_by_its_name(llama, tmp_path, told):
    with pytest.raises(ValueError, match="twin.gguf is a mixture of experts, which are not read from GGUF. Give the safetensors"):
        loaded(write_gguf(tmp_path / "twin.gguf", llama, **told), tmp_path / "cache")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"llama.rope.scaling.type": "yarn"}, "scaled yarn, which is not read"),
        ({"llama.block_count": 4}, r"model.layers.3.* is nothing, llama of these sizes has \("),
        ({"llama.embedding_length": 40}, r"is \(.*32\), llama of these sizes has \(.*40\)"),
        ({"llama.block_count": "three"}, "no whole number llama.block_count"),
        ({"tokenizer.ggml.model": "bert"}, "its tokenizer is 'bert', expected gpt2 .* or llama"),
        ({"tokenizer.ggml.pre": "viking"}, "splits text by the rule 'viking'; known are default, gpt-2"),
        ({"tokenizer.ggml.tokens": TOKENS[:-1]}, rf"merge \d+, '.*', needs token '{TOKENS[-1]}', which is missing"),
        ({"tokenizer.ggml.tokens": [*TOKENS[:-1], TOKENS[5]]}, rf"token {len(TOKENS) - 1}, .{re.escape(TOKENS[5])}., stands there twice"),
        ({"tokenizer.ggml.tokens": [*range(len(TOKENS))]}, "token 0 is 0, expected text"),
        ({"tokenizer.ggml.merges": ["ab", "a b"]}, "merge 0 is 'ab', expected two tokens with a space between"),
        ({"tokenizer.ggml.merges": ["a "]}, "merge 0 is 'a ', expected two tokens with a space between"),
        ({"tokenizer.ggml.merges": "a b"}, "its merges are str, expected a list"),
    ],
)
def test_what_is_no_host_is_one_line(llama, tmp_path, metadata, message):
    file = write_gguf(tmp_path / "twin.gguf", llama, metadata=metadata)
    with pytest.raises(ValueError, match=message) as refused:
        loaded(file, tmp_path / "cache")
    assert "\n" not in str(refused.value) and str(refused.value).startswith("host tiny: ")
    assert all(path.suffix == ".lock" for path in (tmp_path / "cache" / "hosts").glob("*")), "nothing half made is left"


def test_files_that_are_no_host_are_one_line(llama, tmp_path):
    def refused(path, message):
        with pytest.raises(ValueError, match=f"host tiny: .*{message}") as error:
            loaded(path, tmp_path / "cache")
        assert "\n" not in str(error.value)

    refused(tmp_path / "absent.gguf", "no such file")
    (tmp_path / "w.gguf").write_text("version https://git-lfs.github.com/spec/v1\n")
    refused(tmp_path / "w.gguf", "a Git LFS pointer")
    (tmp_path / "two").mkdir()
    for name in "ab":
        write_gguf(tmp_path / "two" / f"{name}.gguf", llama)
    refused(tmp_path / "two", "has 2 GGUF files, a.gguf among them")


def test_biases_and_widths_are_the_files(tmp_path):
    for name in ("llama bias", "gpt2"):
        host = loaded(write_gguf(tmp_path / f"{name}.gguf", twin_of(name)), tmp_path / "cache", name)
        assert host.mlp_size(1) == WIDTH
        config = json.loads((Path(host.path) / "config.json").read_text())
        assert config.get("mlp_bias", False) is (name == "llama bias") and not config.get("attention_bias", False)
