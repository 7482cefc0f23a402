"""Exported decoders: what is in the folder, what is not, and what is refused."""

import json

import pytest
import torch
import yaml
from changed_decoders import CARD, CONFIG, FACTS, IDS_BT, LAYER, WEIGHTS, M, changed_decoder
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from decoder.export.save import load_decoder, save_decoder
from decoder.host import Host


@pytest.fixture(params=["llama", "gpt2", "qwen3 window"])
def exported(request, host_of, tmp_path):
    decoder = changed_decoder(host_of(request.param))
    save_decoder(tmp_path / "decoder", decoder, FACTS)
    return decoder, tmp_path / "decoder"


def test_files_and_nothing_else(exported):
    decoder, folder = exported
    assert {path.name for path in folder.iterdir()} == {CONFIG, WEIGHTS, CARD}
    assert [path.name for path in folder.parent.iterdir()] == ["decoder"]


def test_tensors_are_what_was_learnt_and_nothing_of_the_host(exported):
    decoder, folder = exported
    tensors = load_file(str(folder / WEIGHTS))
    assert set(tensors) == set(decoder.state_dict()) and "prompt_MD" in tensors
    assert {name.split(".")[1] for name in tensors if name not in ("prompt_MD", "prior_V")} == {str(LAYER), "2"}
    assert not any(name.startswith(f"trained.{LAYER}.{decoder.host.family.down_proj}") for name in tensors)
    own = {tensor.data_ptr() for tensor in decoder.host.model.state_dict().values()}
    assert not any(tensor.data_ptr() in own for tensor in decoder.state_dict().values())
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())


def test_config_says_what_the_decoder_belongs_to(exported):
    decoder, folder = exported
    host, config = decoder.host, json.loads((folder / CONFIG).read_text())
    assert {name: config[name] for name in FACTS} == FACTS
    wanted = {
        "id": host.name,
        "model_type": host.model_type,
        "dtype": "float32",
        "fingerprint": host.fingerprint,
        "vocabulary": len(host.tokenizer),
    }
    assert {name: config["host"][name] for name in wanted} == wanted
    assert config["module"] == host.module_path(LAYER) and config["base_sha256"] == host.base_sha256(LAYER)
    assert (config["format"], config["edited_layer"], config["trained_layer"], config["prompt_length"]) == (2, LAYER, [LAYER, 2], M)
    assert config["shape"] == [32, 48] and config["terminator_id"] == host.terminator_id
    assert (config["scope"], config["arithmetic"]) == ("prompt", "factors")
    with safe_open(str(folder / WEIGHTS), "pt") as opened:
        assert opened.metadata()["fingerprint"] == host.fingerprint


def test_card_shows_the_scores(exported):
    _, folder = exported
    card = (folder / CARD).read_text()
    assert "| ood | 12 | 0.500 | 0.250 to 0.750 | 0.750 |" in card and "AUROC 0.875" in card and "{" not in card
    assert "| trained layer | 1, 2 |" in card


@pytest.mark.parametrize("known", [{}, {"base_model": None}, {"base_model": "openai-community/gpt2"}])
def test_card_names_the_hub_id_of_the_host_and_nothing_else_as_its_base_model(host_of, tmp_path, known):
    save_decoder(tmp_path / "decoder", changed_decoder(host_of("gpt2")), FACTS | known)
    _, front, _ = (tmp_path / "decoder" / CARD).read_text(encoding="utf-8").split("---\n", 2)
    base = {"base_model": ["openai-community/gpt2"], "base_model_relation": "adapter"} if known.get("base_model") else {}
    assert yaml.safe_load(front) == {"library_name": "palimpsest-decoder", "license": "mit"} | base


@pytest.mark.parametrize(
    "settings", [{}, {"scope": "all"}, {"arithmetic": "dense"}, {"trained_layers": []}, {"train_prompt": False}], ids=str
)
def test_loaded_decoder_is_equal(host_of, random_edits, tmp_path, settings):
    host = host_of("llama")
    decoder = changed_decoder(host, **settings)
    save_decoder(tmp_path / "decoder", decoder, FACTS)
    loaded = load_decoder(tmp_path / "decoder", host)
    edits = random_edits(host, 2)
    assert not loaded.training and torch.equal(loaded(edits, IDS_BT), decoder(edits, IDS_BT))
    assert loaded.read(edits, beams=3, max_object_tokens=2).tokens == decoder.read(edits, beams=3, max_object_tokens=2).tokens


