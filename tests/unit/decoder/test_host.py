"""The host: where its parts are, how it reads prompts and objects, and what it is known by."""

import copy
import warnings

import pytest
import torch
from torch import nn
from transformers import CTRLConfig, CTRLLMHeadModel, DynamicCache, GPT2Config, LlamaTokenizer

from data.facts.load import load_facts
from data.pocket.tokenizer import build_tokenizer
from decoder.config import FactsConfig
from decoder.families import FAMILIES
from decoder.host import Host


@pytest.fixture(scope="module")
def facts():
    return load_facts(FactsConfig())


@pytest.fixture(scope="module")
def pocket(host_of, facts):
    """A tiny host that reads with the pocket's tokenizer; it is not run."""
    return Host(host_of("llama").model, build_tokenizer(facts, 600), name="pocket", terminator=".")


def words(host, ids: list[int]) -> list[str]:
    return host.tokenizer.convert_ids_to_tokens(ids)


@pytest.mark.parametrize("bos", [False, True], ids=["", "bos"])
@pytest.mark.parametrize(
    ("template", "subject", "last"),
    [
        ("{} works as a", "Ada", "Ada"),
        ("the city of {} is", "Ada of the north", "north"),
        ("{}'s city is", "Ada of the small north", "north"),
        ("{}, born in", "Ben", "Ben"),
        ("a baker is {}", "Carl", "Carl"),
        ("Ada of Ada is {} of Ada", "Ada", "Ada"),
    ],
)
def test_subject_last(new_host, bos, template, subject, last):
    host = new_host("llama", bos=bos)
    ids, found = host.prompt_ids(template, subject)
    assert words(host, ids)[found] == last
    assert host.tokenizer.decode(ids[: found + 1]).endswith(subject)
    assert words(host, ids)[0] == "<bos>" if bos else "<bos>" not in words(host, ids)
    before = host.text_ids(template[: template.index("{}")] + subject)
    assert found == len(before) - 1 and ids[: found + 1] == before


@pytest.mark.parametrize("template", ["{} makes a living as", "The trade of {} is", "{}'s trade is", "{}, a person,", "{}."])
@pytest.mark.parametrize("subject", ["Sena Medal", "Eibenstock", "CFMJ"])
def test_subject_last_with_the_pocket_tokenizer(pocket, template, subject):
    ids, found = pocket.prompt_ids(template, subject)
    word = subject.split()[-1]
    assert words(pocket, ids)[found].strip("▁") in word
    assert "".join(words(pocket, ids[: found + 1])).replace("▁", " ").endswith(word)


def test_trailing_space_is_no_part_of_a_subject(host_of, pocket):
    for host, subject in ((host_of("llama"), "Ada"), (pocket, "Sena Medal")):
        ids, found = host.prompt_ids("{} works as", subject + " ")
        assert words(host, ids)[found].strip("▁") == subject.split()[-1]


def test_bad_prompts_are_refused(host_of):
    host = host_of("llama")
    for template in ("works as a", "{} is {}"):
        with pytest.raises(ValueError, match=r"exactly one \{\}"):
            host.prompt_ids(template, "Ada")
    for subject in ("", "  "):
        with pytest.raises(ValueError, match="no token covers"):
            host.prompt_ids("{} works as", subject)


def test_objects_have_a_leading_space_and_nothing_else(new_host, pocket):
    host = new_host("llama", bos=True)
    assert words(host, host.object_ids("red Oslo")) == words(host, host.object_ids("  red Oslo ")) == ["red", "Oslo"]
    assert words(host, host.text_ids("red Oslo")) == ["<bos>", "red", "Oslo"]
    ids = pocket.object_ids("India")
    assert words(pocket, ids)[0].startswith("▁") and pocket.tokenizer.decode(ids).strip() == "India"
    full, _ = pocket.prompt_ids("{} lies within the borders of India.", "Sena Medal")
    assert full[-len(ids) - 1 :] == [*ids, pocket.terminator_id], "an object reads as it stands in a sentence"


