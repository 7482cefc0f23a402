"""Which files of a folder are read: those that transformers would read. And what a file is that is no safetensors file."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers.modeling_utils import _get_resolved_checkpoint_files

from decoder.checkpoint.folders import INDEX, WHOLE, kind_of, weight_files
from decoder.checkpoint.reader import Checkpoint

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@pytest.fixture
def folder(tmp_path):
    """Every set of weights that may lie in one folder."""
    for number, name in enumerate((WHOLE, "other.safetensors", *SHARDS)):
        save_file({"w": torch.full((2, 2), float(number)), name: torch.zeros(1)}, tmp_path / name)
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": {"w": SHARDS[0], "b": SHARDS[1]}}))
    (tmp_path / "pytorch_model.bin").write_bytes(b"a pickle")
    return tmp_path


@pytest.mark.parametrize("named", [None, "other.safetensors", INDEX], ids=str)
@pytest.mark.parametrize("absent", [(), (WHOLE,), SHARDS[:1]], ids=["all", "no whole file", "a stale index"])
def test_the_files_are_those_of_transformers(folder, named, absent):
    for name in absent:
        (folder / name).unlink()
    if named == INDEX and absent == SHARDS[:1]:
        with pytest.raises(ValueError, match="shard model-00001-of-00002.safetensors is missing"):
            weight_files(folder, {"transformers_weights": named})
        return
    config = {"transformers_weights": named} if named else {}
    read, ignored = weight_files(folder, config)
    theirs, _ = _get_resolved_checkpoint_files(str(folder), None, None, True, None, False, named)
    assert list(map(str, read)) == sorted(theirs if isinstance(theirs, list) else [theirs])
    beside = {file.name for file in folder.iterdir()} - {file.name for file in read} - ({INDEX} if len(read) > 1 else set())
    assert set(ignored) == beside


def test_the_last_shard_wins_as_in_transformers(folder):
    (folder / WHOLE).unlink()
    assert float(Checkpoint(folder).tensor("w")[0, 0]) == 3


@pytest.mark.parametrize("named", ["../model.safetensors", "/etc/model.safetensors", "pytorch_model.bin", 7])
def test_a_config_that_names_no_file_of_the_folder_is_refused(folder, named):
    (folder / "config.json").write_text(json.dumps({"transformers_weights": named}))
    with pytest.raises(ValueError, match=r"config.json.*(outside its folder|expected a safetensors file)"):
        Checkpoint(folder)


def test_single_files_of_any_name_and_none_at_all(tmp_path):
    with pytest.raises(ValueError, match="no safetensors file there"):
        weight_files(tmp_path, {})
    save_file({"w": torch.zeros(1)}, tmp_path / "mine.safetensors")
    assert weight_files(tmp_path, {}) == ([tmp_path / "mine.safetensors"], [])
    (tmp_path / "mine.safetensors").rename(tmp_path / "mine.gguf")
    (tmp_path / "mine.gguf").write_bytes(b"GGUF" + b"\0" * 60)
    assert weight_files(tmp_path, {}) == ([tmp_path / "mine.gguf"], [])


def zipped(file, name):
    import zipfile

    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, "numbers")


KINDS = {
    "pointer": (
        lambda file: file.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'ab' * 32}\nsize 46\n"),
        "git lfs pull",
    ),
    "page": (lambda file: file.write_text("\n<!DOCTYPE html><html><body>Sign in</body></html>"), "a web page.*download it again"),
    "JSON": (lambda file: file.write_text('{"error": "gated"}'), "JSON text"),
    "GGUF": (lambda file: file.write_bytes(b"GGUF\x03\0\0\0" + b"\0" * 64), "GGUF.*(ive the safetensors checkpoint|give it the ending)"),
    "npy": (lambda file: np.save(file.open("wb"), np.zeros((2, 2))), "a single NumPy array.*savez"),
    "npz": (lambda file: np.savez(file.open("wb"), w=np.zeros((2, 2))), "ending .npz"),
    "zip": (lambda file: zipped(file, "model/weights.txt"), "a zip archive: unpack"),
    "pickle": (lambda file: file.write_bytes(b"\x80\x04K\x01."), "a pickle; pickles are never loaded"),
    "torch": (lambda file: torch.save({"w": torch.zeros(1)}, file), "a pickle of torch; pickles are never loaded"),
    "old torch": (
        lambda file: torch.save({"w": torch.zeros(1)}, file, _use_new_zipfile_serialization=False),
        "a pickle; pickles are never",
    ),
    "gzip": (lambda file: file.write_bytes(b"\x1f\x8b\x08" + b"\0" * 20), "gzip: unpack"),
    "HDF5": (lambda file: file.write_bytes(b"\x89HDF\r\n\x1a\n" + b"\0" * 20), "HDF5"),
    "nothing": (lambda file: file.write_bytes(b""), "it is empty"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", ["file", "folder", "archive", "pickle"])
def test_a_file_of_another_kind_is_named_with_what_to_do(tmp_path, kind, where):
    make, message = KINDS[kind]
    file = tmp_path / {"file": "w.safetensors", "folder": WHOLE, "archive": "w.npz", "pickle": "w.bin"}[where]
    make(file)
    if (kind, where) == ("npz", "archive"):
        assert Checkpoint(file).matrices == {"w": (2, 2)}
        return
    with pytest.raises(ValueError, match=message.removeprefix("it is ") if where == "pickle" else message) as refused:
        Checkpoint(tmp_path if where == "folder" else file)
    assert "\n" not in str(refused.value) and file.name in str(refused.value)


def test_a_safetensors_file_under_another_ending(tmp_path):
    save_file({"w": torch.zeros(1)}, tmp_path / "w.npz")
    with pytest.raises(ValueError, match="a safetensors file: give it the ending"):
        Checkpoint(tmp_path / "w.npz")
    save_file({"w": torch.zeros(1)}, tmp_path / "w.safetensors")
    assert kind_of(tmp_path / "w.safetensors") is None
