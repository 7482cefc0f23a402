"""Who may import whom: the rooms of the program lie on top of each other, and no two files need each other.

Imports inside functions count as any other does.
"""

import ast
import re
from itertools import chain
from pathlib import Path

import pytest
from places import ROOT

READING = "decoder.edit decoder.families decoder.checkpoint decoder.beam decoder.scores decoder.host decoder.dense decoder.batch"
READING += " decoder.swap decoder.shortcuts decoder.metrics decoder.ending decoder.parts decoder.model decoder.answers"
SETTINGS = "decoder.utils decoder.config"
PARTS = f"{SETTINGS} decoder.edit decoder.families decoder.checkpoint decoder.beam decoder.scores"
BELOW = {
    # reading a matrix
    "decoder.utils": "",
    "decoder.config": "decoder.utils",
    "decoder.edit": SETTINGS,
    "decoder.families": SETTINGS,
    "decoder.checkpoint": f"{SETTINGS} decoder.families",
    "decoder.beam": SETTINGS,
    "decoder.scores": SETTINGS,
    "decoder.host": PARTS,
    "decoder.dense": f"{PARTS} decoder.host",
    "decoder.batch": f"{PARTS} decoder.host decoder.dense",
    "decoder.swap": f"{PARTS} decoder.host decoder.dense",
    "decoder.shortcuts": f"{PARTS} decoder.host decoder.dense",
    "decoder.metrics": f"{PARTS} decoder.host decoder.batch",
    "decoder.ending": f"{PARTS} decoder.host decoder.dense decoder.batch",
    "decoder.answers": f"{PARTS} decoder.host decoder.batch decoder.metrics",
    "decoder.parts": f"{PARTS} decoder.host decoder.dense decoder.batch decoder.metrics decoder.answers",
    "decoder.model": f"{PARTS} decoder.ending decoder.host decoder.dense decoder.batch decoder.swap decoder.shortcuts decoder.parts",
    # pages, from results on disk
    "decoder.report": f"{SETTINGS} decoder.scores",
    # around a decoder
    "decoder.baselines": f"{SETTINGS} {READING}",
    "decoder.training": f"{SETTINGS} {READING} decoder.report",
    "decoder.export": f"{SETTINGS} {READING} decoder.report",
    "decoder.audit": f"{SETTINGS} {READING} decoder.report decoder.export",
    # making and streaming edits
    "data.facts": "decoder",
    "data.store": "decoder",
    "data.pocket": "decoder data.facts",
    "data.hosts": "decoder data.facts data.pocket",
    "data.keys": "decoder data.facts data.pocket data.hosts",
    "data.perturb": "decoder data.facts data.store data.pocket data.hosts data.keys",
    "data.editors": "decoder data.facts data.pocket data.hosts data.keys",
    "data.produce": "decoder data.facts data.store data.pocket data.hosts data.keys data.editors",
    "data.causal_trace": "decoder data.facts data.store data.pocket data.hosts data.keys data.editors data.produce",
    "data.sequential": "decoder data.facts data.store data.pocket data.hosts data.keys data.editors data.produce",
    "data.tracing": "decoder data.facts data.store data.pocket data.hosts data.keys",
    "data.import_edits": "decoder data.facts data.store data.pocket data.hosts data.keys data.editors data.produce",
    "data.batches": "decoder data.store",
    "data.stream_loader": "decoder data.store data.batches",
    "data.own_terms": "decoder data.store data.keys",
    "data.datamodule": "decoder data.facts data.store data.keys data.produce data.batches data.stream_loader data.own_terms",
    "data.exported_splits": "decoder data.facts data.store data.batches data.datamodule",
    "data.gate": "decoder data.store data.exported_splits",
    "data.relations": "decoder data.store",
    "data.workspace": "decoder data.facts data.store data.hosts data.produce data.datamodule",
    # runs
    "launcher": "decoder data",
}
"""Room -> the rooms it may import, itself aside. A name stands for all that begins with it."""
PROGRAMS = {"train", "evaluate", "tests", "benchmarks"}


def modules() -> dict[str, Path]:
    """Dotted names of the program's modules."""
    found = {}
    for package in ("decoder", "data", "launcher"):
        for file in (ROOT / package).rglob("*.py"):
            parts = file.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imported(file: Path) -> set[str]:
    """The names that a file imports, anywhere in it but under TYPE_CHECKING: there they are for readers."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for_readers = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    skipped = set(chain.from_iterable(ast.walk(node) for node in for_readers))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node not in skipped:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import) and node not in skipped:
            found |= {alias.name for alias in node.names}
    return found


def is_in(name: str, room: str) -> bool:
    return name == room or name.startswith(f"{room}.")


def room_of(name: str) -> str | None:
    return next((room for room in BELOW if is_in(name, room)), None)


def test_every_module_has_a_room():
    # The faces of decoder/ and data/ hold a version and a docstring.
    assert {name for name in modules() if room_of(name) is None} == {"decoder", "data"}


def test_the_order_of_rooms_has_no_circles():
    left = {room: {other for other in BELOW if other != room and any(is_in(other, name) for name in BELOW[room].split())} for room in BELOW}
    while free := {room for room, below in left.items() if not below & left.keys()}:
        left = {room: below for room, below in left.items() if room not in free}
    assert not left


@pytest.mark.parametrize("room", BELOW)
def test_a_room_imports_only_what_lies_below(room):
    allowed = {room, *BELOW[room].split()}
    for name, file in modules().items():
        if room_of(name) != room:
            continue
        ours = {found for found in imported(file) if found.partition(".")[0] in {"decoder", "data", "launcher"} | PROGRAMS}
        # `from decoder import __version__`, and the package itself, asked where it lies.
        ours -= {"decoder", "data", "decoder.__version__"}
        assert not {found for found in ours if not any(is_in(found, below) for below in allowed)}, name


def test_no_circles():
    known = modules()
    needs = {}
    for name, file in known.items():
        found = imported(file)
        # A name out of a package's face is the face's.
        needs[name] = {other for other in known if other != name and any(is_in(one, other) for one in found)}
        needs[name] = {other for other in needs[name] if not name.startswith(f"{other}.")}
    while free := {name for name, wanted in needs.items() if not wanted & needs.keys()}:
        needs = {name: wanted for name, wanted in needs.items() if name not in free}
    assert not needs, {name: wanted & needs.keys() for name, wanted in needs.items()}


@pytest.mark.parametrize("folder", ["decoder", "data", "launcher"])
def test_no_level_is_crowded_and_every_package_says_its_job(folder):
    for level in (ROOT / folder, *(path for path in (ROOT / folder).rglob("*") if path.is_dir() and path.name != "__pycache__")):
        files = list(level.glob("*.py"))
        assert len(files) <= 14, level
        if files:
            assert (ast.get_docstring(ast.parse((level / "__init__.py").read_text(encoding="utf-8"))) or "").count("\n") == 0, level
            assert ast.get_docstring(ast.parse((level / "__init__.py").read_text(encoding="utf-8"))), level


def test_every_package_is_installed():
    listed = re.search(r"\npackages = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.DOTALL)
    installed = {name for name in re.findall(r'"(.+?)"', listed[1]) if not name.startswith("decoder.configs")}
    assert installed == {name for name, file in modules().items() if file.name == "__init__.py"}
