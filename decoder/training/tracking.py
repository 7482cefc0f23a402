"""What W&B gets beside Lightning's log: numbers to plot layers by, tags, a run's scores, and the run of a whole comparison.

Whatever W&B raises, in starting, in between or at the end, a run goes on without it and says so in its result.
"""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd
from lightning import Trainer
from lightning.pytorch.loggers import WandbLogger

from decoder.config import TrainConfig
from decoder.config.compose import to_dict
from decoder.config.identity import editor_of, run_folder
from decoder.report.results import layer_fraction, validation_score
from decoder.report.wandb_runs import ADDED_TO_CONFIG, CHOSEN_BY, summary_of
from decoder.scores import TEST_SPLITS
from decoder.utils.terminal import console

FOLDERS = {"WANDB_DIR": "", "WANDB_DATA_DIR": "wandb/data", "WANDB_CACHE_DIR": "wandb/cache", "WANDB_CONFIG_DIR": "wandb/config"}
_given: dict[str, str] = {}


class Tracker(WandbLogger):
    """The W&B run of a run, under its folder. The first failure of W&B is told, and ends what is logged."""

    def __init__(self, cfg: TrainConfig, folder: Path) -> None:
        keep_inside(folder)
        super().__init__(
            **_place(cfg),
            name=cfg.wandb.name or f"{cfg.host.name}-{run_folder(cfg).name}",
            tags=list(cfg.wandb.tags),
            job_type="train",
            save_dir=folder,
            config=to_dict(cfg),
        )
        # An argument Lightning still passes and W&B warns about.
        self._wandb_init.pop("anonymous", None)
        self.failure: str | None = None

    @property
    def experiment(self) -> Any:
        if self._experiment is None:
            with self.attempt():
                return super().experiment
        return self._experiment

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        with self.attempt():
            super().log_metrics(metrics, step)

    def log_hyperparams(self, params: Any) -> None:
        with self.attempt():
            super().log_hyperparams(params)

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Around what is asked of W&B: if it fails, this run has a W&B run that does nothing from here on."""
        try:
            yield
        except Exception as error:
            import wandb

            self.failure = f"{type(error).__name__}: {' '.join(str(error).split())}"
            console().print(f"  W&B failed, the run goes on without it: {self.failure}", style="yellow", markup=False)
            with suppress(Exception):
                # Its service may be dead; the next run of this process starts another.
                wandb.teardown(exit_code=1)
            self._experiment = wandb.init(mode="disabled")


def keep_inside(folder: Path) -> None:
    """W&B's files go under a run folder, but for folders that the user named and the settings that `wandb login` left."""
    for name, own in FOLDERS.items():
        ours = os.environ.get(name) == _given.get(name)
        if ours and not (name == "WANDB_CONFIG_DIR" and os.path.exists(os.path.expanduser("~/.config/wandb"))):
            os.environ[name] = _given[name] = str(folder.resolve() / own)
    try:
        Path.home()
    except RuntimeError:  # W&B's service does not start without one
        os.environ["HOME"] = str(folder.resolve() / "wandb")


def describe_run(trainer: Trainer, cfg: TrainConfig, layers: int) -> None:
    """Adds tags and the depths of the layers to the W&B run of a trainer, if it has one."""
    tracker = _tracker(trainer)
    if tracker is None:
        return
    edited, trained = ("+".join(map(str, layers)) for layers in (cfg.edits.layers, cfg.decoder.layers))
    own = (cfg.host.name, editor_of(cfg), f"edited-{edited}", f"trained-{trained}")
    depths = (layer_fraction(cfg.decoder.layer, layers), layer_fraction(cfg.edits.layer, layers), layers)
    with tracker.attempt():
        run = tracker.experiment
        run.tags = tuple(dict.fromkeys((*(run.tags or ()), *own)))
        run.config.update(dict(zip(ADDED_TO_CONFIG, depths, strict=True)))


def log_result(trainer: Trainer, result: dict[str, Any], predictions: pd.DataFrame, decoder_folder: Path | None) -> dict[str, str]:
    """Logs what sweeps are steered by, a run's scores as plain numbers of the summary, a table of predictions, and the decoder as
    an artifact if a folder is given. Closes the W&B run; returns what result.json says of it, which is nothing unless W&B failed."""
    tracker = _tracker(trainer)
    if tracker is None:
        return {}
    import wandb

    with tracker.attempt():
        run = tracker.experiment
        steered_by = {CHOSEN_BY: validation_score(result)}
        run.log(steered_by)
        # What is logged reaches the summary of a busy machine's offline run too late.
        run.summary.update(summary_of(result) | steered_by)
        run.log({"predictions": wandb.Table(dataframe=predictions.drop(columns=["answers", "planted"], errors="ignore"))})
        if decoder_folder:
            artifact = wandb.Artifact(f"decoder-{run.name}", type="decoder")
            artifact.add_dir(str(decoder_folder))
            run.log_artifact(artifact)
    with tracker.attempt():
        tracker.experiment.finish()
    return {"wandb": tracker.failure} if tracker.failure else {}


def close_run(exit_code: int) -> None:
    """Closes a W&B run that a failure left open; the next run of the process would go on writing to it."""
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.run.finish(exit_code=exit_code)


def log_comparison(cfg: TrainConfig, rows: list[dict[str, Any]], folder: Path) -> None:
    """One W&B run of job type `report`: the table of runs, and the layer curve of every edited layer and split."""
    if cfg.wandb.mode == "disabled" or not rows:
        return
    import wandb

    from decoder.report.layer_curves import chosen_by_validation, layer_curves

    keep_inside(folder)
    run = wandb.init(
        **_place(cfg),
        name=f"{cfg.wandb.name or cfg.experiment}-report",
        tags=[*cfg.wandb.tags, "report"],
        job_type="report",
        dir=folder,
    )
    run.log({"runs": wandb.Table(dataframe=pd.DataFrame(rows).astype({"trained_layer": str}))})
    for series, curves in layer_curves([*chosen_by_validation(rows), *rows]).items():
        drawn = [split for split in TEST_SPLITS if curves.get(split)]
        plot = wandb.plot.line_series(
            xs=[[point.layer for point in curves[split]] for split in drawn],
            ys=[[point.mean for point in curves[split]] for split in drawn],
            keys=drawn,
            title=f"{series.label}: exact match by trained layer",
            xname="trained layer",
        )
        names = (series.host, series.setting, f"edited-{series.edited_layer}")
        run.log({f"layers/{'/'.join(filter(None, names))}": plot})
    run.finish()


def _place(cfg: TrainConfig) -> dict[str, Any]:
    """Where at W&B a run goes, as arguments of `wandb.init`."""
    asked = cfg.wandb
    return {"mode": asked.mode, "project": asked.project, "entity": asked.entity, "group": asked.group or cfg.experiment}


def _tracker(trainer: Trainer) -> Tracker | None:
    return next((logger for logger in trainer.loggers if isinstance(logger, Tracker)), None)
