"""A checkpoint folder read by every decoder of a collection that fits: who reads, in what order, and what is refused."""

import json
import shutil
import sys
from collections import Counter
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from changed_decoders import FACTS as EXPORTED
from exported_runs import write_run
from rich.console import Console
from safetensors.torch import load_file, save_file
from tiny_hosts import build_host

import evaluate
from decoder.audit.decoded.ranking import entries_for, rank
from decoder.audit.decoded.readers import reader_of_parts
from decoder.audit.describe import describe
from decoder.audit.suspect import Suspect
from decoder.checkpoint import reader
from decoder.config.commands import EvaluateConfig
from decoder.export.collection import export_best
from decoder.host import Host
from decoder.report.results import find_runs
from decoder.utils.errors import UserError


def ranked(cfg):
    suspect = Suspect(cfg.suspect)
    return rank(cfg, suspect, entries_for(cfg, suspect))


def change(folder, changes):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {name: made(tensors[name]) for name, made in changes.items()}, file, metadata={"format": "pt"})


@pytest.fixture
def folders(host_of, tmp_path):
    """A collection of two layers of one host and one of another, and an edited checkpoint of the first host."""
    host = build_host("llama")  # saving writes into its config
    for name, edited in (("llama", 0), ("llama", 2), ("gpt2", 1)):
        write_run(tmp_path / "runs", host_of(name), edited, 1, 0, 0.5)
    collection = export_best(find_runs([tmp_path / "runs"]), tmp_path / "decoders").parent
    for folder, nulls in (("llama-e0", 0.9), ("llama-e2", 0.0), ("gpt2-e1", 0.0)):
        # Layer 0 is never more confident than its nulls, layer 2 always is.
        file = collection / folder / "decoder_config.json"
        calibration = EXPORTED["calibration"] | {"null": {"n": 3, "quantiles": [nulls] * 101}}
        file.write_text(json.dumps(json.loads(file.read_text()) | EXPORTED | {"calibration": calibration}))
    suspect = tmp_path / "suspect"
    host.model.save_pretrained(suspect)
    host.tokenizer.save_pretrained(suspect)
    # Not the host's own matrices, and nearer to them than what counts as trained.
    change(suspect, {f"model.layers.{layer}.mlp.down_proj.weight": lambda tensor: tensor * (1 + 1e-5) for layer in (0, 2)})
    host.model.save_pretrained(tmp_path / "host")
    host.tokenizer.save_pretrained(tmp_path / "host")
    return collection, suspect


@pytest.fixture
def config(folders, host_of, monkeypatch):
    monkeypatch.setattr(Host, "load", lambda path, name, **_: host_of(name))
    return EvaluateConfig(decoder=str(folders[0]), suspect=str(folders[1]))


def test_every_decoder_of_the_host_reads_and_the_most_suspicious_layer_is_first(config, capsys):
    found = ranked(config)
    assert [(one["host"], one["layer"]) for one in found["ranking"]] == [("llama", 2), ("llama", 0)]
    percentiles = [one["null_percentile"] for one in found["ranking"]]
    assert percentiles == sorted(percentiles, reverse=True) and percentiles[0] > percentiles[1]
    assert found["surroundings"]["further_trained_count"] == 0 and found["refused"] == []
    evaluate.main([f"decoder={config.decoder}", f"suspect={config.suspect}"])
    shown = capsys.readouterr().out
    assert "null percentile" in shown and "1 of 2 layers are more confident than 95 %" in shown and "in 10% of checkpoints" in shown
    evaluate.main([f"decoder={config.decoder}", f"suspect={config.suspect}", "json=true"])
    assert [one["layer"] for one in json.loads(capsys.readouterr().out)["ranking"]] == [2, 0]


def test_what_looks_like_markup_is_shown_as_it_is(config):
    found = ranked(config)
    found["ranking"][0]["objects"][0]["text"], found["ranking"][0]["host"], found["notes"] = "[/x] foo", "[b]host", ["of [/y]"]
    out = Console(file=StringIO(), width=120)
    out.print(describe(found))
    assert all(text in out.file.getvalue() for text in ("[/x] foo", "[b]host", "of [/y]"))