def test_export_replaces_an_older_one(exported, random_edits):
    decoder, folder = exported
    (folder / "left.txt").write_text("old")
    of_the_user = folder.with_name("decoder.tmp")
    of_the_user.mkdir()
    decoder.prompt_MD.data.zero_()
    save_decoder(folder, decoder, FACTS)
    assert {path.name for path in folder.iterdir()} == {CONFIG, WEIGHTS, CARD}
    assert sorted(path.name for path in folder.parent.iterdir()) == ["decoder", "decoder.tmp"]
    assert not load_decoder(folder, decoder.host).prompt_MD.any()


def refusal(folder, host, **options) -> str:
    with pytest.raises(ValueError) as refused:
        load_decoder(folder, host, **options)
    message = str(refused.value)
    assert "\n" not in message
    return message


@pytest.fixture()
def folder(host_of, tmp_path):
    save_decoder(tmp_path / "decoder", changed_decoder(host_of("llama")), FACTS)
    return tmp_path / "decoder"


def test_other_hosts_are_refused(folder, host_of, new_host):
    own = host_of("llama")
    stranger = new_host("llama", seed=1)
    message = refusal(folder, stranger)
    assert own.fingerprint in message and stranger.fingerprint in message and "allow_host_mismatch" in message
    assert "model_type llama" in refusal(folder, host_of("gpt2"))
    half = new_host("llama")
    half.model.to(torch.bfloat16)
    assert "dtype float32" in refusal(folder, half)
    tokenizer = new_host("llama").tokenizer
    tokenizer.add_tokens(["Lima"])
    assert "vocabulary" in refusal(folder, Host(own.model, tokenizer, name="llama"))


def test_host_mismatch_can_be_allowed_but_not_another_width(folder, new_host, host_of):
    assert load_decoder(folder, new_host("llama", seed=1), allow_host_mismatch=True).prompt_MD.shape == (M, 32)
    assert "[32, 48]" in refusal(folder, host_of("llama square"), allow_host_mismatch=True)


def test_another_base_matrix_is_refused(folder, new_host):
    host = new_host("llama")
    assert host.fingerprint
    host.weight_DF(LAYER)[0, 0] += 1
    assert "layer 1" in refusal(folder, host)


def test_loading_is_strict(folder, host_of):
    host, file = host_of("llama"), folder / WEIGHTS
    tensors = load_file(str(file))
    for change, named in (
        ({name: tensor for name, tensor in tensors.items() if name != "trained.2.mlp.up_proj.weight"}, "trained.2.mlp.up_proj.weight"),
        ({name: tensor for name, tensor in tensors.items() if name not in ("prompt_MD", "prior_V")}, "prompt_MD"),
        (tensors | {"trained.1.mlp.down_proj.weight": torch.zeros(32, 48)}, "trained.1.mlp.down_proj.weight"),
        (tensors | {"prompt_MD": torch.zeros(M + 1, 32)}, "prompt_MD"),
    ):
        save_file(change, str(file))
        message = refusal(folder, host)
        assert named in message and WEIGHTS in message


def test_files_that_are_no_safetensors_are_refused(folder, host_of):
    file = folder / WEIGHTS
    whole = file.read_bytes()
    for damage in (whole[: len(whole) // 2], b"", b"not tensors at all"):
        file.write_bytes(damage)
        assert WEIGHTS in refusal(folder, host_of("llama"))
    torch.save({"prompt_MD": torch.zeros(M, 32)}, file)
    assert WEIGHTS in refusal(folder, host_of("llama"))
    file.unlink()
    assert WEIGHTS in refusal(folder, host_of("llama"))


def test_damaged_configs_are_refused(folder, host_of):
    file = folder / CONFIG
    whole = file.read_text()
    for text, words in ((whole[:200], "not whole JSON"), (whole.replace('"format": 2', '"format": 9'), "format 9, this version reads 2")):
        file.write_text(text)
        assert words in refusal(folder, host_of("llama"))
    file.unlink()
    assert CONFIG in refusal(folder, host_of("llama"))


@pytest.mark.parametrize("text", ["[]", "null", '{"format": 2}'])
def test_configs_that_are_json_but_no_config_are_refused(folder, host_of, text):
    (folder / CONFIG).write_text(text)
    assert CONFIG in refusal(folder, host_of("llama"))
