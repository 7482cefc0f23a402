"""Layers that a host has not are refused by the command line, where the number of its blocks is known without loading it."""

import json

import pytest

from decoder.config import TrainConfig
from decoder.config.compose import compose
from decoder.utils.errors import UserError
from launcher.grid import read_grid


@pytest.mark.parametrize("argument", ["decoder.layer=4", "decoder.layer=[0,4]", "edits.layer=4"])
def test_the_pocket_host_has_four(argument):
    with pytest.raises(UserError, match=rf"{argument.partition('=')[0]}=4: pocket has layers 0 to 3"):
        compose(TrainConfig, "train", [argument])
    assert compose(TrainConfig, "train", [argument, "host.pocket.layers=5"])


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
