"""Every command of docs/real-hosts.md composes: no key, group or option in it that is not there."""

import re
import shlex

import pytest
from places import ROOT

from decoder.config.commands import EvaluateConfig, ImportConfig
from decoder.config.compose import compose
from launcher.grid import read_grid

PAGE = ROOT / "docs" / "real-hosts.md"
CONFIGS = {"evaluate.py": (EvaluateConfig, "evaluate"), "data.import_edits": (ImportConfig, "import_edits")}
TRAINING = ("train.py", "data.keys", "data.produce")


def commands() -> list[str]:
    """Lines of the page that start a program, with what the shell would put in them."""
    variables, found = {"precision": "int4"}, []
    for block in re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if assigned := re.fullmatch(r'([A-Z]+)="(.*)"', line):
                variables[assigned[1]] = assigned[2]
            line = re.sub(r"\$\(.*?\)", "STORE_FOLDER", line.partition(" #")[0].strip())
            line = re.sub(r"\$(\w+)", lambda name: variables[name[1]], line)
            found += [line] if line.startswith("python ") else []
    return found


@pytest.mark.parametrize("command", commands())
def test_command_composes(command):
    program, *arguments = words(command)
    if program == "decoder.report":
        return
    if program in TRAINING:
        assert read_grid(arguments).runs
    else:
        compose(*CONFIGS[program], arguments)


def words(command: str) -> list[str]:
    """The program and its arguments, whether it is a script or a module."""
    found = [word for word in shlex.split(command)[1:] if word != "--cfg"]
    return found[1:] if found[0] == "-m" else found


def test_there_are_commands_of_every_program():
    text = " ".join(commands())
    assert len(commands()) >= 15 and all(program in text for program in (*TRAINING, *CONFIGS))