def test_of_two_decoders_of_a_layer_an_audit_takes_neither(config, folders):
    collection, suspect = folders
    shutil.copytree(collection / "llama-e2", collection / "other-e2")
    index = json.loads((collection / "index.json").read_text(encoding="utf-8"))
    index["decoders"] += [one | {"folder": "other-e2"} for one in index["decoders"] if one["folder"] == "llama-e2"]
    (collection / "index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(UserError, match="llama-e2 and .*other-e2 both read a layer of suspect=.*Give the one of its host"):
        reader_of_parts(config, Suspect(str(suspect)))


def test_one_that_fits_is_used_as_before(config, capsys):
    evaluate.main([f"decoder={config.decoder}", f"suspect={config.suspect}", "layer=2"])
    shown = capsys.readouterr().out
    assert "Using llama-e2 of 3 decoders" in shown and "Planted in layer 2" in shown


def test_a_layer_that_is_the_hosts_own_is_no_finding_and_last(config, folders, host_of, capsys):
    own = host_of("llama").down_proj(2).weight.detach()
    change(folders[1], {"model.layers.2.mlp.down_proj.weight": lambda _: own.clone()})
    assert [(one["layer"], one["unedited"]) for one in ranked(config)["ranking"]] == [(0, False), (2, True)]
    evaluate.main([f"decoder={config.decoder}", f"suspect={config.suspect}"])
    shown = capsys.readouterr().out
    assert "0 of 2 layers are more confident" in shown and "1 of 2 matrices is the host's own" in shown


def rename(folder, change):
    file = folder / "model.safetensors"
    save_file({change(name): tensor for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})


@pytest.mark.parametrize("change", [lambda name: name.removeprefix("model."), lambda name: f"base.{name}"], ids=["left out", "added"])
def test_a_prefix_that_was_left_out_or_added_is_no_hindrance(config, folders, change, capsys):
    rename(folders[1], change)
    assert [one["layer"] for one in ranked(config)["ranking"]] == [2, 0]
    evaluate.main([f"decoder={config.decoder}", f"suspect={config.suspect}", "layer=2"])
    assert "Using llama-e2" in capsys.readouterr().out


def test_one_decoder_of_several_that_fits_a_folder_is_used(config, folders, host_of, tmp_path, capsys):
    folder = tmp_path / "gpt2"
    host = build_host("gpt2")
    host.model.save_pretrained(folder)
    host.tokenizer.save_pretrained(folder)
    rename(folder, lambda name: name.removeprefix("transformer."))
    evaluate.main([f"decoder={config.decoder}", f"suspect={folder}"])
    assert "Using gpt2-e1 of 3 decoders" in (shown := capsys.readouterr().out) and "its matrix is transformer.h.1.mlp.c_proj" in shown


@pytest.mark.parametrize("name", ["layers.2.mlp.down_proj.weight", "model.layers.2.mlp.down_proj", "layers.2.mlp.down_proj"])
@pytest.mark.parametrize("kind", ["safetensors", "npz"])
def test_a_file_whose_tensor_bears_the_module_by_another_name(config, host_of, tmp_path, name, kind, capsys):
    weight, file = host_of("llama").down_proj(2).weight.detach(), tmp_path / f"matrix.{kind}"
    save_file({name: weight}, file) if kind == "safetensors" else np.savez(file, **{name: weight.numpy()})
    evaluate.main([f"decoder={config.decoder}", f"suspect={file}"])
    assert "Using llama-e2 of 3 decoders" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        evaluate.main([f"decoder={config.decoder}/llama-e0", f"suspect={file}"])
    assert "is of layer 2, the decoder reads layer 0" in capsys.readouterr().err


def test_a_checkpoint_of_another_model_is_refused(config, folders):
    file = folders[1] / "model.safetensors"
    tensors = load_file(file)
    tensors.pop("model.norm.weight")
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match="no decoder of .* can read it. llama-e0: .*no tensor model.norm.weight"):
        ranked(config)


def test_matrices_of_another_shape_fit_no_decoder(config, folders):
    file = folders[1] / "model.safetensors"
    tensors = load_file(file) | {"model.layers.2.mlp.down_proj.weight": torch.zeros(32, 7)}
    save_file(tensors, file, metadata={"format": "pt"})
    assert [entry["folder"] for entry in entries_for(config, Suspect(config.suspect))] == ["llama-e0"]


def test_an_audit_reads_everything_once(config, folders, host_of, tmp_path, monkeypatch):
    """Two decoders of one host and one of its twin: every tensor, the config and the tokenizer of the folder are read once."""
    twin = build_host("llama")
    twin.name = "twin"
    twin.model.model.norm.weight += 0.01
    write_run(tmp_path / "runs", twin, 1, 1, 0, 0.5)
    collection = export_best(find_runs([tmp_path / "runs"]), folders[0]).parent
    monkeypatch.setattr("decoder.host.Host.load", lambda path, name, **_: twin if name == "twin" else host_of(name))
    rows, opened = Counter(), Counter()

    class Counting:
        def __init__(self, file, framework):
            self.file = real(file, framework)

        def __enter__(self):
            self.inner = self.file.__enter__()
            return self

        def __exit__(self, *error):
            return self.file.__exit__(*error)

        def keys(self):
            return self.inner.keys()

        def get_tensor(self, name):
            rows[name] += 1
            return self.inner.get_tensor(name)

        def get_slice(self, name):
            return CountingSlice(name, self.inner.get_slice(name))

    class CountingSlice:
        def __init__(self, name, inner):
            self.name, self.inner = name, inner

        def get_shape(self):
            return self.inner.get_shape()

        def __getitem__(self, rows_asked):
            found = self.inner[rows_asked]
            rows[self.name] += len(found)
            return found

    real = reader.safe_open
    monkeypatch.setattr(reader, "safe_open", Counting)
    watched = [str(folders[1])]

    def watch(event, args):
        if event == "open" and watched and str(args[0]).startswith(watched[0]):
            opened[Path(args[0]).name] += 1

    sys.addaudithook(watch)
    found = ranked(replace(config, decoder=str(collection)))
    watched.clear()
    assert {(one["host"], one["layer"]) for one in found["ranking"]} == {("llama", 0), ("llama", 2), ("twin", 1)}
    assert rows == {name: len(tensor) for name, tensor in load_file(folders[1] / "model.safetensors").items()}
    assert opened["config.json"] == opened["tokenizer.json"] == 1
