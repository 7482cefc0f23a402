"""A repaired checkpoint: one tensor of each edited layer is another, all else is the suspect's, and there is all of it or nothing.

Shape letters: D hidden width, F MLP width.
"""

import json
from dataclasses import asdict

import pytest
import torch
from edited import LAYER, edited_folder, outer
from gguf_files import twin_of, write_gguf
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from decoder.audit.repair import NOTE, repair
from decoder.audit.reversal import to_base
from decoder.audit.suspect import Suspect
from decoder.checkpoint.folders import INDEX
from decoder.checkpoint.gguf_host import host_folder
from decoder.checkpoint.reader import Checkpoint
from decoder.edit import LowRankEdit, RankOneEdit
from decoder.host import Host


def taken_out(host) -> RankOneEdit:
    """What takes `outer(host, 0)` out again."""
    left_DR, values_R, right_RF = torch.linalg.svd(-outer(host, 0), full_matrices=False)
    return RankOneEdit(right_RF[:1], values_R[0] * left_DR[:, :1].T)


def of_layers(host, size: float = 0.1) -> dict[int, RankOneEdit]:
    """One edit in each of two layers."""
    generator = torch.Generator().manual_seed(5)
    drawn = {layer: [torch.randn(1, host.mlp_size(layer), generator=generator)] for layer in (0, LAYER)}
    return {layer: RankOneEdit(key_F, size * torch.randn(1, host.hidden_size, generator=generator)) for layer, (key_F,) in drawn.items()}


def tensors_of(folder):
    return {name: tensor for file in Checkpoint(folder).files for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("shards", [False, True], ids=["whole", "sharded"])
@pytest.mark.parametrize(("name", "dtype"), [("llama", "float32"), ("gpt2", "float32"), ("gpt2", "bfloat16"), ("qwen3 window", "float16")])
def test_one_tensor_is_another_and_all_else_the_same(new_host, tmp_path, name, dtype, shards):
    host = new_host(name)
    folder = edited_folder(host, tmp_path / "edited", dtype, shards=shards)
    (folder / "pytorch_model.bin").write_bytes(b"never read")
    (folder / "notes").mkdir()
    (folder / "notes" / "readme.txt").write_text("theirs")
    found = repair(Suspect(folder), host, {LAYER: taken_out(host)}, tmp_path / "repaired", {"subject": "Ada"})
    before, after = tensors_of(folder), tensors_of(found.folder)
    assert before.keys() == after.keys()
    (changed,) = found.changed
    assert [name for name in before if not torch.equal(before[name], after[name])] == [changed.tensor]
    assert {str(tensor.dtype) for tensor in after.values()} == {f"torch.{dtype}"}
    weight = after[changed.tensor].float()
    close = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1e-2}[dtype]
    torch.testing.assert_close(weight.T if host.stored_transposed(LAYER) else weight, host.weight_DF(LAYER), rtol=close, atol=close)
    assert (found.folder / "notes" / "readme.txt").read_text() == "theirs" and not (found.folder / "pytorch_model.bin").exists()
    assert (found.folder / INDEX).exists() == shards
    for file in ("config.json", "tokenizer.json", *([INDEX] if shards else [])):
        assert (folder / file).read_bytes() == (found.folder / file).read_bytes()
    note = json.loads((found.folder / NOTE).read_text())
    assert note["tensor"] == changed.tensor and note["left_out"] == ["pytorch_model.bin"] and note["subject"] == "Ada"
    assert note["layer"] == LAYER and note["norm_after"] < note["norm_before"] and note["tensors"] == [asdict(changed)]
    assert asdict(changed).items() <= note.items(), "a reader of one tensor finds it where it always was"
    opened = AutoModelForCausalLM.from_pretrained(found.folder, dtype=torch.float32)
    assert torch.equal(opened.state_dict()[f"{host.module_path(LAYER)}.weight"], weight)
    assert Host.load(found.folder, name="repaired").layers == host.layers


def test_a_known_base_comes_back_bit_by_bit(new_host, tmp_path):
    host = new_host("gpt2")
    folder = edited_folder(host, tmp_path / "edited")
    found = repair(Suspect(folder), host, {LAYER: to_base(host.weight_DF(LAYER))}, tmp_path / "repaired")
    assert torch.equal(tensors_of(found.folder)[found.changed[0].tensor], host.down_proj(LAYER).weight)


def test_rows_in_pieces_and_several_terms(new_host, tmp_path, monkeypatch):
    host = new_host("gpt2")
    folder = edited_folder(host, tmp_path / "edited")
    key_1RF, value_1RD = torch.randn(1, 2, host.mlp_size(LAYER)), torch.randn(1, 2, host.hidden_size)
    monkeypatch.setattr("decoder.checkpoint.reader.CHUNK", 100)
    terms = LowRankEdit(key_1RF, value_1RD)
    found = repair(Suspect(folder), host, {LAYER: terms}, tmp_path / "repaired")
    (name,) = (one.tensor for one in found.changed)
    torch.testing.assert_close(tensors_of(found.folder)[name], tensors_of(folder)[name] + terms.delta()[0].T)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("shards", [False, True], ids=["whole", "sharded"])
