"""A path may start with `~` wherever one is given: it is the home folder before anything is written."""

import json
import re
from pathlib import Path

import pytest

from data.store.manifest import IMPORTED
from decoder.config import TrainConfig
from decoder.config.commands import (
    EvaluateConfig,
    ExportConfig,
    GateConfig,
    ImportConfig,
    PerturbConfig,
    ProduceConfig,
    RelationsConfig,
    ReportConfig,
)
from decoder.config.compose import compose, folders_first, to_yaml
from decoder.config.identity import editor_of, run_folder
from decoder.config.options import settings
from launcher.grid import read_grid

COMMANDS = {
    "train": TrainConfig,
    "produce": ProduceConfig,
    "evaluate": EvaluateConfig,
    "import_edits": ImportConfig,
    "perturb": PerturbConfig,
    "gate": GateConfig,
    "relations": RelationsConfig,
    "report": ReportConfig,
    "export": ExportConfig,
}
NAMES = {"host.name", "host.source", "variant", "keys.field", "push", "wandb.project", "tensor", "schema", "facts.source", "host.package"}
"""Texts whose line of help speaks of files or folders, and that are none."""
MARKED = [(page, key) for page, kind in COMMANDS.items() for key, field in settings(kind) if field.metadata["path"]]


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def composed(page, *argv):
    return compose(COMMANDS[page], "train" if page == "produce" else page, argv)


def value(config, key):
    for part in key.split("."):
        config = getattr(config, part)
    return config


@pytest.mark.parametrize(("page", "key"), MARKED)
def test_the_home_folder(home, page, key):
    listed = isinstance(value(COMMANDS[page](), key), list)
    for typed, meant in (("~/a b", home / "a b"), ("~", home), ("owner/name", Path("owner/name")), ("a~", Path("a~"))):
        # An id of the Hub is no pocket host.
        own = ["host.name=mine"] if key == "host.path" else []
        config = composed(page, *own, f"{key}={[typed] if listed else typed}" if typed != "~" or not listed else f"{key}=['~']")
        assert value(config, key) == ([str(meant)] if listed else str(meant))
    assert "~" not in re.sub("a~", "", to_yaml(composed(page, f"{key}={'[~/x]' if listed else '~/x'}")))


@pytest.mark.parametrize("page", COMMANDS)
def test_every_setting_that_is_a_path_is_marked(page):
    texts = {key: field.metadata for key, field in settings(COMMANDS[page]) if re.match(r"<class 'str'>|str|list.str", str(field.type))}
    unmarked = [key for key, told in texts.items() if not told["path"] and re.search(r"\b(folder|file)s?\b", told["help"])]
    assert set(unmarked) <= NAMES


def test_run_folders_lie_in_one_place(home):
    (run,) = read_grid(["runs=~/x"]).runs
    assert run.folder == run_folder(run.config) == home / "x/main/pocket/rome-e1-t1-s0"
    first, *_ = read_grid(["-m", "seed=0,1", "runs=~/x"]).runs
    assert first.folder == run.folder
    assert composed("report", *folders_first(["~/x", "runs"])).runs == [str(home / "x"), "runs"]


def test_a_store_at_home_says_who_made_it(home):
    (home / "edits").mkdir(parents=True)
    (home / "edits" / "manifest.json").write_text(json.dumps({"editor": {"name": IMPORTED}}))
    assert editor_of(composed("train", "store=~/edits")) == IMPORTED
