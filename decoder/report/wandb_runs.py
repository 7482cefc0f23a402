"""Results of runs out of a W&B project, in the shape of result.json, so that one page compares both."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from decoder.report.results import SCHEMA, Found
from decoder.utils.errors import UserError

CHOSEN_BY = "best/validation"
"""The validation score that runs, and sweeps, are chosen by."""
ADDED_TO_CONFIG = ("layer_frac", "edited_layer_frac", "host_layers")
"""What a W&B config has beside the settings."""

PER_PAGE = 200
GOING_ON = {"running", "pending", "preempting", "preempted"}
METRICS = ("exact_match", "first_token")


def read_project(path: str, group: str | None = None) -> Found:
    """The training runs of `entity/project`, asked of W&B's server.

    Raises:
        UserError: the path is not of that form, W&B cannot be asked, or it has no such runs.
    """
    if len(path.split("/")) != 2 or not all(path.split("/")):
        raise UserError(f"wandb={path}: expected entity/project")
    import wandb

    filters = {"jobType": "train"} | ({"group": group} if group else {})
    try:
        # Not lazy: config and summary of every run are read, a request each otherwise.
        runs = list(wandb.Api().runs(path, filters=filters, per_page=PER_PAGE, lazy=False))
    except (wandb.errors.Error, ValueError) as error:
        raise UserError(f"wandb={path}: {' '.join(str(error).split())}; is the name right, and are you logged in (wandb login)?") from None
    return collect(path, runs)


def collect(path: str, runs: Iterable[Any]) -> Found:
    """W&B runs as results; runs that go on count as not finished.

    Raises:
        UserError: there is none.
    """
    found = Found()
    for run in runs:
        name = Path(path) / run.name
        name = name if name not in found.results else name.with_name(f"{run.name}-{run.id}")
        if run.state in GOING_ON:
            found.unfinished.append(name)
        else:
            found.results[name] = result_of(run.config, dict(run.summary), run.state)
    if not found.results and not found.unfinished:
        raise UserError(f"wandb={path}: no runs of job type train there; give another project, or group= of one comparison")
    return found


def result_of(config: Mapping[str, Any], summary: Mapping[str, Any], state: str) -> dict[str, Any]:
    """A run's config and summary as a result.json. Intervals are computed again from the value and n."""
    settings = {key: value for key, value in config.items() if key not in ADDED_TO_CONFIG and not key.startswith("_")}
    result: dict[str, Any] = {"schema": SCHEMA, "status": "ok", "config": settings}
    if state != "finished" or CHOSEN_BY not in summary:
        return result | {"status": "failed", "error": f"its state at W&B is {state}" + ("" if state != "finished" else ", without scores")}
    return result | {
        "host": {"name": config["host"]["name"], "layers": config.get("host_layers")},
        "edited_layer": config["edits"]["layer"],
        "trained_layer": config["decoder"]["layer"],
        "seed": config["seed"],
        "fit": {
            "best_val_loss": summary.get("best/val_id_loss"),
            "epochs": summary.get("epoch"),
            "stopping_reason": summary.get("stopping_reason"),
        },
        "validation": _splits(summary, "best", ("val/id", "val/new")),
        "test": _splits(summary, "test", _named(summary, "test/")),
        "baselines": {name: _baseline(summary, name) for name in _named(summary, "baseline/")},
        "seconds": {"total": summary.get("_runtime")},
    }


def _named(summary: Mapping[str, Any], prefix: str) -> list[str]:
    return list(dict.fromkeys(key.split("/")[1] for key in summary if key.startswith(prefix)))


def _splits(summary: Mapping[str, Any], prefix: str, splits: Iterable[str]) -> dict[str, Any]:
    found = {}
    for split in splits:
        n, values = summary.get(f"{prefix}/{split}/n"), {metric: summary.get(f"{prefix}/{split}/{metric}") for metric in METRICS}
        if values["exact_match"] is not None:
            found[split] = {"n": n} | {metric: _score(value, n) for metric, value in values.items()}
    return found


def _baseline(summary: Mapping[str, Any], name: str) -> dict[str, Any]:
    scores: dict[str, Any] = {"base_known": summary.get(f"baseline/{name}/base_known")}
    for key, value in summary.items():
        parts = key.split("/")
        if parts[:2] == ["baseline", name] and len(parts) == 4:
            scores.setdefault(parts[2], dict.fromkeys(METRICS))[parts[3]] = {"value": value}
    return scores


def _score(value: float | None, n: int | None) -> dict[str, Any] | None:
    if value is None or not n:
        return None if value is None else {"value": value}
    from scipy.stats import binomtest

    interval = binomtest(round(value * n), n).proportion_ci(0.95, method="wilson")
    return {"value": value, "ci95": [float(interval.low), float(interval.high)]}
