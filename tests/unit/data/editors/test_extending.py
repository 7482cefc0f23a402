"""The editor of docs/extending.md is registered, run and read as the page has it; and no editor is in one list only."""

import importlib
import re
import shutil

import pytest
import yaml
from places import ROOT

import data.editors
import decoder.config.compose
import decoder.config.editors
from data.editors import EDITORS, load_editor
from decoder.config import TrainConfig
from decoder.config.compose import compose
from decoder.config.editors import EditsConfig
from decoder.utils.errors import UserError

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8").partition("\n## An editor")[2].partition("\n## ")[0]


@pytest.fixture
def files() -> dict[str, str]:
    """Path -> code of the page's blocks, each of which follows the file's name."""
    named = re.findall(r", in `([^`]+)`(?:(?!```).)*?```\w+\n(.*?)```", PAGE, re.DOTALL)
    return {path: code for path, code in named}


@pytest.fixture
def registered(files, tmp_path, monkeypatch) -> str:
    """The page's editor where a user would put it; the code of its test."""
    settings, code, config, test = files
    for path in (code, config):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(files[path], encoding="utf-8")
    shutil.copytree(ROOT / "configs", tmp_path / "configs", dirs_exist_ok=True)
    monkeypatch.setattr(decoder.config.compose, "_folder", lambda: tmp_path / "configs")
    monkeypatch.setattr(data.editors, "__path__", [*data.editors.__path__, str(tmp_path / "data" / "editors")])
    before = dict(EDITORS)
    exec(compile(files[settings], settings, "exec"), vars(decoder.config.editors) | {"__name__": "extended"})
    yield files[test]
    for name in EDITORS.keys() - before.keys():
        del EDITORS[name]


def test_the_page_names_the_four_files(files):
    assert list(files) == [
        "decoder/config/editors.py",
        "data/editors/push.py",
        "configs/edits/push.yaml",
        "tests/unit/data/editors/test_push.py",
    ]
    assert len(files["data/editors/push.py"].partition("class ")[2].strip().splitlines()) <= 35


def test_the_page_is_registered_run_and_read(registered, fact_host, tmp_path):
    program: dict = {}
    exec(registered, program)
    program["test_push"](fact_host, tmp_path)
    with pytest.raises(UserError, match="edits.kl=1: no such setting"):
        compose(TrainConfig, "train", ["edits=push", "edits.kl=1"])
    with pytest.raises(UserError, match="edits.reach=-1.0: expected a number from 0 up"):
        compose(TrainConfig, "train", ["edits=push", "edits.reach=-1"])
    with pytest.raises(UserError, match="did you mean 'push'. known: alphaedit, emmet, .*, push, r-rome, rome"):
        compose(TrainConfig, "train", ["edits.editor=pusch"])


def test_a_hosts_settings_are_those_of_the_editor_they_were_published_for(registered):
    edits = compose(TrainConfig, "train", ["edits=push", "host=gpt2-xl"]).edits
    assert (edits.layer, edits.reach) == (17, 20.0)


def test_an_editors_file_has_its_settings_for_a_host():
    memit = compose(TrainConfig, "train", ["edits=memit", "host=gpt2-xl", "edits.steps=3"]).edits
    assert (memit.layer, memit.weight, memit.clamp, memit.ridge, memit.steps) == ([*range(13, 18)], 20000, 0.75, 0, 3)
    tuned = compose(TrainConfig, "train", ["edits=ft", "host=llama-3-8b"])
    assert (tuned.edits.layer, tuned.edits.loss, tuned.decoder.layer, tuned.optim.recombined) == (21, "last", 21, 0)
    assert compose(TrainConfig, "train", ["edits=memit"]).edits == EDITORS["memit"](editor="memit")


def test_an_editor_without_settings_for_a_host_is_one_line_unless_some_are_given():
    told = "edits=memit host=gemma-2-9b: no settings for this host, and nearest by name is llama-2-7b .*gpt-j-6b"
    with pytest.raises(UserError, match=told) as refused:
        compose(TrainConfig, "train", ["edits=memit", "host=gemma-2-9b"])
    assert "\n" not in str(refused.value)
    assert compose(TrainConfig, "train", ["edits=memit", "host=gemma-2-9b", "edits.weight=5"]).edits.weight == 5
    assert compose(TrainConfig, "train", ["edits=r-rome", "host=gemma-2-9b"]).edits.editor == "r-rome"


@pytest.mark.parametrize("name", EDITORS)
def test_every_editor_has_its_settings_code_and_yaml(name):
    editor = load_editor(name)
    assert callable(editor.prepare) and callable(editor.edit) and issubclass(EDITORS[name], EditsConfig)
    assert compose(TrainConfig, "train", [f"edits={name}"]).edits.editor == name


def test_no_editor_is_in_one_list_only():
    modules = [importlib.import_module(f"data.editors.{file.stem}") for file in (ROOT / "data" / "editors").glob("*.py")]
    coded = [name for module in modules if module.__name__ != "data.editors.__init__" for name in getattr(module, "EDITORS", {})]
    assert sorted(coded) == sorted(EDITORS)
    # ROME is what the others differ from.
    files = {file.stem: (yaml.safe_load(file.read_text()) or {}).get("editor", "rome") for file in (ROOT / "configs/edits").glob("*.yaml")}
    assert files == {name: name for name in EDITORS}
