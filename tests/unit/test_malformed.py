"""Malformed matrices and folders, one kind a row: each gets one line that names it, and what lies beside it is not lost.

Bad records and files of facts are in `test_fact_errors.py`, checkpoints of other models in `test_suspect_folder.py`.

Shape letters: D hidden width, F MLP width.
"""

import json
import pickle

import numpy as np
import pytest
import torch
from edited import LAYER, edited_folder, facts_file, outer, stored
from safetensors.torch import load_file, save_file

from data.import_edits.sources import import_edits
from decoder.audit.suspect import Suspect
from decoder.checkpoint.folders import INDEX
from decoder.checkpoint.reader import Checkpoint
from decoder.config.commands import ImportConfig

D, F = 32, 48


class Trap:
    """Unpickled, it springs."""

    def __reduce__(self):
        return pytest.fail, ("a pickle was loaded",)


def whole(file, tensor=None, **tensors):
    save_file(({} if tensor is None else {"w": tensor}) | tensors, str(file))


def cut(keep):
    def make(file):
        whole(file, torch.ones(D, F))
        file.write_bytes(keep(file.read_bytes()))

    return make


def number(value, dtype=torch.float32):
    def make(file):
        matrix = torch.zeros(D, F, dtype=dtype)
        matrix[3, 4] = value
        whole(file, matrix)

    return make


def arrays(**made):
    return lambda file: np.savez(file.open("wb"), **made)


TWO = {"a": torch.zeros(D, F), "b": torch.zeros(D, F)}
MATRICES = {
    "empty file": (lambda file: file.write_bytes(b""), "not a whole safetensors file"),
    "cut in its header": (cut(lambda whole: whole[:20]), "not a whole safetensors file"),
    "cut in its numbers": (cut(lambda whole: whole[:-100]), "not a whole safetensors file"),
    "bytes behind its end": (cut(lambda whole: whole + b"more"), "not a whole safetensors file"),
    "header longer than the file": (lambda file: file.write_bytes(b"\xff" * 64), "not a whole safetensors file"),
    "text": (lambda file: file.write_text("weights, honestly"), "not a whole safetensors file"),
    "pickle of torch": (lambda file: torch.save({"w": Trap()}, file), "not a whole safetensors file"),
    "old pickle of torch": (
        lambda file: torch.save({"w": Trap()}, file, _use_new_zipfile_serialization=False),
        "not a whole safetensors file",
    ),
    "plain pickle": (lambda file: file.write_bytes(pickle.dumps(Trap())), "not a whole safetensors file"),
    "not a number": (number(torch.nan), "NaN or infinity"),
    "infinity": (number(torch.inf), "NaN or infinity"),
    "minus infinity": (number(-torch.inf), "NaN or infinity"),
    "infinity in half precision": (number(torch.inf, torch.float16), "NaN or infinity"),
    "32-bit integers": (number(1, torch.int32), "torch.int32, expected floats"),
    "8-bit integers": (number(1, torch.int8), "torch.int8, expected floats"),
    "truth values": (number(True, torch.bool), "torch.bool, expected floats"),
    "8-bit floats": (lambda file: whole(file, torch.zeros(D, F).to(torch.float8_e4m3fn)), "float8_e4m3fn, expected floats"),
    "transposed": (lambda file: whole(file, torch.zeros(F, D)), "looks transposed"),
    "of another width": (lambda file: whole(file, torch.zeros(D, F - 1)), r"is \(32, 47\)"),
    "no numbers": (lambda file: whole(file, torch.zeros(D, 0)), r"is \(32, 0\)"),
    "three dimensions only": (lambda file: whole(file, torch.zeros(1, D, F)), "0 2-D tensors"),
    "a vector only": (lambda file: whole(file, torch.zeros(D)), r"0 2-D tensors \(none\)"),
    "no tensor": (lambda file: whole(file), "0 2-D tensors"),
    "two matrices": (lambda file: whole(file, **TWO), r"2 2-D tensors \(a, b\).*tensor=NAME"),
}
ARCHIVES = {
    "empty archive": (lambda file: file.write_bytes(b""), "not a whole npz"),
    "cut archive": (lambda file: file.write_bytes(b"PK\x03\x04"), "not a whole npz"),
    "text as archive": (lambda file: file.write_text("numbers"), "not a whole npz"),
    "pickle as archive": (lambda file: file.write_bytes(pickle.dumps(Trap())), "not a whole npz"),
    "array that is no archive": (lambda file: np.save(file.open("wb"), np.zeros((D, F))), "not a whole npz"),
    "pickled array": (arrays(w=np.array([[Trap()] * F] * D, dtype=object)), "pickled arrays are never loaded"),
    "integers in an archive": (arrays(w=np.zeros((D, F), dtype=np.int64)), "torch.int64, expected floats"),
    "complex numbers": (arrays(w=np.zeros((D, F), dtype=np.complex64)), "torch.complex64, expected floats"),
    "words in an archive": (arrays(w=np.full((D, F), "word")), "cannot be read"),
    "not a number in an archive": (arrays(w=np.full((D, F), np.nan)), "NaN or infinity"),
    "transposed in an archive": (arrays(w=np.zeros((F, D), dtype=np.float32)), "looks transposed"),
    "empty archive of arrays": (arrays(), "0 2-D tensors"),
}
OTHER_ENDINGS = {
    "pickle of torch .pt": ("w.pt", lambda file: torch.save({"w": Trap()}, file), "pickles are never loaded"),
    "pickle of torch .bin": ("pytorch_model.bin", lambda file: torch.save({"w": Trap()}, file), "pickles are never loaded"),
    "pickle .pkl": ("w.pkl", lambda file: file.write_bytes(pickle.dumps(Trap())), "pickles are never loaded"),
    "checkpoint of Lightning": ("last.ckpt", lambda file: torch.save({"w": Trap()}, file), "pickles are never loaded"),
    "nothing there": ("absent.safetensors", lambda file: None, "no such file"),
}
ONE_MATRIX = {kind: ("1.safetensors", *row) for kind, row in MATRICES.items()} | {kind: ("1.npz", *row) for kind, row in ARCHIVES.items()}


