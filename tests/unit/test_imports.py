"""Who may import whom: the rooms of the program lie on top of each other, and no two files need each other."""

import ast
from itertools import chain
from pathlib import Path

import pytest
from places import ROOT

BELOW = {"decoder": {"decoder"}, "data": {"decoder", "data"}, "launcher": {"decoder", "data", "launcher"}}
"""Package -> those it may import."""
COMMANDS = {"decoder.export"}
"""Libraries that are commands too: what their `main` imports, it imports as one."""


def modules(package: str) -> dict[str, Path]:
    """Dotted names of a package's modules."""
    found = {}
    for file in (ROOT / package).rglob("*.py"):
        parts = file.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imported(name: str, file: Path) -> set[str]:
    """The modules that a file imports, anywhere in it but under TYPE_CHECKING or in the `main` of a command."""
    tree = ast.parse(file.read_text())
    left_out = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    if name in COMMANDS:
        left_out += [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main"]
    skipped = set(chain.from_iterable(ast.walk(node) for node in left_out))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node not in skipped:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import) and node not in skipped:
            found |= {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("package", BELOW)
def test_a_room_imports_only_what_lies_below(package):
    above = {"decoder", "data", "launcher", "train", "evaluate"} - BELOW[package]
    for name, file in modules(package).items():
        assert not {found for found in imported(name, file) if found.partition(".")[0] in above}, name


def test_no_circles():
    known = {name: file for package in BELOW for name, file in modules(package).items()}
    needs = {name: imported(name, file) & (known.keys() - {name, *BELOW}) for name, file in known.items()}
    while free := {name for name, wanted in needs.items() if not wanted & needs.keys()}:
        needs = {name: wanted for name, wanted in needs.items() if name not in free}
    assert not needs, {name: wanted & needs.keys() for name, wanted in needs.items()}
