"""What is said where nobody reads it any more."""

import ast
import subprocess
import sys

import pytest
from places import ROOT

SPEAKS = """
from pathlib import Path
from decoder.utils.terminal import console, log_to
log_to(Path("log.txt"))
for number in range(20_000):
    console().print(f"line {number}")
Path("done").touch()
"""
PRINTS = """
from decoder.utils.errors import run_command

@run_command
def main():
    for number in range(100_000):
        print("line", number)

main()
"""


def head(code: str, folder) -> subprocess.CompletedProcess:
    """A program whose standard output is closed after its first words."""
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=folder, env={"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout.readline().startswith("line 0")
        program.stdout.close()
        errors = program.stderr.read()
    return program.returncode, errors


def test_a_run_goes_on_without_a_reader_and_says_so_in_its_log(tmp_path):
    assert head(SPEAKS, tmp_path) == (0, "") and (tmp_path / "done").exists()
    log = (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert log.count("standard output was closed; the run goes on") == 1 and "line 19999" in log


def test_other_programs_end_in_one_line(tmp_path):
    assert head(PRINTS, tmp_path) == (141, "error: standard output was closed before everything was said\n")


@pytest.mark.parametrize("folder", ["decoder", "data", "launcher"])
def test_text_is_utf8_whatever_the_locale(folder):
    """Every call that reads or writes text says its encoding."""
    for file in (ROOT / folder).rglob("*.py"):
        for call in (node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)):
            called = ast.unparse(call.func)
            is_text = called.endswith((".read_text", ".write_text"))
            if called == "open" or called.endswith((".open", "fdopen")):
                modes = [arg.value for arg in call.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
                is_text = called in ("open", "os.fdopen", "file.open", "path.open") and not any("b" in mode for mode in modes)
            assert not is_text or any(word.arg == "encoding" for word in call.keywords), f"{file}:{call.lineno}"
