"""Run folders with results that nobody measured: what a grid leaves, without the runs."""

import json
import math
import random
from pathlib import Path
from typing import Any

from decoder.config.compose import to_dict
from launcher.grid import Run, read_grid

SPLITS = {"id": 302, "ood": 348, "unseen_object": 210}
BASELINES = {
    "nearest_edit": (True, 0.6, True),
    "carrier": (True, 0.5, True),
    "object_prior": (False, 0.02, True),
    "master_key": (False, 0.55, False),
}
EPOCHS = 12


def score(value: float, n: int) -> dict[str, Any]:
    half = 1.96 * math.sqrt(value * (1 - value) / n) + 0.004
    return {"value": value, "ci95": [max(0.0, value - half), min(1.0, value + half)]}


def scores(value: float, n: int, exact: bool = True) -> dict[str, Any]:
    return {"n": n, "first_token": score(value, n), "exact_match": score(value, n) if exact else None}


def level(edited: int, trained: int, split: str) -> float:
    """Flat up to the edited layer, falling after it."""
    fall = max(0, trained - edited)
    return {"id": 0.96, "ood": 0.58, "unseen_object": 0.86}[split] * math.exp(-0.35 * fall) - 0.01 * max(0, edited - trained)


def result(edited: int, trained: Any, seed: int, **config: Any) -> dict[str, Any]:
    draw = random.Random(f"{edited} {trained} {seed}")
    layer = max(trained) if isinstance(trained, list) else trained
    base = {split: min(0.999, max(0.001, level(edited, layer, split) + draw.gauss(0, 0.02))) for split in SPLITS}
    test = {split: scores(base[split], n) for split, n in SPLITS.items()}
    validation = {"val/id": 0.98 * base["id"], "val/new": 0.99 * base["ood"]}
    settings = {
        "experiment": "layers",
        "seed": seed,
        "host": {"name": "pocket", "path": None},
        "edits": {"editor": "rome", "layer": edited, "ridge": 0.01},
        "decoder": {"layer": trained},
        "optim": {"epochs": EPOCHS},
        "trainer": {"precision": "32-true"},
    }
    return {
        "schema": 1,
        "status": "ok",
        "config": settings | config,
        "host": {"name": (settings | config)["host"]["name"], "family": "gpt2", "fingerprint": "0123456789ab", "layers": 10},
        "edited_layer": edited,
        "trained_layer": trained,
        "seed": seed,
        "edits": {"ridge": 0.01},
        "fit": {"epochs": EPOCHS, "stopping_reason": "all epochs were run", "best_val_loss": 1.2 - base["id"]},
        "validation": {name: scores(value, 90) for name, value in validation.items()},
        "test": test,
        "baselines": {
            name: {"base_known": known} | {split: scores(value, n, exact) for split, n in SPLITS.items()}
            for name, (known, value, exact) in BASELINES.items()
        },
        "seconds": {"fit": 100.0, "test": 20.0, "total": 121.0},
    }


def write_run(top: Path, edited: int, trained: Any, seed: int, **config: Any) -> Path:
    """A run folder with result.json and metrics.csv."""
    found = result(edited, trained, seed, **config)
    folder = top / found["host"]["name"] / f"rome-e{edited}-t{str(trained).strip('[]').replace(', ', '-')}-s{seed}"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(found))
    end = found["validation"]["val/new"]["exact_match"]["value"]
    lines = ["epoch,step,val/id/loss,val/new/exact_match"]
    lines += [
        f"{epoch},{epoch * 30},{2.5 * math.exp(-epoch / 4) + 1.1 - end:.5f},{end * (1 - math.exp(-epoch / 3)):.5f}"
        for epoch in range(EPOCHS)
    ]
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    return folder


def write_grid(top: Path, edited: int = 3, trained: int = 4, seeds: int = 3) -> Path:
    for e in range(edited):
        for t in range(trained):
            for s in range(seeds):
                write_run(top, e, t, s)
    return top


def finished_run(tmp_path, *argv, status="ok", **changes) -> Run:
    (run,) = read_grid([f"runs={tmp_path}", *argv]).runs
    run.folder.mkdir(parents=True)
    config = json.loads(json.dumps(to_dict(run.config))) | changes
    result = {"schema": 1, "status": status, "config": config, "seconds": {"fit": 9.0, "test": 1.0}, "test": {"id": {}}}
    (run.folder / "result.json").write_text(json.dumps(result))
    return run
