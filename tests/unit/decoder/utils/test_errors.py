"""Programs end with one line on stderr and a code when the user has to do something."""

import os
import subprocess
import sys

import pytest
from places import ROOT

from decoder.utils.errors import UserError, run_command

SCRIPT = """
import sys
from decoder.config.compose import compose
from decoder.config import TrainConfig
from decoder.utils.errors import run_command

@run_command
def main():
    compose(TrainConfig, "train", sys.argv[1:])

main()
"""


def run_script(tmp_path, *argv, **environment):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run([sys.executable, str(script), *argv], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("argument", ["decoder.lay=3", "decoder.beams=0", "host=pocet"])
def test_script_ends_with_one_line_and_exit_2(tmp_path, argument):
    done = run_script(tmp_path, argument)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"error: {argument}: ")


def test_debug_shows_the_traceback(tmp_path):
    done = run_script(tmp_path, "seed=x", PALIMPSEST_DEBUG="1")
    assert done.returncode == 2 and "Traceback" in done.stderr and done.stderr.endswith("error: seed=x: expected int\n")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("a\nb"), 2, "error: a b\n"),
        (ValueError("a"), 2, "error: a (PALIMPSEST_DEBUG=1 shows the traceback)\n"),
        (FileNotFoundError(2, "No such file", "x.json"), 2, "error: x.json: no such file or folder\n"),
        (PermissionError(13, "Permission denied", "runs"), 2, "error: runs: permission denied\n"),
        (OSError(28, "No space left on device", "runs/x"), 2, "error: runs/x: no space left on device\n"),
        (IsADirectoryError(21, "Is a directory", "runs"), 2, "error: runs is a folder; give a file\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_run_command_turns_errors_into_a_line(error, code, line, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as stop:
        run_command(main)()
    assert (stop.value.code, capsys.readouterr().err) == (code, line)


def test_run_command_lets_the_rest_pass():
    assert run_command(lambda: 3)() == 3
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: 1 / 0)()