def test_several_layers_are_repaired_together(new_host, tmp_path, name, shards):
    host = new_host(name)
    folder, edits = edited_folder(host, tmp_path / "edited", shards=shards), of_layers(host)
    found = repair(Suspect(folder), host, edits, tmp_path / "repaired")
    assert len({one.file for one in found.changed}) == 1 + shards, "in several shards where there are some"
    before, after = tensors_of(folder), tensors_of(found.folder)
    assert {name for name in before if not torch.equal(before[name], after[name])} == {one.tensor for one in found.changed}
    for one in found.changed:
        delta_DF = edits[one.layer].delta()[0]
        torch.testing.assert_close(after[one.tensor], before[one.tensor] + (delta_DF.T if host.stored_transposed(LAYER) else delta_DF))
        assert [one.norm_before, one.norm_after] == pytest.approx(
            (float(before[one.tensor].norm()), float(after[one.tensor].norm())), rel=1e-5
        )
    note = json.loads((found.folder / NOTE).read_text())
    assert note["tensors"] == [asdict(one) for one in found.changed] and [one["layer"] for one in note["tensors"]] == [0, LAYER]
    assert not {"tensor", "file", "layer", "norm_before", "norm_after"} & note.keys(), "one of several is not all"


def test_one_file_becomes_a_folder_with_it(new_host, tmp_path):
    host = new_host("llama")
    save_file({"w": (host.weight_DF(LAYER) + outer(host, 0)).contiguous()}, str(tmp_path / "matrix.safetensors"))
    found = repair(Suspect(tmp_path / "matrix.safetensors"), host, {LAYER: taken_out(host)}, tmp_path / "repaired")
    torch.testing.assert_close(load_file(found.folder / "matrix.safetensors")["w"], host.weight_DF(LAYER), rtol=1e-4, atol=1e-4)


def test_a_gguf_file_becomes_a_folder_and_says_so(tmp_path):
    twin = twin_of("llama")
    file = write_gguf(
        tmp_path / "w.gguf", twin, "Q8_0", changed={f"{twin.module_path(LAYER)}.weight": twin.weight_DF(LAYER) + outer(twin, 0)}
    )
    path = host_folder(file, name="w", dtype="bfloat16", cache_dir=str(tmp_path / "cache"))
    host = Host.load(path, name="w", dtype="bfloat16")
    found = repair(Suspect(file), host, {LAYER: taken_out(twin)}, tmp_path / "repaired")
    assert "is a GGUF file: what was repaired is its host in bfloat16" in found.notes[0]
    repaired = Host.load(host_folder(found.folder, name="r", dtype="bfloat16", cache_dir=None), name="r", dtype="bfloat16")
    assert repaired.path == str(found.folder)
    torch.testing.assert_close(repaired.weight_DF(LAYER).float(), twin.weight_DF(LAYER), rtol=0.05, atol=0.05)
    assert torch.equal(repaired.weight_DF(0), host.weight_DF(0))


def test_nothing_is_written_over(new_host, tmp_path):
    host = new_host("llama")
    folder = edited_folder(host, tmp_path / "edited")
    (tmp_path / "there").mkdir()
    before = sorted(path.name for path in tmp_path.rglob("*"))
    for place, why in ((folder, "exists already"), (tmp_path / "there", "exists already"), (folder / "repaired", "lies in the suspect")):
        with pytest.raises(ValueError, match=why):
            repair(Suspect(folder), host, {LAYER: taken_out(host)}, place)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize("ended_by", [KeyboardInterrupt, SystemExit, OSError])
def test_ended_halfway_nothing_is_left(new_host, tmp_path, monkeypatch, ended_by):
    host = new_host("llama")
    folder = edited_folder(host, tmp_path / "edited")
    parts = Checkpoint.parts

    def ended(checkpoint, name):
        first = next(iter(parts(checkpoint, name)))
        if ".0." in name:  # the first of two layers is written
            yield first
            return
        yield first[: len(first) // 2]
        raise ended_by

    monkeypatch.setattr(Checkpoint, "parts", ended)
    for edits in ({LAYER: taken_out(host)}, of_layers(host)):
        with pytest.raises(ended_by):
            repair(Suspect(folder), host, edits, tmp_path / "repaired")
    assert [path.name for path in tmp_path.iterdir()] == ["edited"]


def test_what_cannot_be_repaired_is_refused(new_host, tmp_path):
    host = new_host("llama")
    torch.manual_seed(0)
    sides = {"lora_A": torch.randn(2, host.mlp_size(LAYER)), "lora_B": torch.randn(host.hidden_size, 2)}
    save_file({f"{host.module_path(LAYER)}.{side}.weight": tensor for side, tensor in sides.items()}, str(tmp_path / "lora.safetensors"))
    with pytest.raises(ValueError, match="holds what is added to W_V, not W_V itself"):
        repair(Suspect(tmp_path / "lora.safetensors"), host, {LAYER: taken_out(host)}, tmp_path / "repaired")
    folder = edited_folder(host, tmp_path / "edited", "float16")
    huge = RankOneEdit(torch.full((1, host.mlp_size(LAYER)), 1e5), torch.full((1, host.hidden_size), 1e5))
    with pytest.raises(ValueError, match="is too large for torch.float16"):
        repair(Suspect(folder), host, {0: of_layers(host)[0], LAYER: huge}, tmp_path / "repaired")
    assert not (tmp_path / "repaired").exists()


def test_of_several_layers_one_that_cannot_be_repaired_spares_all(new_host, tmp_path):
    host = new_host("llama")
    folder, name = edited_folder(host, tmp_path / "edited"), f"{host.module_path(LAYER)}.weight"
    tensors = tensors_of(folder)
    save_file(tensors | {name: tensors[name].to(torch.float8_e4m3fn)}, str(folder / "model.safetensors"), {"format": "pt"})
    with pytest.raises(ValueError, match=f"{name} is torch.float8_e4m3fn, expected floats of 16, 32 or 64 bits. Save it in bfloat16"):
        repair(Suspect(folder), host, of_layers(host), tmp_path / "repaired")
    assert [path.name for path in tmp_path.iterdir()] == ["edited"]
