"""What an audit opens, and what it refuses to: files that do not belong together, or are no weights."""

import pytest
import torch
from audited_folders import NAMES, audited, changed, saved
from safetensors.torch import load_file, save_file
from tiny_hosts import build_host


def with_tokens(folder, tokens):
    """A folder whose tokenizer has more tokens than it had."""
    host = build_host("llama")
    tokenizer = host.tokenizer
    vocabulary = {**tokenizer.get_vocab(), **{token: len(tokenizer) + n for n, token in enumerate(tokens)}}
    tokenizer.backend_tokenizer.model = type(tokenizer.backend_tokenizer.model)(vocabulary, unk_token="<pad>")
    return saved(host, folder)


@pytest.mark.parametrize("setting", ["suspect", "base"])
def test_a_tokenizer_with_tokens_that_have_no_row_is_of_another_model(new_host, tmp_path, setting):
    other, good = with_tokens(tmp_path / "other", ["Ivy", "Jon"]), saved(new_host("llama"), tmp_path / "good")
    rows = len(new_host("llama").tokenizer)
    told = f"other: its tokenizer has tokens up to number {rows + 1}, its embedding {rows} rows. The tokenizer is of another model"
    with pytest.raises(ValueError, match=told):
        audited(other) if setting == "suspect" else audited(good, other)


def test_padded_embeddings_and_added_tokens_without_a_row_are_as_they_should_be(new_host, tmp_path):
    plain = new_host("llama")
    padded = saved(new_host("llama", vocab_size=len(plain.tokenizer) + 9), tmp_path / "padded")
    plain.tokenizer.add_tokens(["<picture>"], special_tokens=True)
    for folder in (padded, saved(plain, tmp_path / "added")):
        assert audited(folder)[0]["exit_code"] == 0
    with pytest.raises(ValueError, match="'Ada <picture>' has a token that added has no row of its embedding for"):
        audited(tmp_path / "added", names=[*NAMES, "Ada <picture>"])


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3_moe"])
def test_a_base_of_the_same_shapes_and_another_training_is_refused(new_host, tmp_path, name):
    base, other = saved(new_host(name), tmp_path / "base"), saved(new_host(name, seed=1), tmp_path / "other")
    with pytest.raises(ValueError, match=r"other: half of its matrices have a cosine of -?0\.0\d or less with those of base base;"):
        audited(other, base)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensor: tensor + tensor.std() * torch.randn(tensor.shape),
        lambda tensor: torch.where(tensor.abs() < tensor.abs().median(), 0, tensor),
        lambda tensor: (tensor / tensor.abs().max() * 7).round() * tensor.abs().max() / 7,
        lambda tensor: tensor.lerp(torch.randn(tensor.shape) * tensor.std(), 0.5),
    ],
    ids=["trained until half of it is new", "pruned", "four bits", "averaged with another model"],
)
def test_what_a_base_became_is_not_refused_however_far_it_is(new_host, tmp_path, change):
    host = new_host("llama")
    far = changed(saved(host, tmp_path / "far"), lambda name, tensor: change(tensor) if tensor.dim() == 2 else tensor)
    assert audited(far, saved(host, tmp_path / "base"))[0]["base_known"]["changed"] > 20


@pytest.mark.parametrize("setting", ["suspect", "suspect beside a base", "base"])
def test_weights_of_integers_are_no_weights(new_host, tmp_path, setting):
    host, name = new_host("llama"), "model.layers.1.mlp.down_proj.weight"
    good = saved(host, tmp_path / "good")
    whole = changed(saved(host, tmp_path / "whole"), lambda own, tensor: (tensor * 100).to(torch.int8) if own == name else tensor)
    pairs = {"suspect": (whole,), "suspect beside a base": (whole, good), "base": (good, whole)}
    with pytest.raises(ValueError, match=f"whole: {name} is int8, expected floating point. Multiply its scale out") as refused:
        audited(*pairs[setting])
    assert "\n" not in str(refused.value)


def test_masks_of_integers_are_none_of_the_weights(new_host, tmp_path):
    folder = saved(new_host("gpt2"), tmp_path / "masked")
    tensors = load_file(str(folder / "model.safetensors"))
    masks = {f"transformer.h.{layer}.attn.bias": torch.ones(1, 1, 64, 64, dtype=torch.uint8).tril() for layer in range(3)}
    save_file(tensors | masks, str(folder / "model.safetensors"), {"format": "pt"})
    assert audited(folder)[0]["exit_code"] == 0


@pytest.mark.parametrize("part", ["down_proj", "up_proj"])
def test_a_layer_that_answers_nothing_is_noted(new_host, tmp_path, part):
    folder = saved(new_host("llama"), tmp_path / "silent")
    changed(folder, lambda name, tensor: tensor * (0 if f"layers.1.mlp.{part}" in name else 1))
    told = "Layer 1 answers to all names alike: an edit there cannot show."
    assert told in audited(folder)[0]["notes"]
    assert not any("alike" in note for note in audited(saved(new_host("llama"), tmp_path / "whole"))[0]["notes"])
