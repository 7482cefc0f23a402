"""Hosts out of folders as people save them: loaded as they are meant, or refused in one line; never filled up with numbers of chance."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from decoder.checkpoint.folders import ADAPTER_CONFIG, INDEX, WHOLE
from decoder.checkpoint.model_files import memory_needed
from decoder.host import Host


@pytest.fixture(params=["llama", "llava"])
def saved(request, new_host, tmp_path):
    """A host, its folder, and a way to write its tensors anew."""
    host = new_host(request.param)
    host.model.save_pretrained(tmp_path)
    host.tokenizer.save_pretrained(tmp_path)

    def rewrite(change, config=None):
        save_file(change(load_file(tmp_path / WHOLE)), tmp_path / WHOLE, metadata={"format": "pt"})
        file = tmp_path / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | (config or {})))

    return host, tmp_path, rewrite


def assert_same(loaded, host, tolerance: float = 0) -> None:
    for name, tensor in host.model.state_dict().items():
        torch.testing.assert_close(loaded.model.state_dict()[name], tensor, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("part", ["_orig_mod.", "module.", "_fsdp_wrapped_module."])
def test_wrapped_names_are_the_hosts(saved, part):
    host, folder, rewrite = saved
    rewrite(lambda own: {part + name.replace("layers.1.", f"layers.1.{part}"): tensor for name, tensor in own.items()})
    assert_same(Host.load(folder, name="host"), host)


def test_eight_bit_floats_are_multiplied_out(saved):
    host, folder, rewrite = saved

    def quantise(own):
        scale = {name: tensor.abs().max() / 448 for name, tensor in own.items() if name.endswith("mlp.down_proj.weight")}
        rounded = {name: (own[name] / scale[name]).to(torch.float8_e4m3fn) for name in scale}
        return own | rounded | {f"{name}_scale_inv": scale[name].reshape(1, 1) for name in scale}

    rewrite(quantise, {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}})
    loaded = Host.load(folder, name="host")
    assert_same(loaded, host, tolerance=0.07)
    assert not torch.equal(loaded.weight_DF(1), host.weight_DF(1)) and loaded.dtype == torch.float32


def test_of_two_sets_of_weights_it_is_said_which_was_read(saved, caplog):
    host, folder, _ = saved
    (folder / INDEX).write_text('{"weight_map": {"w": "model-00001-of-00002.safetensors"}}')
    assert_same(Host.load(folder, name="host"), host)
    assert f"read {WHOLE}, not {INDEX}" in caplog.text


def test_what_transformers_says_of_weights_that_it_does_not_know_is_heard(saved, caplog):
    _, folder, rewrite = saved
    rewrite(lambda own: own | {"model.layers.1.mlp.other.weight": torch.zeros(2, 48)})
    Host.load(folder, name="host")
    assert "model.layers.1.mlp.other.weight" in caplog.text


REFUSED = {
    "W_V missing": (
        lambda own: {name: tensor for name, tensor in own.items() if "layers.1.mlp.down_proj" not in name},
        {},
        "lack .*down_proj",
    ),
    "LoRA inside": (
        lambda own: own | {"model.layers.1.mlp.down_proj.lora_A.default.weight": torch.zeros(2, 48)},
        {},
        "a LoRA that is not merged",
    ),
    "bitsandbytes": (dict, {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "quantised with bitsandbytes"),
    "another width": (dict, {"vocab_size": 7, "text_config": {"model_type": "llama", "hidden_size": 64}}, "nothing to load"),
    "a width that is no number": (dict, {"hidden_size": "wide", "text_config": {"hidden_size": "wide"}}, "nothing to load"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_a_host_is_one_line(saved, kind):
    _, folder, rewrite = saved
    change, config, message = REFUSED[kind]
    rewrite(change, config)
    with pytest.raises(ValueError, match=message) as refused:
        Host.load(folder, name="mine")
    assert "\n" not in str(refused.value) and "host mine" in str(refused.value)


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_a_folder_without_a_tokenizer_is_one_line(new_host, tmp_path, name):
    new_host(name).model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="it has no tokenizer: copy tokenizer.json"):
        Host.load(tmp_path, name="mine")


@pytest.mark.parametrize("ask", [memory_needed, lambda path, **_: Host.load(path, name="mine")])
def test_an_adapter_is_no_host(saved, ask):
    _, folder, _ = saved
    (folder / ADAPTER_CONFIG).write_text('{"peft_type": "LORA", "base_model_name_or_path": "somebody/else"}')
    with pytest.raises(ValueError, match=r"holds an adapter \(adapter_config.json\): merge it"):
        ask(folder, name="mine", dtype="float32", revision=None)
