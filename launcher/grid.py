"""Grids: one command line that stands for many runs.

`-m decoder.layer=0,1 seed=range(0,3)` is the product of its several-valued settings; an experiment file may list more under
`grid:`. Nothing here imports torch, so that a grid whose runs are all finished is known to be at once.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from decoder.config import TrainConfig
from decoder.config.compose import compose, to_dict
from decoder.config.grids import read_axes
from decoder.config.identity import difference, edits_of, run_folder, with_effect
from decoder.report.results import read_result
from decoder.training.distributed import is_distributed
from decoder.utils.errors import UserError
from decoder.utils.files import short_hash
from launcher.variant import variant_of


@dataclass(frozen=True)
class Run:
    """One run of a grid: its config, and the command line that gives it alone."""

    config: TrainConfig
    argv: tuple[str, ...]

    @property
    def folder(self) -> Path:
        return run_folder(self.config)

    def finished(self) -> dict[str, Any] | None:
        """The result of this run if it went through with the same settings before."""
        result = self._went_through()
        return result if result and not self._difference(result) else None

    def would_replace(self) -> tuple[str, str] | None:
        """What differs, there and here, if a run of other settings went through in this folder before."""
        result = self._went_through()
        return self._difference(result) if result else None

    def _difference(self, result: dict[str, Any]) -> tuple[str, str] | None:
        return difference(with_effect(result["config"]), with_effect(to_dict(self.config)))

    def _went_through(self) -> dict[str, Any] | None:
        try:
            result = read_result(self.folder / "result.json")
        except (FileNotFoundError, ValueError):
            return None
        return result if result.get("status") == "ok" and all(result.get(part) for part in ("config", "seconds", "test")) else None


@dataclass(frozen=True)
class Grid:
    """The runs of a command line, those of one host and edited layer together; `is_one_run` if one run is to be done here and now."""

    runs: list[Run]
    axes: dict[str, list[str]]
    is_one_run: bool


def read_grid(argv: Sequence[str]) -> Grid:
    """The runs a command line stands for; answers `--help` and `--cfg` (of the first run) as `compose` does.

    Raises:
        UserError: an argument is not understood, or two runs would share a folder or be the same.
    """
    axes = read_axes(TrainConfig, "train", argv)
    kept = axes.kept

    @cache
    def own(words: tuple[str, ...]) -> TrainConfig:
        return compose(TrainConfig, "train", [*kept, *words])

    runs = [_run(kept, choice, own) for choice in axes.choices]
    _refuse_twins(runs, lambda run: run.folder, lambda run: f"write to {run.folder}")
    if "variant" not in axes.values:
        # A value spelt twice, or a setting that has no effect on results.
        _refuse_twins(runs, lambda run: short_hash([run.config.experiment, with_effect(to_dict(run.config))]), lambda run: "be the same")
    return Grid(
        [run for members in by_edits(runs).values() for run in members],
        axes.values,
        is_one_run=not axes.flagged and not axes.values and axes.first.launcher.name == "local",
    )


def by_edits(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """The runs on the same host and edits together, by `edits_of`, so that each host is opened and each set of edits made once."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(edits_of(run.config), []).append(run)
    return found


def refuse_to_replace(runs: Iterable[Run]) -> None:
    """Refuses a grid over finished runs of other settings: their folders tell several-valued settings only. `resume=false` replaces them.

    Raises:
        UserError: a folder holds a finished run of other settings.
    """
    for run in runs:
        if run.config.resume is not False and (found := run.would_replace()):
            raise UserError(
                f"{run.folder} holds a finished run of other settings: {found[0]} there, {found[1]} now. "
                "Give variant=NAME or runs=FOLDER to keep both, or resume=false to replace it"
            )


def seconds_of(result: dict[str, Any]) -> float:
    """What a run takes once its host and edits are there."""
    return math.fsum(result["seconds"][stage] for stage in ("fit", "test"))


def _run(kept: list[str], choice: dict[str, str], own: Callable[[tuple[str, ...]], TrainConfig]) -> Run:
    argv = [*kept, *(f"{key}={value}" for key, value in choice.items())]
    config = compose(TrainConfig, "train", argv)
    config.grid = {}
    # What the folder without a variant stands for: of the choice, the groups, which bring settings of their own along.
    groups = tuple(f"{key}={choice[key]}" for key in ("experiment", "host") if key in choice)
    is_named = any(word.startswith("variant=") for word in argv)
    if choice and not is_named and (variant := variant_of(choice, config, own(groups))):
        config.variant = variant
        argv.append(f"variant={variant}")
    return Run(config, tuple(argv))


def _refuse_twins(runs: list[Run], key: Callable[[Run], Any], would: Callable[[Run], str]) -> None:
    """Refuses two runs of one key; `would` says what they would do."""
    first: dict[Any, Run] = {}
    for run in runs:
        if (other := first.setdefault(key(run), run)) is not run:
            told = f"`{' '.join(other.argv)}` and `{' '.join(run.argv)}`"
            raise UserError(f"two runs of the grid would {would(run)}: {told}. Drop one of them")


def refuse_several(runs: Iterable[Run]) -> None:
    """Raises UserError if a run of a grid asks for several devices: the processes Lightning starts would each run the whole grid."""
    for run in runs:
        if is_distributed(run.config):
            asked = f"trainer.devices={run.config.trainer.devices} trainer.num_nodes={run.config.trainer.num_nodes}"
            raise UserError(
                f"{asked}: each run of a grid gets one device, and launcher.jobs runs several at a time; without -m a run may have more"
            )
