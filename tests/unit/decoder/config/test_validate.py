"""Layers that a host has not are refused by the command line, where the number of its blocks is known without loading it."""

import json

import pytest

from decoder.config import TrainConfig
from decoder.config.commands import ImportConfig, ProduceConfig
from decoder.config.compose import compose
from decoder.config.identity import run_folder
from decoder.utils.errors import UserError
from launcher.grid import read_grid


@pytest.mark.parametrize("argument", ["decoder.layer=4", "decoder.layer=[0,4]", "edits.layer=4", "edits.layer=[0,4]"])
def test_the_pocket_host_has_four(argument):
    with pytest.raises(UserError, match=rf"{argument.partition('=')[0]}=4: pocket has layers 0 to 3"):
        compose(TrainConfig, "train", [argument, "edits=memit"])
    assert compose(TrainConfig, "train", [argument, "edits=memit", "host.pocket.layers=5"])


@pytest.mark.parametrize("layers", ["[1,0]", "[1,1]", "[]", "[0,-1]", "first", "[0,true]", "1.5"])
def test_edited_layers_are_numbers_in_order(layers):
    with pytest.raises(UserError, match=r"edits.layer=.*: expected a layer as 1, or several as \[0,1\], the lowest first"):
        compose(TrainConfig, "train", [f"edits.layer={layers}", "edits=memit"])
    with pytest.raises(UserError, match=r"^layer=.*: expected a layer as 1, or several as \[0,1\], the lowest first"):
        compose(ImportConfig, "import_edits", [f"layer={layers}"])


@pytest.mark.parametrize("editor", ["rome", "ft"])
def test_editors_of_one_layer_say_which_spread(editor):
    with pytest.raises(UserError, match=rf"edits.layer=\[0,1\]: {editor} edits one layer; several: memit, emmet, alphaedit"):
        compose(TrainConfig, "train", ["edits.layer=[0,1]", f"edits={editor}"])


def test_a_list_of_one_layer_is_that_layer():
    for layer in ("1", "[1]"):
        cfg = compose(TrainConfig, "train", [f"edits.layer={layer}"])
        assert cfg.edits.layers == [1] and run_folder(cfg).name == "rome-e1-t1-s0"
    assert run_folder(compose(TrainConfig, "train", ["edits.layer=[0,1]", "edits=memit"])).name == "memit-e0-1-t1-s0"


@pytest.mark.parametrize("key", ["train_relations", "train_per_relation", "val_per_relation"])
def test_training_on_no_edits_is_refused_and_a_store_of_test_edits_is_not(key):
    with pytest.raises(UserError, match=rf"^splits.{key}=0: .*expected a number from 1 up"):
        compose(TrainConfig, "train", [f"splits.{key}=0"])
    assert compose(ProduceConfig, "train", [f"splits.{key}=0"])
    assert compose(TrainConfig, "train", ["splits.id_per_relation=0", "splits.minimum.id=0"])


def test_a_grid_is_refused_before_anything_is_made(tmp_path):
    with pytest.raises(UserError, match="decoder.layer=9"):
        read_grid(["-m", "decoder.layer=1,9", f"runs={tmp_path / 'runs'}"])
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("config", [{"num_hidden_layers": 2}, {"n_layer": 2}, {"text_config": {"num_hidden_layers": 2}}])
def test_a_folder_says_how_many_it_has(tmp_path, config):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="edits.layer=2: mine has layers 0 to 1"):
        compose(TrainConfig, "train", [f"host.path={tmp_path}", "host.name=mine", "edits.layer=2"])


@pytest.mark.parametrize("text", ["{}", "{", "[]", '{"n_layer": "two"}', '{"text_config": 3}'])
def test_a_folder_that_does_not_say_is_left_to_its_reader(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    assert compose(TrainConfig, "train", [f"host.path={tmp_path}", "host.name=mine", "edits.layer=20"])


QWEN = {"model_type": "qwen3", "num_hidden_layers": 4, "hidden_size": 128, "intermediate_size": 384}
OTHERS = {
    "another folder": lambda top: (top / "config.json").write_text(json.dumps(QWEN | {"hidden_size": 576})),
    "another family": lambda top: (top / "config.json").write_text(json.dumps(QWEN | {"model_type": "llama"})),
    "a folder with a GGUF file": lambda top: (top / "model.gguf").write_bytes(b"GGUF"),
}


@pytest.mark.parametrize("config", [TrainConfig, ProduceConfig, ImportConfig])
@pytest.mark.parametrize("other", [*OTHERS, "a GGUF file", "an id of the Hub"])
def test_a_model_of_ones_own_is_not_given_the_pockets_settings(tmp_path, config, other):
    OTHERS.get(other, OTHERS["a folder with a GGUF file"])(tmp_path)
    path = {"a GGUF file": tmp_path / "model.gguf", "an id of the Hub": "openai-community/gpt2"}.get(other, tmp_path)
    name = "import_edits" if config is ImportConfig else "train"
    with pytest.raises(UserError, match=r"is no pocket host, .*Give host=NAME .* else host.name=NAME") as refused:
        compose(config, name, [f"host.path={path}"])
    assert "\n" not in str(refused.value)
    assert compose(config, name, [f"host.path={path}", "host.name=mine"]).host.path == str(path)
    if config is TrainConfig and other != "another folder":
        assert compose(config, name, [f"host.path={path}", "host=gpt2", "edits.layer=0", "decoder.layer=0"]).host.name == "gpt2"


def test_a_pocket_host_of_ones_own_is_given_them(tmp_path):
    (tmp_path / "edited").mkdir()
    (tmp_path / "edited" / "config.json").write_text(json.dumps(QWEN))
    (tmp_path / "built").mkdir()
    (tmp_path / "built" / "config.json").write_text(json.dumps(QWEN | {"num_hidden_layers": 8}))
    (tmp_path / "built" / "recall.json").touch()
    for path in (tmp_path / "edited", tmp_path / "built", tmp_path / "nowhere", tmp_path / "nowhere.gguf"):
        assert compose(TrainConfig, "train", [f"host.path={path}"]).host.name == "pocket"
