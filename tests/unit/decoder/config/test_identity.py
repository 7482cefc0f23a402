"""Where runs lie: the folder names who made the edits."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from decoder.config import EditsConfig, TrainConfig, WandbConfig
from decoder.config.compose import compose
from decoder.config.identity import editor_of, run_folder
from decoder.training.trainer import build_trainer


def manifest(folder: Path, text: str) -> TrainConfig:
    folder.mkdir(exist_ok=True)
    (folder / "manifest.json").write_text(text)
    return TrainConfig(store=str(folder), runs=str(folder / "runs"), edits=EditsConfig(editor="rome", layer=5))


def test_edits_of_other_tools_are_not_called_rome(tmp_path):
    cfg = manifest(tmp_path, json.dumps({"editor": {"name": "imported", "settings": {}}}))
    assert run_folder(cfg) == tmp_path / "runs" / "main" / "pocket" / "imported-e5-t1-s0"
    assert run_folder(replace(cfg, store=None)).name == "rome-e5-t1-s0"
    trainer = build_trainer(replace(cfg, wandb=WandbConfig(mode="offline")), tmp_path)
    assert trainer.loggers[1]._wandb_init["name"] == "pocket-imported-e5-t1-s0"


def test_a_store_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    manifest(tmp_path / "store", '{"editor": {"name": "memit"}}')
    assert editor_of(compose(TrainConfig, "train", ["store=~/store"])) == "memit"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"editor": null}', '{"editor": {"name": 3}}', '{"editor": {"name": ""}}', "\udcff"])
def test_a_store_to_be_made_or_damaged_goes_by_what_is_asked(tmp_path, text):
    assert editor_of(TrainConfig(store=str(tmp_path / "absent"))) == "rome"
    cfg = manifest(tmp_path, "")
    (tmp_path / "manifest.json").write_bytes(text.encode(errors="surrogateescape"))
    assert editor_of(cfg) == "rome"


def test_a_name_cannot_leave_the_folder_of_runs(tmp_path):
    cfg = manifest(tmp_path, '{"editor": {"name": "../../elsewhere"}}')
    assert run_folder(cfg).parent == tmp_path / "runs" / "main" / "pocket"
