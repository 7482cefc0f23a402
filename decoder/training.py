"""The Lightning trainer of a run and its loggers."""

import sys
from pathlib import Path
from typing import Any

import pandas as pd
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from decoder.compose import to_dict
from decoder.config import TrainConfig
from decoder.paths import trained_layers

MONITOR = "val/id/loss"


def build_trainer(cfg: TrainConfig, folder: Path) -> Trainer:
    """Early stopping and checkpoints on val/id/loss; CSV always, W&B unless it is disabled; everything under `folder`."""
    show_bars = cfg.trainer.progress == "rich" or (cfg.trainer.progress == "auto" and sys.stdout.isatty())
    callbacks: list[Callback] = [
        EarlyStopping(MONITOR, mode="min", patience=cfg.optim.patience),
        ModelCheckpoint(folder / "checkpoints", monitor=MONITOR, mode="min", filename="best", save_last=True, enable_version_counter=False),
    ]
    return Trainer(
        accelerator=cfg.trainer.accelerator,
        devices=cfg.trainer.devices,
        num_nodes=cfg.trainer.num_nodes,
        strategy=cfg.trainer.strategy,
        precision=cfg.trainer.precision,
        max_epochs=cfg.optim.epochs,
        gradient_clip_val=cfg.optim.clip,
        callbacks=[*callbacks, RichProgressBar(leave=False)] if show_bars else callbacks,
        logger=_loggers(cfg, folder),
        default_root_dir=folder,
        log_every_n_steps=10,
        enable_progress_bar=show_bars,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


def _loggers(cfg: TrainConfig, folder: Path) -> list[Logger]:
    loggers: list[Logger] = [CSVLogger(folder, name="", version="")]
    if cfg.wandb.mode != "disabled":
        trained = "-".join(map(str, trained_layers(cfg)))
        wandb_logger = WandbLogger(
            mode=cfg.wandb.mode,
            project=cfg.wandb.project,
            entity=cfg.wandb.entity,
            group=cfg.wandb.group or cfg.experiment,
            name=cfg.wandb.name or f"{cfg.host.name}-{cfg.edits.editor}-e{cfg.edits.layer}-t{trained}-s{cfg.seed}",
            tags=list(cfg.wandb.tags),
            job_type="train",
            save_dir=folder,
            config=to_dict(cfg),
        )
        # An argument Lightning still passes and W&B warns about.
        wandb_logger._wandb_init.pop("anonymous", None)
        loggers.append(wandb_logger)
    return loggers


def fit(trainer: Trainer, module: LightningModule, data: LightningDataModule, resume: bool) -> None:
    """Fits, from the last checkpoint if asked.

    Raises:
        ValueError: the checkpoint has run more epochs than are asked for now, or is of another shape.
    """
    try:
        trainer.fit(module, datamodule=data, ckpt_path="last" if resume else None)
    except (MisconfigurationException, RuntimeError) as error:
        if not resume:
            raise
        told = " ".join(str(error).split())
        raise ValueError(f"resume=true: {told} Use the settings, optim.epochs too, the run was started with, or start it anew") from error


def fit_summary(trainer: Trainer) -> dict[str, Any]:
    """Epochs, why training stopped, and the best val/id/loss."""
    stopping, checkpoint = trainer.early_stopping_callback, trainer.checkpoint_callback
    reason = stopping.stopping_reason_message or f"all {trainer.max_epochs} epochs were run"
    return {"epochs": trainer.current_epoch, "stopping_reason": reason, "best_val_loss": float(checkpoint.best_model_score)}


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
