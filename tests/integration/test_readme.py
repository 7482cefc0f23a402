"""The README is real: its commands parse, its two main lines are what CI and the smoke run call, its Python runs."""

import re
import shlex
from pathlib import Path

import pytest

from decoder.config import TrainConfig
from decoder.config.commands import EvaluateConfig, ExportConfig, ReportConfig
from decoder.config.compose import compose, folders_first
from launcher.grid import read_grid

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = README + "".join((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("compare.md", "scores.md"))
CONFIGS = {"train": TrainConfig, "evaluate": EvaluateConfig, "report": ReportConfig, "export": ExportConfig}
COMMANDS = re.findall(r"python (?:-m decoder\.)?(train|evaluate|report|export)(?:\.py)?( [^`\n#&]*)", PAGES)


def test_main_commands_are_there():
    assert "pip install -e . && python train.py" in README
    assert 'pip install -e ".[dev]" && pytest -q' in README


@pytest.mark.parametrize(("program", "arguments"), COMMANDS)
def test_command_parses(program, arguments):
    words = [word for word in shlex.split(arguments) if word != "--help"]
    assert read_grid(words).runs if program == "train" else compose(CONFIGS[program], program, folders_first(words))


@pytest.mark.parametrize("experiment", re.findall(r"`experiment=(\w+)`", README))
def test_experiment_exists(experiment):
    assert compose(TrainConfig, "train", [f"experiment={experiment}"]).experiment == experiment


def test_the_swap_in_python_runs(cache, monkeypatch):
    """Its last line compares the swap with an edit in place."""
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert "assert_close" in code and len(code.splitlines()) < 22
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parent / "home"))
    (cache.parent / "home").mkdir(exist_ok=True)
    (cache.parent / "home" / "palimpsest").symlink_to(cache)
    exec(compile(code, "README.md", "exec"), {})


def test_every_page_that_is_named_is_there():
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