@pytest.mark.parametrize("legacy", [False, True], ids=["", "legacy"])
def test_leading_space_is_not_doubled(host_of, legacy):
    """Llama's tokenizer puts a space before a text by itself: an object must not read as an empty word and the object."""
    pieces = ["<unk>", "<s>", "</s>", "▁", "P", "a", "r", "i", "s", "Pa", "ri", "Pari", "Paris", "▁Paris", "▁i", "▁is"]
    merges = [("P", "a"), ("r", "i"), ("Pa", "ri"), ("Pari", "s"), ("▁", "Paris"), ("▁", "i"), ("▁i", "s")]
    tokenizer = LlamaTokenizer({piece: i for i, piece in enumerate(pieces)}, merges, legacy=legacy)
    host = Host(host_of("llama").model, tokenizer, name="llama")
    assert words(host, host.text_ids("is Paris"))[-1] == "▁Paris"
    assert words(host, host.object_ids("Paris")) == ["▁Paris"]


def test_terminator_is_one_token(new_host, pocket):
    assert words(pocket, [pocket.terminator_id]) == ["▁."]
    assert new_host("llama", terminator=None).terminator_id is None
    with pytest.raises(ValueError, match=r"host.terminator='of the' is 2 tokens of llama; expected one"):
        new_host("llama", terminator="of the")


def test_unknown_family_lists_the_known_ones(new_host):
    model = CTRLLMHeadModel(CTRLConfig(vocab_size=20, n_embd=16, dff=16, n_layer=1, n_head=2))
    with pytest.raises(ValueError, match="'ctrl' is not supported") as refusal:
        Host(model, new_host("llama").tokenizer, name="stranger")
    assert "stranger" in str(refusal.value) and all(family in str(refusal.value) for family in FAMILIES)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [("opt", {"word_embed_proj_dim": 16}, "width 16"), ("bloom", {"slow_but_exact": True, "pretraining_tp": 2}, "slow_but_exact")],
)
def test_layouts_that_work_in_another_way_are_refused(new_host, name, settings, message):
    with pytest.raises(ValueError, match=message) as refusal:
        new_host(name, **settings)
    assert name in str(refusal.value)


def test_fused_experts_are_refused_and_the_usable_layers_listed(new_host):
    host = new_host("qwen3_moe", mlp_only_layers=[1])
    assert host.module_path(1) == "model.layers.1.mlp.down_proj"
    for layer in (0, 2):
        with pytest.raises(ValueError, match=rf"layer={layer}: .*fused in one tensor.*that have one: 1$"):
            host.down_proj(layer)
    with pytest.raises(ValueError, match="that have one: none"):
        new_host("qwen3_moe", mlp_only_layers=[]).weight_DF(0)


def test_shared_expert_stands_in_for_the_projection(host_of):
    host = host_of("deepseek_v3")
    assert [host.down_proj_path(layer) for layer in range(3)] == ["mlp.down_proj", *["mlp.shared_experts.down_proj"] * 2]


def test_layout(any_host):
    assert any_host.layers == 3 and any_host.hidden_size == 32 and any_host.mlp_size(1) in (32, 48, 128)
    for layer in range(3):
        projection = any_host.down_proj(layer)
        assert any_host.model.get_submodule(any_host.module_path(layer)) is projection
        weight_DF = any_host.weight_DF(layer)
        assert weight_DF.shape == (32, any_host.mlp_size(1)) and not weight_DF.requires_grad
        assert weight_DF.data_ptr() == projection.weight.data_ptr(), "a view, not a copy"
        x_1F = torch.randn(1, any_host.mlp_size(1))
        bias_D = 0 if projection.bias is None else projection.bias
        torch.testing.assert_close(x_1F @ weight_DF.T + bias_D, projection(x_1F), rtol=1e-5, atol=1e-5)
    assert not any_host.model.training and not any(parameter.requires_grad for parameter in any_host.model.parameters())


def test_unembed_is_final_norm_and_head(any_host):
    caught: list[torch.Tensor] = []
    handle = any_host.blocks[-1].register_forward_hook(lambda module, args, output: caught.append(output))
    logits_1TV = any_host.model(torch.tensor([[3, 4, 5]]), use_cache=False).logits
    handle.remove()
    hidden_1TD = caught[0][0] if isinstance(caught[0], tuple) else caught[0]
    torch.testing.assert_close(any_host.unembed(hidden_1TD[0]), logits_1TV[0])


def test_rows_of_the_unembedding(any_host):
    state_ND = torch.randn(2, any_host.hidden_size)
    cap = getattr(any_host.text_config, "final_logit_softcapping", None)
    bias_V = getattr(any_host.model.get_output_embeddings(), "bias", None)
    logits_NV = state_ND @ any_host.unembedding_VD.T + (0 if bias_V is None else bias_V)
    torch.testing.assert_close(any_host.head(state_ND), cap * torch.tanh(logits_NV / cap) if cap else logits_NV)
    assert not any_host.unembedding_VD.requires_grad


