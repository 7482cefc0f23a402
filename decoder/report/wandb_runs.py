"""Results of runs in W&B: the keys of a run's summary, and runs of a project read back in the shape of result.json."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from decoder.report.columns import COLUMNS, at
from decoder.report.results import LEARNT, SCHEMA, Found, History, failed
from decoder.scores import METRICS, VAL_SPLITS, wilson
from decoder.utils.errors import UserError

CHOSEN_BY = "best/validation"
"""The validation score that runs, and sweeps, are chosen by."""
ADDED_TO_CONFIG = ("layer_frac", "edited_layer_frac", "host_layers")
"""What a W&B config has beside the settings."""
BESIDE_COLUMNS = ("calibration.auroc", "edits.editor", "edits.ridge")

PER_PAGE = 200
GOING_ON = {"running", "pending", "preempting", "preempted"}


def places(tests: Iterable[str], baselines: Iterable[str]) -> dict[str, str]:
    """Key in the summary of a W&B run -> its place in a result.json, for tests and baselines of these names."""
    found = {column.logged_as: column.value for column in COLUMNS if column.logged_as}
    found |= {place.replace(".", "/"): place for place in BESIDE_COLUMNS}
    scored = [(f"best/{split}", f"validation.{split}") for split in VAL_SPLITS] + [(f"test/{split}", f"test.{split}") for split in tests]
    found |= {f"{key}/n": f"{place}.n" for key, place in scored}
    for name in baselines:
        found[f"baseline/{name}/base_known"] = f"baselines.{name}.base_known"
        scored += [(f"baseline/{name}/{split}", f"baselines.{name}.{split}") for split in tests]
    return found | {f"{key}/{metric}": f"{place}.{metric}.value" for key, place in scored for metric in METRICS}


def summary_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """What the summary of a run's W&B run gets, as plain values; keys that begin with _ are W&B's own."""
    found = {key: at(result, place) for key, place in places(result["test"], result["baselines"]).items() if not key.startswith("_")}
    return {key: value for key, value in found.items() if value is not None}


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
        return collect(path, wandb.Api().runs(path, filters=filters, per_page=PER_PAGE, lazy=False))
    except (wandb.errors.Error, ValueError) as error:
        raise UserError(f"wandb={path}: {' '.join(str(error).split())}; is the name right, and are you logged in (wandb login)?") from None


def collect(path: str, runs: Iterable[Any]) -> Found:
    """W&B runs as results, with the learning curves of those that went through; runs that go on count as not finished.

    Raises:
        UserError: there is none.
    """
    found = Found()
    for run in runs:
        name = Path(path) / run.name
        name = name if name not in found.results else name.with_name(f"{run.name}-{run.id}")
        if run.state in GOING_ON:
            found.unfinished.append(name)
            continue
        result = found.results[name] = result_of(run.config, dict(run.summary), run.state)
        if result["status"] == "ok":
            try:
                found.histories[name] = _history(run)
            except Exception as error:  # of many kinds, and the scores are there
                found.histories[name] = {}
                found.unreadable.append(f"{name}: its learning curves ({type(error).__name__}: {' '.join(str(error).split())})")
    if not found.results and not found.unfinished:
        raise UserError(f"wandb={path}: no runs of job type train there; give another project, or group= of one comparison")
    return found


def result_of(config: Mapping[str, Any], summary: Mapping[str, Any], state: str) -> dict[str, Any]:
    """A run's config and summary as a result.json. Intervals are computed again from the value and n."""
    settings = {key: value for key, value in config.items() if key not in ADDED_TO_CONFIG and not key.startswith("_")}
    if state != "finished" or CHOSEN_BY not in summary:
        return failed(settings, f"its state at W&B is {state}" + ("" if state != "finished" else ", without scores"))
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "status": "ok",
        "config": settings,
        "host": {"name": config["host"]["name"], "layers": config.get("host_layers")},
        "edited_layer": config["edits"]["layer"],
        "trained_layer": config["decoder"]["layer"],
        "seed": config["seed"],
        "validation": {},
        "test": {},
        "baselines": {},
    }
    for key, place in places(_named(summary, "test/"), _named(summary, "baseline/")).items():
        if summary.get(key) is not None:
            _put(result, place, summary[key])
    for scores in (*result["validation"].values(), *result["test"].values()):
        for score in (scores[metric] for metric in METRICS if metric in scores and scores.get("n")):
            score["ci95"] = wilson(round(score["value"] * scores["n"]), scores["n"])
    if "edits" in result:
        result["edits"].setdefault("ridge", None)  # not known of other tools' edits; the one asked for made nothing
    return result


def _named(summary: Mapping[str, Any], prefix: str) -> list[str]:
    return list(dict.fromkeys(key.split("/")[1] for key in summary if key.startswith(prefix)))


def _put(result: dict[str, Any], place: str, value: Any) -> None:
    *above, last = place.split(".")
    for name in above:
        result = result.setdefault(name, {})
    result[last] = value


def _history(run: Any) -> History:
    # Validation logs all of a row at once, so one request has the rows that have every one of these keys.
    rows = list(run.scan_history(keys=["epoch", *LEARNT]))
    return {name: {row["epoch"]: row[name] for row in rows} for name in LEARNT}
