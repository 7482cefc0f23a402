"""The table of families and the tiny hosts that stand for its rows."""

import subprocess
import sys

from places import ROOT
from tiny_hosts import TINY

from decoder.families import FAMILIES


def test_every_row_has_a_tiny_host_and_no_tiny_host_is_without_a_row(host_of):
    assert {name.split()[0] for name in TINY} == set(FAMILIES), "one row in decoder/families.py, one in tests/unit/helpers/tiny_hosts.py"
    for family in FAMILIES:
        assert host_of(family).model_type == family


def test_the_guide_shows_the_lines_that_are_there():
    shown = [line for line in (ROOT / "docs" / "extending.md").read_text().splitlines() if line.startswith('    "olmo": ')]
    for line, file in zip(shown, ("decoder/families.py", "tests/unit/helpers/tiny_hosts.py"), strict=True):
        assert line in (ROOT / file).read_text().splitlines()


def test_the_table_is_light():
    code = "import sys, decoder.families, decoder.checkpoint.names; print(sys.modules.keys() & {'torch', 'transformers', 'numpy'})"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"
