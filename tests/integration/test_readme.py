"""The README's commands are real: every one parses, and its two main lines are what CI and the smoke run call."""

import re
import shlex
from pathlib import Path

import pytest

from decoder.config import TrainConfig
from decoder.config.commands import EvaluateConfig, ExportConfig, ReportConfig
from decoder.config.compose import compose, folders_first
from launcher.grid import read_grid

README = (Path(__file__).parents[2] / "README.md").read_text()
CONFIGS = {"train": TrainConfig, "evaluate": EvaluateConfig, "report": ReportConfig, "export": ExportConfig}
COMMANDS = re.findall(r"python (?:-m decoder\.)?(train|evaluate|report|export)(?:\.py)?( [^`\n#&]*)", README)


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
