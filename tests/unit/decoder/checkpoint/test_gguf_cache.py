"""What a GGUF file becomes in the cache: one whole folder for a file and a dtype, or none."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gguf_files import twin_of, write_gguf
from places import ROOT
from safetensors import safe_open

from decoder.checkpoint.gguf_header import made_from
from decoder.checkpoint.gguf_host import host_folder
from decoder.host import Host


def loaded(path, cache, name="tiny", dtype="float32") -> Host:
    return Host.load(host_folder(path, name=name, dtype=dtype, cache_dir=str(cache), shown=True), name=name, dtype=dtype)


def made(cache) -> list[str]:
    """What conversions left in a cache, hidden or not."""
    return sorted(path.name for path in (cache / "hosts").iterdir() if not path.name.endswith(".lock"))


@pytest.fixture(scope="module")
def llama():
    return twin_of("llama")


def test_the_second_time_it_is_there(llama, tmp_path, monkeypatch, capsys):
    file, cache = write_gguf(tmp_path / "twin.gguf", llama, "Q4_1"), tmp_path / "cache"
    first = loaded(file, cache)
    assert "twin.gguf (Q4_1) becomes float32 in" in " ".join(capsys.readouterr().out.split())
    (folder,) = (cache / "hosts").glob("gguf-*")
    assert {path.name for path in folder.iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json", "gguf.json"}
    assert not [*folder.glob("*.gguf")]
    monkeypatch.setattr("decoder.checkpoint.gguf_host._convert", None)
    (tmp_path / "elsewhere").mkdir()
    moved = file.rename(tmp_path / "elsewhere" / "moved.gguf")
    assert loaded(moved, cache).fingerprint == loaded(moved.parent, cache).fingerprint == first.fingerprint
    monkeypatch.undo()
    loaded(moved, cache, dtype="bfloat16")
    moved.write_bytes(moved.read_bytes()[:-1] + b"\1")
    loaded(moved, cache)
    assert len([*(cache / "hosts").glob("gguf-*")]) == 3, "another dtype, other bytes"
    assert host_folder("some/id", name="x", dtype="float32", cache_dir=str(cache)) == "some/id"


def test_a_file_is_converted_once_under_whatever_name(llama, tmp_path, monkeypatch):
    cache, file = tmp_path / "cache", write_gguf(tmp_path / "twin.gguf", llama, "Q4_1")
    first = loaded(file, cache, "one")
    assert loaded(file, cache, "another").path == first.path and len(made(cache)) == 1
    # As older versions called it.
    old = Path(first.path).rename(cache / "hosts" / f"one-{Path(first.path).name.rpartition('-')[2]}")
    copy = file.rename(tmp_path / "copy.gguf")
    assert loaded(copy, cache, "another").path == str(old) and made(cache) == [old.name]
    assert made_from(old) == str(copy), "the file that it was made from is gone"


def cut(file: Path) -> None:
    """By a new file in its place: of the old one a host may have pages."""
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content[:-9])


DAMAGES = {
    "weights are cut": lambda folder: cut(folder / "model.safetensors"),
    "weights are missing": lambda folder: (folder / "model.safetensors").unlink(),
    "the tokenizer is cut": lambda folder: cut(folder / "tokenizer.json"),
    "the tokenizer is missing": lambda folder: (folder / "tokenizer.json").unlink(),
    "the config is cut": lambda folder: cut(folder / "config.json"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_conversion_is_made_again(llama, tmp_path, damage):
    cache, file = tmp_path / "cache", write_gguf(tmp_path / "twin.gguf", llama, "Q8_0")
    first = loaded(file, cache)
    DAMAGES[damage](Path(first.path))
    again = loaded(file, cache)
    assert (again.path, again.fingerprint) == (first.path, first.fingerprint) and len(made(cache)) == 1


def test_what_killed_conversions_left_goes_with_the_next(llama, tmp_path):
    file = write_gguf(tmp_path / "twin.gguf", llama)
    asked = {"name": "tiny", "dtype": "float32", "cache_dir": str(tmp_path / "cache")}
    killed = (
        "import os, signal\n"
        "from decoder.checkpoint import gguf_host\n"
        "gguf_host.write_json = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"  # the weights are written by then
        f"gguf_host.host_folder({str(file)!r}, **{asked!r})\n"
    )
    done = subprocess.run([sys.executable, "-c", killed], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    (left,) = made(tmp_path / "cache")
    assert left.startswith(".") and (tmp_path / "cache" / "hosts" / left / "model.safetensors").exists()
    folder = Path(host_folder(file, **asked))
    assert made(tmp_path / "cache") == [folder.name]


def test_numbers_are_kept_in_the_dtype_asked_for(llama, tmp_path):
    folder = Path(host_folder(write_gguf(tmp_path / "twin.gguf", llama), name="x", dtype="bfloat16", cache_dir=str(tmp_path)))
    with safe_open(folder / "model.safetensors", "pt") as opened:
        name = "model.layers.0.mlp.down_proj.weight"
        assert torch.equal(opened.get_tensor(name), llama.model.state_dict()[name].bfloat16())


def test_a_large_file_becomes_shards(llama, tmp_path, monkeypatch):
    file = write_gguf(tmp_path / "twin.gguf", llama, "Q4_1")
    whole = loaded(file, tmp_path / "whole")
    monkeypatch.setattr("decoder.checkpoint.gguf_host.SHARD", 20_000)
    shards = loaded(file, tmp_path / "shards")
    assert len([*Path(shards.path).glob("model-*.safetensors")]) > 2 and shards.fingerprint == whole.fingerprint


NOT_FINITE = [("F32", "float32", torch.nan), ("F16", "float32", torch.inf), ("F32", "float16", 1e5)]


@pytest.mark.parametrize(("kind", "dtype", "number"), NOT_FINITE)
def test_numbers_that_are_not_finite_are_refused_when_they_are_converted(llama, tmp_path, kind, dtype, number):
    name = "model.layers.1.mlp.down_proj.weight"
    weight = llama.model.state_dict()[name].clone()
    weight[3, 5] = number
    file = write_gguf(tmp_path / "twin.gguf", llama, kind, changed={name: weight})
    with pytest.raises(ValueError, match=f"host tiny: .*twin.gguf: {name} holds NaN or infinity in {dtype}; expected finite") as refused:
        loaded(file, tmp_path / "cache", dtype=dtype)
    assert "\n" not in str(refused.value)
    assert made(tmp_path / "cache") == []
