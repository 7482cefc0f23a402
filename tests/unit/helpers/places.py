"""Where things lie, for tests at any depth."""

from pathlib import Path

HELPERS = Path(__file__).resolve().parent
ROOT = HELPERS.parents[2]
SHARED = ROOT.parent / "shared"