def test_a_forward_goes_on_from_a_cache_without_a_warning(any_host):
    """Whatever the installed library calls it."""
    ids_1T, cache = torch.tensor([[3, 4, 5, 6]]), DynamicCache()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")
        parts = [any_host.model(part_1T, **any_host.with_cache(cache)).logits for part_1T in ids_1T.split([3, 1], dim=1)]
        whole_1TV = any_host.model(ids_1T, **any_host.with_cache(None)).logits
    torch.testing.assert_close(torch.cat(parts, dim=1), whole_1TV, rtol=1e-5, atol=1e-5)
    assert cache.get_seq_length() == 4


@pytest.mark.parametrize("layer", [3, -1, 99])
def test_absent_layer_is_refused(host_of, layer):
    with pytest.raises(ValueError, match=rf"layer={layer}: llama has layers 0 to 2"):
        host_of("llama").down_proj(layer)


def test_fingerprint_is_of_weights_and_vocabulary(new_host):
    host = new_host("gpt2")
    assert len(host.fingerprint) == 12 and new_host("gpt2").fingerprint == host.fingerprint
    assert new_host("gpt2", seed=1).fingerprint != host.fingerprint
    nudged = new_host("gpt2")
    nudged.weight_DF(2)[0, 0] += 1e-3
    assert nudged.fingerprint != host.fingerprint
    half = new_host("gpt2")
    half.model.to(torch.bfloat16)
    assert half.fingerprint != host.fingerprint
    tokenizer = copy.deepcopy(host.tokenizer)
    tokenizer.add_tokens(["Lima"])
    assert Host(host.model, tokenizer, name="gpt2").fingerprint != host.fingerprint


def test_fingerprint_of_every_family(any_host):
    int(any_host.fingerprint, 16)


def test_base_sha256_is_of_one_matrix_in_canonical_orientation(new_host):
    host, other = new_host("gpt2"), new_host("gpt2")
    other.weight_DF(2)[0, 0] += 1e-3
    assert host.base_sha256(1) == other.base_sha256(1) != host.base_sha256(2) != other.base_sha256(2)
    linear = new_host("gpt2")
    projection = nn.Linear(48, 32)
    projection.weight.data.copy_(host.weight_DF(1))
    linear.blocks[1].mlp.c_proj = projection
    assert linear.base_sha256(1) == host.base_sha256(1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_load_gives_the_saved_host(new_host, tmp_path, dtype):
    host = new_host("qwen3 window")
    host.model.to(getattr(torch, dtype))
    host.model.save_pretrained(tmp_path)
    host.tokenizer.save_pretrained(tmp_path)
    loaded = Host.load(tmp_path, name="again", dtype=dtype, terminator=".")
    assert loaded.fingerprint == host.fingerprint and loaded.dtype == getattr(torch, dtype)
    assert (loaded.name, loaded.path, loaded.terminator_id) == ("again", str(tmp_path), host.terminator_id)


def test_nothing_to_load_is_refused(tmp_path):
    with pytest.raises(ValueError, match="nothing to load") as refusal:
        Host.load(tmp_path / "absent", name="gone")
    assert "gone" in str(refusal.value) and "\n" not in str(refusal.value)
    with pytest.raises(ValueError, match=str(tmp_path)):
        Host.load(tmp_path, name="empty")


def test_weights_cut_short_are_one_line(new_host, tmp_path):
    host = new_host("gpt2")
    host.model.save_pretrained(tmp_path)
    host.tokenizer.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(ValueError, match="nothing to load at .*Give a folder, GGUF file or Hub id") as refusal:
        Host.load(tmp_path, name="cut")
    assert "\n" not in str(refusal.value)
    # What the pocket host's folder has besides.
    (tmp_path / "recall.json").write_text("{}")
    with pytest.raises(ValueError, match="nothing to load at .*Remove the folder to build the pocket host anew"):
        Host.load(tmp_path, name="pocket")


def test_pickled_weights_are_never_loaded(host_of, tmp_path):
    host = host_of("gpt2")
    assert isinstance(host.model.config, GPT2Config)
    host.model.config.save_pretrained(tmp_path)
    host.tokenizer.save_pretrained(tmp_path)
    torch.save(host.model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="nothing to load"):
        Host.load(tmp_path, name="pickled")