def no_shard(folder):
    next(folder.glob("model-00001*")).unlink()


def cut_shard(folder):
    shard = next(folder.glob("model-00001*"))
    shard.write_bytes(shard.read_bytes()[:100])


def pickled_shard(folder):
    torch.save({"w": Trap()}, next(folder.glob("model-00001*")))


def index(text):
    return lambda folder: (folder / INDEX).write_text(text)


def no_index(folder):
    (folder / INDEX).unlink()


def only_pickles(folder):
    for file in [*folder.glob("*.safetensors"), folder / INDEX]:
        file.unlink()
    torch.save({"w": Trap()}, folder / "pytorch_model.bin")


def no_weights(folder):
    for file in [*folder.glob("*.safetensors"), folder / INDEX]:
        file.unlink()


def changed(change):
    """The shard with W_V in it, changed."""

    def harm(folder):
        name = f"model.layers.{LAYER}.mlp.down_proj.weight"
        shard = folder / json.loads((folder / INDEX).read_text())["weight_map"][name]
        tensors = load_file(str(shard))
        change(tensors, name)
        save_file(tensors, str(shard), metadata={"format": "pt"})

    return harm


FOLDERS = {
    "shard missing": (no_shard, "shard model-00001-.* is missing"),
    "shard cut short": (cut_shard, "not a whole safetensors file"),
    "shard that is a pickle": (pickled_shard, "not a whole safetensors file"),
    "index cut short": (index("{"), "no index of shards"),
    "index that is a list": (index("[]"), "no index of shards"),
    "index without its map": (index("{}"), "no index of shards"),
    "index of numbers": (index('{"weight_map": {"a": 7}}'), "no index of shards"),
    "index that is no text": (lambda folder: (folder / INDEX).write_bytes(b"\xff\xfe{"), "no index of shards"),
    "index that leaves its folder": (index('{"weight_map": {"a": "../model.safetensors"}}'), "outside its folder"),
    "shards without an index": (no_index, "and no model.safetensors.index.json"),
    "pickles only": (only_pickles, "pickles are never loaded"),
    "no weights": (no_weights, "no safetensors file there"),
    "without W_V": (
        changed(lambda tensors, name: tensors.pop(name) is tensors.update(x=torch.ones(1))),
        "has no model.layers.1.mlp.down_proj",
    ),
    "W_V of another shape": (changed(lambda tensors, name: tensors.update({name: torch.ones(D, F + 1)})), r"is \(32, 49\)"),
    "W_V not a number": (changed(lambda tensors, name: tensors[name].fill_(torch.nan)), "NaN or infinity"),
    "W_V of integers": (
        changed(lambda tensors, name: tensors.update({name: tensors[name].to(torch.int16)})),
        "torch.int16, expected floats",
    ),
}


