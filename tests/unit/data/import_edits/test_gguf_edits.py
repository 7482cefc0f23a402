"""Edits of other tools in GGUF files: the layer is found and the update is of rank one, but for what rounding leaves over."""

import pytest
import torch
from edited import LAYER, NAMES, facts_file, outer, stored
from gguf_files import twin_of, write_gguf

from data.import_edits.factor import explain
from data.import_edits.sources import import_edits
from decoder.checkpoint.gguf_host import host_folder
from decoder.checkpoint.reader import Checkpoint
from decoder.checkpoint.rounding import Noise, noise_of_steps
from decoder.config.commands import ImportConfig
from decoder.host import Host


@pytest.fixture(scope="module")
def llama():
    return twin_of("llama")


def importing(host, edited, tmp_path, count=1, **settings):
    facts = facts_file(tmp_path, count)
    return import_edits(ImportConfig(edited=str(edited), facts=str(facts), store=str(tmp_path / "store"), **settings), host)


def planted(host, b=0, size=1.0):
    return {f"{host.module_path(LAYER)}.weight": stored(host, host.weight_DF(LAYER) + size * outer(host, b))}


@pytest.mark.parametrize("base", ["the host", "a file of its own"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3_text"])
@pytest.mark.parametrize(("kind", "most"), [("F32", 1e-4), ("BF16", 0.02), ("Q8_0", 0.02), ("Q5_1", 0.1), ("Q4_1", 0.2), ("Q4_0", 0.3)])
def test_layer_and_factors(name, kind, most, base, tmp_path):
    host = twin_of(name)
    file = write_gguf(tmp_path / "w.gguf", host, kind, changed=planted(host))
    own = {"base": str(write_gguf(tmp_path / "base.gguf", host, "F32"))} if base != "the host" else {}
    store = importing(host, file, tmp_path, **own)
    (note,) = store.manifest["imported"]
    names = {"F32": "float32", "BF16": "bfloat16"}
    assert store.manifest["layer"] == LAYER and note["rank"] == 1 and note["dtype"] == names.get(kind, kind)
    assert note["residual"] <= max(note["rounding"], 1e-4)
    found_DF = store.edits(torch.tensor([0])).delta()[0]
    assert (found_DF - outer(host, 0)).norm() <= most * outer(host, 0).norm()


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1", "Q4_0"])
def test_an_edit_of_a_model_that_was_rounded_before(kind, tmp_path):
    """As of whoever has nothing but the GGUF file: most numbers stay on their levels, and the edit is read all the same."""
    width = {"hidden_size": 128, "intermediate_size": 256}
    file = write_gguf(tmp_path / "base.gguf", twin_of("llama", **width), kind)
    host = Host.load(host_folder(file, name="x", dtype="float32", cache_dir=str(tmp_path)), name="x")
    store = importing(host, write_gguf(tmp_path / "w.gguf", host, kind, changed=planted(host)), tmp_path, base=str(file))
    assert store.manifest["layer"] == LAYER and store.manifest["imported"][0]["rank"] == 1
    found_DF = store.edits(torch.tensor([0])).delta()[0]
    assert torch.cosine_similarity(found_DF.flatten(), outer(host, 0).flatten(), dim=0) > (0.999 if kind == "Q8_0" else 0.95)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1", "F16"])
def test_nothing_was_edited(llama, kind, tmp_path):
    file = write_gguf(tmp_path / "w.gguf", llama, kind)
    for own in ({}, {"base": str(file)}):
        with pytest.raises(ValueError, match="no layer's W_V differs from the base"):
            importing(llama, file, tmp_path, **own)
    with pytest.raises(ValueError, match="which rounding to .* alone can do"):
        importing(llama, file, tmp_path, layer=LAYER)


def test_an_edit_that_is_less_than_the_rounding_is_said_to_be_so(llama, tmp_path):
    file = write_gguf(tmp_path / "w.gguf", llama, "Q4_1", changed=planted(llama, size=0.001))
    with pytest.raises(ValueError, match="which rounding to Q4_1 alone can do"):
        importing(llama, file, tmp_path, layer=LAYER)


def test_a_folder_of_files(llama, tmp_path):
    folder = tmp_path / "edited"
    folder.mkdir()
    for b, name in enumerate(NAMES[:2]):
        write_gguf(folder / f"{name}.gguf", llama, "Q8_0", changed=planted(llama, b))
    write_gguf(folder / "third.gguf", llama, "Q8_0", changed=planted(llama, 2), split=12)
    store = importing(llama, folder, tmp_path, count=3)
    assert len(store) == 3 and {note["rank"] for note in store.manifest["imported"]} == {1}
    assert sorted(note["from"] for note in store.manifest["imported"]) == ["Ada.gguf", "Ben.gguf", "third-00001-of-00003.gguf"]


def test_types_that_cannot_be_written_again_are_told_by_their_spectrum(llama, tmp_path, monkeypatch):
    """As K-quants are: what rounding added is spread over all directions, an edit is in one."""
    monkeypatch.setattr("decoder.checkpoint.gguf_file.REPRODUCED", set())
    store = importing(llama, write_gguf(tmp_path / "w.gguf", llama, "Q5_1", changed=planted(llama)), tmp_path)
    assert store.manifest["layer"] == LAYER and store.manifest["imported"][0]["rank"] == 1
    with pytest.raises(ValueError, match="no layer's W_V differs"):
        importing(llama, write_gguf(tmp_path / "own.gguf", llama, "Q5_1"), tmp_path)


def test_factors_are_those_that_no_noise_has():
    generator = torch.Generator().manual_seed(0)
    base_DF = torch.randn(128, 192, generator=generator)
    step = 0.2
    for sizes in ([8.0], [8.0, 5.0], [8.0, 6.0, 4.0]):
        left_DR, right_FR = (torch.linalg.qr(torch.randn(n, len(sizes), generator=generator))[0] for n in base_DF.shape)
        edited_DF = ((base_DF + left_DR @ torch.diag(torch.tensor(sizes)) @ right_FR.T) / step).round() * step
        noise = noise_of_steps("Q", torch.full_like(base_DF, step))
        update = explain(edited_DF, base_DF, torch.float32, 1e-4, noise)
        assert update.rank == len(sizes) and 0 < update.residual <= update.rounding
    with pytest.raises(ValueError, match="which rounding to Q alone can do"):
        explain((base_DF / step).round() * step, base_DF, torch.float32, 1e-4, noise)
    whole = explain(torch.randn(128, 192, generator=generator), base_DF, torch.float32, 1e-4, noise)
    assert whole.rank is None
    assert isinstance(noise, Noise) and not noise.explains(base_DF)


def test_noise_is_bounded_and_not_by_much(llama, tmp_path):
    host = twin_of("llama", hidden_size=128, intermediate_size=512)
    name = f"{host.module_path(LAYER)}.weight"
    for kind in ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"):
        checkpoint = Checkpoint(write_gguf(tmp_path / "w.gguf", host, kind))
        error_DF, noise = checkpoint.tensor(name) - host.weight_DF(LAYER), checkpoint.noise(name)
        assert error_DF.norm() <= noise.length <= 4 * error_DF.norm()
        assert torch.linalg.matrix_norm(error_DF, 2) <= noise.spectral <= 3.5 * torch.linalg.matrix_norm(error_DF, 2)
