"""The results of runs on disk: written whole or not at all, found again under any folder. Nothing here imports torch."""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import harmonic_mean
from typing import Any

from decoder.utils.errors import UserError
from decoder.utils.json_files import write_json

SCHEMA = 1
VALIDATION_SCORE = "harmonic mean of the exact match on val/id and val/new"
FILE = "result.json"
PARTS = {
    "config": dict,
    "host": dict,
    "edited_layer": int | list,
    "trained_layer": int | list,
    "validation": dict,
    "test": dict,
    "baselines": dict,
}
"""What a finished run's result has at least, by kind."""
LEARNT = ("val/id/loss", "val/new/exact_match")
"""What a comparison draws by epoch."""
History = dict[str, dict[int, float]]
"""Metric -> epoch -> value."""
NOT_RUNS = {"checkpoints", "decoder", "wandb"}


@dataclass(frozen=True)
class Found:
    """What lies under some folders: results by run folder, runs without one yet, and files that cannot be read."""

    results: dict[Path, dict[str, Any]] = field(default_factory=dict)
    unfinished: list[Path] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    histories: dict[Path, History] = field(default_factory=dict)
    """Of runs that lie elsewhere; those of folders are read when they are asked for."""

    @property
    def finished(self) -> dict[Path, dict[str, Any]]:
        return {folder: result for folder, result in self.results.items() if result.get("status") == "ok"}

    @property
    def failed(self) -> dict[Path, dict[str, Any]]:
        return {folder: result for folder, result in self.results.items() if result.get("status") != "ok"}

    def history(self, folder: Path) -> History:
        return self.histories[folder] if folder in self.histories else read_history(folder / "metrics.csv")


def write_result(folder: Path, result: Mapping[str, Any]) -> None:
    """Writes result.json so that it is there whole or not at all."""
    write_json(folder / FILE, {"schema": SCHEMA} | dict(result))


def read_result(path: Path) -> dict[str, Any]:
    """The `result.json` of a run; one that is absent or not of this schema is an error that names the file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; a run folder with a result.json was expected, run train.py first")
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON ({error}); expected the result of a run, run train.py again") from error
    if not isinstance(result, dict) or result.get("schema") != SCHEMA:
        raise ValueError(f"{path}: not a result of schema {SCHEMA}; run train.py again with this version")
    return result


def is_finished(folder: Path) -> bool:
    """Whether the folder has the result of a run that went through."""
    try:
        return read_result(folder / FILE).get("status") == "ok"
    except (FileNotFoundError, ValueError):
        return False


def find_runs(folders: Iterable[str | Path]) -> Found:
    """Every run at or under the folders, in order of path.

    Raises:
        UserError: a folder is not there, or none of them holds a run.
    """
    found = Found()
    folders = [Path(folder).expanduser() for folder in folders]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; give run folders, or a folder above them as runs/main")
        for path in sorted(_run_folders(folder)):
            _read_into(found, path)
    if not found.results and not found.unfinished:
        shown = ", ".join(map(str, folders))
        raise UserError(f"{shown}: no result.json of schema {SCHEMA} there; run train.py first, or give another folder")
    return found


def validation_score(result: Mapping[str, Any]) -> float | None:
    """What runs are chosen by: the harmonic mean of the exact match on val/id and val/new, at the best checkpoint.

    Tests have no part in it. As in ROME's own score of editors (Meng et al. 2022, S), what is bad on one side is not made up for by
    the other: a decoder that knows the relations of training by heart reads val/id without a fault.
    """
    scores = [split["exact_match"]["value"] for split in (result.get("validation") or {}).values() if split.get("exact_match")]
    return harmonic_mean(scores) if scores else None


def layer_fraction(layer: Any, layers: int | None) -> float | None:
    """Depth of a layer from 0 to 1, so that hosts of different depth share an axis; None for several layers."""
    return layer / max(1, layers - 1) if isinstance(layer, int) and layers else None


def _read_into(found: Found, folder: Path) -> None:
    if not (folder / FILE).exists():
        found.unfinished.append(folder)
        return
    try:
        result = read_result(folder / FILE)
    except ValueError as error:
        found.unreadable.append(str(error))
        return
    if result.get("status") == "ok" and (missing := [part for part, kind in PARTS.items() if not isinstance(result.get(part), kind)]):
        found.unreadable.append(f"{folder / FILE}: {', '.join(missing)}: not there or of another kind; run train.py again")
    else:
        found.results[folder] = result


def _run_folders(top: Path) -> Iterable[Path]:
    for path, names, files in os.walk(top):
        if FILE in files or ("config.yaml" in files and "overrides.txt" in files):
            names.clear()
            yield Path(path)
        names[:] = [name for name in names if name not in NOT_RUNS]


def read_predictions(path: Path) -> list[dict]:
    """Rows of `predictions.parquet`; none if the file is absent."""
    if not path.exists():
        return []
    import pyarrow.parquet

    return pyarrow.parquet.read_table(path).to_pylist()


def read_history(path: Path) -> History:
    """Means of the values logged in each epoch, from `metrics.csv`; empty if it is absent or damaged."""
    if not path.exists():
        return {}
    import pandas

    try:
        means = pandas.read_csv(path).groupby("epoch").mean(numeric_only=True)
    except (KeyError, ValueError):  # what a killed or full machine leaves of it
        return {}
    return {str(name): means[name].dropna().to_dict() for name in means}


def failed(config: Mapping[str, Any], why: str | BaseException) -> dict[str, Any]:
    """The result of a run that did not go through."""
    error = why if isinstance(why, str) else f"{type(why).__name__}: {why}"
    return {"schema": SCHEMA, "status": "failed", "error": error, "config": dict(config)}