def one_line(refused, path) -> None:
    assert "\n" not in str(refused.value) and str(path) in str(refused.value)


def importing_beside_a_good_one(host, folder, tmp_path, message):
    """Imports a folder of many; the good matrix becomes a row, the bad one is listed with its reason."""
    save_file({"w": stored(host, host.weight_DF(LAYER) + outer(host, 0))}, str(folder / "0.safetensors"))
    cfg = ImportConfig(edited=str(folder), facts=str(facts_file(tmp_path, 2)), store=str(tmp_path / "store"), layer=LAYER)
    store = import_edits(cfg, host)
    assert store.table()["subject"].tolist() == ["Ada"] and store.manifest["imported"][0]["rank"] == 1
    ((edit_id, reason),) = store.manifest["skipped"]
    with pytest.raises(ValueError, match=message):
        raise ValueError(reason)
    assert "\n" not in reason and edit_id.endswith("-singer")


@pytest.mark.parametrize("kind", ONE_MATRIX)
def test_a_bad_matrix_is_refused_and_the_one_beside_it_imported(host_of, tmp_path, kind):
    name, make, message = ONE_MATRIX[kind]
    host, folder = host_of("llama"), tmp_path / "many"
    folder.mkdir()
    make(folder / name)
    with pytest.raises(ValueError, match=message) as refused:
        Suspect(folder / name).edit(host, LAYER)
    one_line(refused, folder / name)
    importing_beside_a_good_one(host, folder, tmp_path, message)


@pytest.mark.parametrize("kind", OTHER_ENDINGS)
def test_files_of_other_kinds_are_refused(host_of, tmp_path, kind):
    name, make, message = OTHER_ENDINGS[kind]
    make(tmp_path / name)
    with pytest.raises(ValueError, match=message) as refused:
        Suspect(tmp_path / name).edit(host_of("llama"), LAYER)
    one_line(refused, tmp_path / name)
    with pytest.raises(ValueError) as refused:
        import_edits(ImportConfig(edited=str(tmp_path / name), facts=str(facts_file(tmp_path, 1)), layer=LAYER), host_of("llama"))
    one_line(refused, tmp_path / name)


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_bad_folder_is_refused_and_the_matrix_beside_it_imported(new_host, tmp_path, kind):
    harm, message = FOLDERS[kind]
    host, many = new_host("llama"), tmp_path / "many"
    folder = edited_folder(host, many / "1", shards=True)
    Checkpoint(folder)
    harm(folder)
    with pytest.raises(ValueError, match=message) as refused:
        Suspect(folder).edit(host, LAYER)
    one_line(refused, folder)
    importing_beside_a_good_one(host, many, tmp_path, message)


def test_how_many_kinds():
    assert len(ONE_MATRIX) + len(OTHER_ENDINGS) + len(FOLDERS) >= 40
