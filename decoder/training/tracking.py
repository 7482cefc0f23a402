"""What W&B gets beside Lightning's log: numbers to plot layers by, tags, the validation score, and the run of a whole comparison."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from lightning import Trainer
from lightning.pytorch.loggers import WandbLogger

from decoder.config import TrainConfig
from decoder.config.identity import editor_of, trained_layers
from decoder.report.results import layer_fraction, validation_score
from decoder.report.wandb_runs import ADDED_TO_CONFIG, CHOSEN_BY


def describe_run(trainer: Any, cfg: TrainConfig, layers: int) -> None:
    """Adds tags and the depths of the layers to the W&B run of a trainer, if it has one."""
    run = _run_of(trainer)
    if run is None:
        return
    trained = "+".join(map(str, trained_layers(cfg)))
    own = (cfg.host.name, editor_of(cfg), f"edited-{cfg.edits.layer}", f"trained-{trained}")
    run.tags = tuple(dict.fromkeys((*(run.tags or ()), *own)))
    if cfg.variant and not cfg.wandb.name:
        run.name = f"{run.name}-{cfg.variant}"
    depths = (layer_fraction(cfg.decoder.layer, layers), layer_fraction(cfg.edits.layer, layers), layers)
    run.config.update(dict(zip(ADDED_TO_CONFIG, depths, strict=True)))


def log_validation(trainer: Any, summary: Mapping[str, Any]) -> None:
    """Logs what sweeps are steered by, and puts plain validation scores and the sizes of the splits into the summary."""
    run = _run_of(trainer)
    if run is None:
        return
    run.log({CHOSEN_BY: validation_score(summary)})
    for split, scores in summary["validation"].items():
        for metric in ("first_token", "exact_match"):
            run.summary[f"best/{split}/{metric}"] = scores[metric]["value"]
        run.summary[f"best/{split}/n"] = scores["n"]
    for split, scores in summary["test"].items():
        run.summary[f"test/{split}/n"] = scores["n"]
    for name, scores in summary["baselines"].items():
        run.summary[f"baseline/{name}/base_known"] = scores["base_known"]


def close_run(exit_code: int) -> None:
    """Closes a W&B run that a failure left open; the next run of the process would go on writing to it."""
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.run.finish(exit_code=exit_code)


def log_comparison(cfg: TrainConfig, rows: list[dict[str, Any]], folder: Path) -> None:
    """One W&B run of job type `report`: the table of runs, and the layer curve of every edited layer and split."""
    if cfg.wandb.mode == "disabled" or not rows:
        return
    import pandas as pd
    import wandb

    from decoder.report.layer_curves import chosen_by_validation, layer_curves
    from decoder.report.tables import SPLITS

    run = wandb.init(
        mode=cfg.wandb.mode,
        project=cfg.wandb.project,
        entity=cfg.wandb.entity,
        group=cfg.wandb.group or cfg.experiment,
        name=f"{cfg.wandb.name or cfg.experiment}-report",
        tags=[*cfg.wandb.tags, "report"],
        job_type="report",
        dir=folder,
    )
    run.log({"runs": wandb.Table(dataframe=pd.DataFrame(rows).astype({"trained_layer": str}))})
    for series, curves in layer_curves([*chosen_by_validation(rows), *rows]).items():
        drawn = [split for split in SPLITS if curves.get(split)]
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


def _run_of(trainer: Any) -> Any:
    from lightning.pytorch.loggers import WandbLogger

    return next((logger.experiment for logger in trainer.loggers if isinstance(logger, WandbLogger)), None)


def log_to_wandb(trainer: Trainer, result: dict[str, Any], predictions: pd.DataFrame, decoder_folder: Path | None) -> None:
    """Puts a run's scores and baselines as plain numbers into the W&B summary, with a table of predictions; the decoder as an
    artifact if a folder is given. Closes the W&B run."""
    loggers = [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]
    if not loggers:
        return
    import wandb

    run = loggers[0].experiment
    run.summary["best/val_id_loss"] = result["fit"]["best_val_loss"]
    run.summary["stopping_reason"] = result["fit"]["stopping_reason"]
    run.summary["calibration/auroc"] = result["calibration"]["auroc"]
    for split, scores in result["test"].items():
        for metric in ("first_token", "exact_match"):
            run.summary[f"test/{split}/{metric}"] = scores[metric]["value"]
            for name, baseline in result["baselines"].items():
                if split in baseline and baseline[split][metric]:
                    run.summary[f"baseline/{name}/{split}/{metric}"] = baseline[split][metric]["value"]
    run.log({"predictions": wandb.Table(dataframe=predictions)})
    if decoder_folder:
        artifact = wandb.Artifact(f"decoder-{run.name}", type="decoder")
        artifact.add_dir(str(decoder_folder))
        run.log_artifact(artifact)
    run.finish()
