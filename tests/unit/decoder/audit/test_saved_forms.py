"""Suspects as people save them: two sets of weights, wrappers, LoRA, 8-bit floats, other vocabularies, differences.

Shape letters: D hidden width, F MLP width, R rank.
"""

import json

import pytest
import torch
from edited import LAYER, edited_folder, facts_file, outer, stored
from safetensors.torch import load_file, save_file

from data.import_edits.sources import import_edits
from data.store.matrices import read_matrix
from decoder.audit.scan import Scan, read_once
from decoder.audit.suspect import Suspect
from decoder.checkpoint.folders import ADAPTER, ADAPTER_CONFIG, INDEX, WHOLE
from decoder.config.commands import ImportConfig
from decoder.dense import DenseEdit
from decoder.edit import LowRankEdit


def weight_name(host) -> str:
    return f"{host.module_path(LAYER)}.weight"


def audited(suspect, host) -> tuple:
    """The edit that is read, and the scan around it."""
    scan = Scan(suspect, host, [LAYER])
    ((_, _, edit),) = read_once([scan])
    if isinstance(edit, ValueError):
        raise edit
    return edit, scan


def imported(host, edited, folder, **settings):
    (folder / "facts").mkdir(exist_ok=True)
    cfg = ImportConfig(edited=str(edited), facts=str(facts_file(folder / "facts", 1)), store=str(folder / "store"), **settings)
    return import_edits(cfg, host)


def assert_read(host, found, folder, rtol=1e-4, **settings) -> None:
    """What is read, and imported, is the host with the first edit."""
    wanted_DF = outer(host, 0)
    delta_DF = found.delta()[0] if isinstance(found, LowRankEdit) else found.weight_BDF[0].float() - host.weight_DF(LAYER)
    assert (delta_DF - wanted_DF).norm() <= rtol * wanted_DF.norm()
    store = imported(host, folder, folder.parent, **settings)
    assert store.manifest["layer"] == LAYER and store.manifest["imported"][0]["rank"] == 1
    assert (store.edits(torch.tensor([0])).delta()[0] - wanted_DF).norm() <= rtol * wanted_DF.norm()


def rewritten(folder, change):
    save_file(change(load_file(folder / WHOLE)), folder / WHOLE, metadata={"format": "pt"})


def test_of_two_sets_of_weights_the_one_that_transformers_loads_is_read(new_host, tmp_path):
    host = new_host("llama")
    folder = edited_folder(host, tmp_path / "edited", delta=torch.zeros(()), shards=True)
    save_file(load_file(edited_folder(host, tmp_path / "other") / WHOLE), folder / WHOLE, metadata={"format": "pt"})
    suspect = Suspect(folder)
    edit, _ = audited(suspect, host)
    assert_read(host, edit, folder)
    assert suspect.checkpoint.files == [folder / WHOLE] and suspect.checkpoint.ignored[-1] == INDEX
    assert "Read: model.safetensors. Not read" in suspect.notes[0]
    next(folder.glob("model-00001*")).unlink()  # a stale index
    assert torch.equal(audited(Suspect(folder), host)[0].weight_BDF, edit.weight_BDF)


