"""A command line that stands for several: settings with several values, typed behind `-m` or listed under `grid:` by an experiment file."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Generic, TypeVar

from decoder.config.compose import CHAINS, compose, experiment_says
from decoder.config.options import spelled, typed
from decoder.config.schema import TrainConfig
from decoder.utils.errors import UserError

C = TypeVar("C", bound=TrainConfig)
FLAGS = ("-m", "--multirun")
MOST_RUNS = 10_000
RANGE = re.compile(r"range\(\s*(-?\d+)\s*(?:,\s*(-?\d+)\s*)?(?:,\s*(-?\d+)\s*)?\)")


@dataclass(frozen=True)
class Axes(Generic[C]):
    """What a command line asks for: the words that all have in common, and the values of what differs.

    Attributes:
        first: the config of the first, its `grid` being what the files list.
        flagged: whether `-m` was typed.
    """

    kept: list[str]
    values: dict[str, list[str]]
    first: C
    flagged: bool

    @property
    def choices(self) -> list[dict[str, str]]:
        """One value of each, in all ways."""
        return [dict(zip(self.values, choice, strict=True)) for choice in product(*self.values.values())]


def plants_chains(argv: Sequence[str]) -> bool:
    """Whether the experiment of a command line plants chains of facts, by what its file says, and trains nothing."""
    return any(key == "experiment" and experiment_says(name, CHAINS) for key, _, name in (word.partition("=") for word in argv))


def read_axes(config_class: type[C], name: str, argv: Sequence[str], page: str | None = None) -> Axes[C]:
    """Takes a command line apart; answers `--help` and `--cfg` (of the first config) as `compose` does.

    Raises:
        UserError: an argument is not understood, or there are more than `MOST_RUNS` combinations.
    """
    words = [spelled(key) + equals + text for key, equals, text in (word.partition("=") for word in argv if word not in FLAGS)]
    several = len(words) < len(argv)
    counts = Counter(word.partition("=")[0] for word in words)
    if several and (twice := next((key for key, count in counts.items() if count > 1), None)):
        raise UserError(f"{twice} came twice; several values of a setting are written {twice}=A,B")
    typed_values = {key: values(text, key) for key, _, text in (word.partition("=") for word in words)} if several else {}
    axes = {key: found for key, found in typed_values.items() if len(found) > 1}
    kept = [word for word in words if word.partition("=")[0] not in axes]
    first = compose(config_class, name, kept + [f"{key}={found[0]}" for key, found in axes.items()], page)
    for own in axes.get("experiment", ()):
        if experiment_says(own, "grid") or experiment_says(own, CHAINS):
            raise UserError(f"experiment={','.join(axes['experiment'])}: {own} has a grid of its own; give one experiment")
    axes = {key: values(_text(found), key) for key, found in first.grid.items() if key not in counts} | axes
    if (count := math.prod(map(len, axes.values()))) > MOST_RUNS:
        raise UserError(f"the grid has {count} runs ({', '.join(axes)}), expected at most {MOST_RUNS}; give fewer values")
    return Axes(kept, axes, first, several)


def values(text: str, key: str = "") -> list[str]:
    """The values of a setting: split at commas outside brackets and quotes; a range is counted out.

    Raises:
        UserError: a range has no members, or is not written range(START,STOP) or range(START,STOP,STEP).
    """
    found = []
    for part in _split(text):
        if not part.startswith("range("):
            found.append(part)
            continue
        bounds = RANGE.fullmatch(part)
        counted = range(*(int(bound) for bound in bounds.groups() if bound)) if bounds and bounds[3] != "0" else ()
        if not counted:
            raise UserError(f"{key}={part}: expected range(START,STOP) or range(START,STOP,STEP) with members, as range(0,48,4)")
        if len(counted) > MOST_RUNS:
            raise UserError(f"{key}={part}: {len(counted)} values, a grid has at most {MOST_RUNS} runs")
        found += map(str, counted)
    return found


def _text(value: Any) -> str:
    """A value of an experiment file's grid as it would be typed."""
    return ",".join(map(typed, value)) if isinstance(value, list) else typed(value)


def _split(text: str) -> list[str]:
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if letter == "," and not depth and not quote:
            parts.append("")
            continue
        parts[-1] += letter
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        else:
            depth += (letter in "([{") - (letter in ")]}")
    return parts