WRAPPED = {
    "compiled": lambda name: f"_orig_mod.{name}",
    "block": lambda name: name.replace(f"layers.{LAYER}.", f"layers.{LAYER}._orig_mod."),
    "checkpointed": lambda name: name.replace(f"layers.{LAYER}.", f"layers.{LAYER}._checkpoint_wrapped_module."),
    "fsdp": lambda name: "_fsdp_wrapped_module." + name.replace(".mlp.", "._fsdp_wrapped_module.mlp."),
    "ddp": lambda name: f"module.{name}",
    "peft": lambda name: "base_model.model." + name.replace("down_proj.weight", "down_proj.base_layer.weight"),
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_wrapped_names(new_host, tmp_path, kind):
    host = new_host("llama")
    folder = edited_folder(host, tmp_path / "edited")
    rewritten(folder, lambda own: {WRAPPED[kind](name): tensor for name, tensor in own.items()})
    edit, scan = audited(Suspect(folder), host)
    assert_read(host, edit, folder)
    assert scan.summary(LAYER)["distance"] == 0


def test_weights_under_no_known_name_are_not_called_unedited(new_host, tmp_path):
    host = new_host("llama")
    folder = edited_folder(host, tmp_path / "edited")
    rewritten(folder, lambda own: {name.replace("down_proj", "w2"): tensor for name, tensor in own.items()})
    with pytest.raises(ValueError, match=r"no tensor named like W_V \(model.layers.0.mlp.down_proj.weight\).*tensor=.*layer="):
        imported(host, folder, tmp_path)


def adapter(host, folder, module=None, alpha=3, **config):
    """The first edit as PEFT saves a LoRA of rank 2."""
    folder.mkdir()
    value_DR, size_R, key_RF = torch.linalg.svd(outer(host, 0))
    scale = alpha / (2**0.5 if config.get("use_rslora") else 2)
    sides = {"A": key_RF[:2], "B": value_DR[:, :2] * size_R[:2] / scale}
    prefix = f"base_model.model.{module or host.module_path(LAYER)}"
    save_file({f"{prefix}.lora_{side}.weight": tensor.contiguous() for side, tensor in sides.items()}, folder / ADAPTER)
    (folder / ADAPTER_CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": alpha} | config))
    return folder


SCALED = ({}, {"use_rslora": True}, {"lora_alpha": 8, "alpha_pattern": {"mlp.*": 3}})


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt2 square"])
@pytest.mark.parametrize("config", SCALED, ids=["plain", "rs", "pattern"])
def test_a_lora_is_an_update_of_low_rank(host_of, tmp_path, name, config):
    host = host_of(name)
    suspect = Suspect(adapter(host, tmp_path / "lora", **config))
    edit, scan = audited(suspect, host)
    assert isinstance(edit, LowRankEdit) and edit.key_BRF.shape[1] == 2 and not suspect.is_whole and not scan.distance
    assert_read(host, edit, tmp_path / "lora")
    assert suspect.matrices == {weight_name(host): edit.width()} and "LoRA of 1 module" in suspect.notes[-1]


def test_a_lora_of_other_modules_says_which(host_of, tmp_path):
    host = host_of("llama")
    folder = adapter(host, tmp_path / "lora", module="model.layers.1.self_attn.q_proj")
    with pytest.raises(ValueError, match="adds nothing to .*mlp.down_proj of llama; it touches model.layers.1.self_attn.q_proj"):
        audited(Suspect(folder), host)
    with pytest.raises(ValueError, match="touches model.layers.1.self_attn.q_proj"):
        imported(host, folder, tmp_path)


@pytest.mark.parametrize("config", [{"use_dora": True}, {"peft_type": "LOHA"}, {"init_lora_weights": "pissa"}, {"lora_alpha": "much"}])
def test_adapters_that_are_more_than_a_product_are_refused(host_of, tmp_path, config):
    with pytest.raises(ValueError, match=f"{ADAPTER_CONFIG}: .*{[*config][0]}"):
        audited(Suspect(adapter(host_of("llama"), tmp_path / "lora", **config)), host_of("llama"))


def test_a_lora_beside_its_base_is_added(new_host, tmp_path):
    host = new_host("llama")
    folder = edited_folder(host, tmp_path / "edited", delta=torch.zeros(()))
    sides = load_file(adapter(host, tmp_path / "lora") / ADAPTER)
    rewritten(folder, lambda own: {WRAPPED["peft"](name): tensor for name, tensor in own.items()} | sides)
    with pytest.raises(ValueError, match="holds a LoRA, and .*adapter_config.json.*Copy it too"):
        audited(Suspect(folder), host)
    (folder / ADAPTER_CONFIG).write_text((tmp_path / "lora" / ADAPTER_CONFIG).read_text())
    assert_read(host, audited(Suspect(folder), host)[0], folder)


def test_eight_bit_floats_with_scales(new_host, tmp_path):
    host = new_host("llama")
    folder = edited_folder(host, tmp_path / "edited", delta=20 * outer(host, 0))

    def quantise(own):
        made = {}
        for name, tensor in own.items():
            if "proj.weight" not in name:
                made[name] = tensor
                continue
            scale = tensor.abs().amax(dim=1, keepdim=True) / 448
            made |= {name: (tensor / scale).to(torch.float8_e4m3fn), f"{name}_scale": scale}
        return made

    rewritten(folder, quantise)
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": {"quant_method": "fbgemm_fp8"}}
    (folder / "config.json").write_text(json.dumps(config))
    edit, scan = audited(Suspect(folder), host)
    delta_DF = edit.weight_BDF[0] - host.weight_DF(LAYER)
    assert (delta_DF - 20 * outer(host, 0)).norm() < 0.05 * delta_DF.norm() and scan.summary(LAYER)["further_trained"] == []
    assert imported(host, folder, tmp_path).manifest["imported"][0]["rank"] == 1


def padded(own, host):
    rows = len(host.tokenizer)
    return {name: torch.cat([tensor, torch.randn(5, *tensor.shape[1:])]) if len(tensor) == rows else tensor for name, tensor in own.items()}


def test_a_padded_vocabulary_and_added_tokens_are_notes(new_host, tmp_path):
    host = new_host("llama")
    folder = edited_folder(host, tmp_path / "edited")
    rewritten(folder, lambda own: padded(own, host))
    rows = len(host.tokenizer) + 5
    (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | {"vocab_size": rows}))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append(tokenizer["added_tokens"][0] | {"id": rows - 5, "content": "[PAD]"})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    edit, scan = audited(Suspect(folder), host)
    assert_read(host, edit, folder)
    assert scan.summary(LAYER)["distance"] == 0 and any(f"has {rows} rows" in note for note in scan.notes)
    assert "Its tokenizer has 1 token that the host's has not: [PAD]." in scan.notes


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt2 square"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_difference_is_no_matrix(host_of, tmp_path, name, dtype):
    host, file = host_of(name), tmp_path / "delta.safetensors"
    save_file({"delta": stored(host, outer(host, 0)).to(dtype)}, file)
    with pytest.raises(ValueError, match="looks like an update W' - W.*form=update reads it"):
        audited(Suspect(file), host)
    with pytest.raises(ValueError, match="not one edit;.*form=update"):
        imported(host, file, tmp_path, layer=LAYER)
    suspect = Suspect(file, form="update")
    edit, _ = audited(suspect, host)
    assert isinstance(edit, DenseEdit) and "Read as an update" in suspect.notes[0]
    assert_read(host, edit, file, rtol=1e-4 if dtype == torch.float32 else 5e-3, form="update", layer=LAYER)
    assert torch.equal(Suspect(file, form="weight").edit(host, LAYER).weight_BDF[0], outer(host, 0).to(dtype))


def test_a_difference_of_full_rank_is_stored_as_the_matrix_it_makes(host_of, tmp_path):
    host = host_of("llama")
    delta_DF = 0.1 * torch.randn(host.weight_DF(LAYER).shape, generator=torch.Generator().manual_seed(1))
    save_file({"delta": delta_DF}, tmp_path / "delta.safetensors")
    store = imported(host, tmp_path / "delta.safetensors", tmp_path, layer=LAYER, form="update")
    assert store.manifest["imported"][0]["rank"] is None
    torch.testing.assert_close(read_matrix(store.matrix_of[0, LAYER]), host.weight_DF(LAYER) + delta_DF)


@pytest.mark.parametrize("size", [0.01, 1.0, 10.0])
def test_edits_of_any_size_are_matrices(host_of, tmp_path, size):
    host = host_of("llama")
    weight_DF = host.weight_DF(LAYER)
    delta_DF = outer(host, 0) * (size * weight_DF.norm() / outer(host, 0).norm())
    save_file({"w": weight_DF + delta_DF}, tmp_path / "w.safetensors")
    assert audited(Suspect(tmp_path / "w.safetensors"), host)[0].width() == tuple(weight_DF.shape)
