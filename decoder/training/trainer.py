"""The Lightning trainer of a run and its loggers."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, RichProgressBar
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

from decoder.config import TrainConfig
from decoder.config.compose import to_dict
from decoder.config.identity import difference, with_effect
from decoder.host import Host
from decoder.report.results import is_finished
from decoder.training.metrics_file import MetricsFile
from decoder.training.tracking import Tracker
from decoder.utils.errors import TERMINATED
from decoder.utils.progress import Pace

NARROW = 256  # hidden width; two threads take 84 ms for a step of the pocket host, one takes 48
MONITOR = "val/id/loss"

log = logging.getLogger(__name__)


class StopsForGood(EarlyStopping):
    """Early stopping that a run goes on from: Lightning would train another epoch if it was killed between its stop and its result."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.should_stop = self.stopping_reason is not EarlyStoppingReason.NOT_STOPPED


class FitPace(Callback):
    """A line a minute on how far a fit is, where nobody sees a bar."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        steps = int(trainer.estimated_stepping_batches)
        self.pace = Pace(f"fit, steps of {trainer.max_epochs} epochs at most", steps, min(trainer.global_step, steps))

    def on_train_batch_end(self, *args: Any) -> None:
        self.pace.advance()


def build_trainer(cfg: TrainConfig, folder: Path, checkpoint: Path | None = None) -> Trainer:
    """Early stopping and checkpoints on val/id/loss; CSV always, W&B unless it is disabled; everything under `folder`.

    With a checkpoint to go on from, metrics.csv keeps what was logged up to it.
    """
    up_to = torch.load(checkpoint, weights_only=True)["epoch"] if checkpoint else None
    show_bars = cfg.trainer.progress == "rich" or (cfg.trainer.progress == "auto" and sys.stdout.isatty())
    callbacks: list[Callback] = [
        StopsForGood(MONITOR, mode="min", patience=cfg.optim.patience),
        ModelCheckpoint(folder / "checkpoints", monitor=MONITOR, mode="min", filename="best", enable_version_counter=False),
        # One of its own: `save_last` beside the best saves nothing in an epoch that is no better.
        ModelCheckpoint(folder / "checkpoints", filename="last", enable_version_counter=False),
    ]
    return Trainer(
        accelerator=cfg.trainer.accelerator,
        devices=cfg.trainer.devices,
        num_nodes=cfg.trainer.num_nodes,
        strategy=cfg.trainer.strategy,
        precision=cfg.trainer.precision,
        max_epochs=cfg.optim.epochs,
        gradient_clip_val=cfg.optim.clip,
        callbacks=[*callbacks, RichProgressBar(leave=False) if show_bars else FitPace()],
        logger=[MetricsFile(folder, up_to), *([Tracker(cfg, folder)] if cfg.wandb.mode != "disabled" else [])],
        default_root_dir=folder,
        log_every_n_steps=10,
        enable_progress_bar=show_bars,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        # The datamodule shares edits out itself: every edit is scored once, and batches do not depend on the number of devices.
        use_distributed_sampler=False,
    )


def checkpoint_to_go_on_from(cfg: TrainConfig, folder: Path) -> Path | None:
    """The last checkpoint of a run that was killed, if its settings were those of `cfg`; None starts anew.

    Raises:
        ValueError: `resume=true`, and the checkpoint is of other settings or cannot be read.
    """
    checkpoint = folder / "checkpoints" / "last.ckpt"
    if cfg.resume is False or not checkpoint.exists():
        return None
    try:
        before = with_effect(torch.load(checkpoint, weights_only=True)["hyper_parameters"])
    except Exception as error:  # whatever a damaged file makes torch raise
        if cfg.resume:
            raise ValueError(f"resume=true: {checkpoint} cannot be read ({type(error).__name__}); resume=false starts anew") from error
        log.warning("%s cannot be read (%s): starting anew", checkpoint, error)
        return None
    found = difference(before, with_effect(to_dict(cfg)))
    if cfg.resume and found:
        raise ValueError(
            f"resume=true: {checkpoint} was trained with {found[0]}, now it is {found[1]}. Give the settings it was started with, "
            "or start anew with resume=false"
        )
    return checkpoint if not found and (cfg.resume or not is_finished(folder)) else None


@contextmanager
def plain_interruptions() -> Iterator[None]:
    """Around what Lightning runs: its ways to end on a signal (code 1 on Ctrl-C, 0 on SIGTERM) become those of Python and the shell."""
    try:
        yield
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise SystemExit(TERMINATED if isinstance(stop, SIGTERMException) else stop.code) from None


def fit(trainer: Trainer, module: LightningModule, data: LightningDataModule, checkpoint: Path | None) -> None:
    """Fits, from a checkpoint if one is given.

    Raises:
        ValueError: the checkpoint has run more epochs than are asked for now, or is of another shape; or training diverged.
    """
    try:
        with plain_interruptions():
            trainer.fit(module, datamodule=data, ckpt_path=checkpoint)
    except (MisconfigurationException, RuntimeError) as error:
        if checkpoint is None:
            raise
        told = " ".join(str(error).split())
        raise ValueError(f"resume=true: {told} Use the settings, optim.epochs too, the run was started with, or start it anew") from error
    best = trainer.checkpoint_callback.best_model_score
    if best is None or not best.isfinite():
        raise ValueError(f"training diverged: {MONITOR} is {best}. Lower optim.lr_layer or optim.lr_prompt, or set optim.clip=1")


def read_splits(module: LightningModule) -> None:
    """Has the best checkpoint of a fit read validation and test edits; the module collects the readings and stays on its host's device."""
    trainer = module.trainer
    with plain_interruptions():
        trainer.test(module, datamodule=trainer.datamodule, ckpt_path=trainer.checkpoint_callback.best_model_path, verbose=False)
    module.to(module.decoder.host.device)


def fit_summary(trainer: Trainer) -> dict[str, Any]:
    """Epochs, why training stopped, and the best val/id/loss."""
    stopping, checkpoint = trainer.early_stopping_callback, trainer.checkpoint_callback
    return {
        "epochs": trainer.fit_loop.epoch_progress.current.processed,
        "stopping_reason": stopping.stopping_reason_message or "all epochs were run",
        "best_val_loss": float(checkpoint.best_model_score),
    }


@contextmanager
def threads_for(host: Host) -> Iterator[None]:
    """Inside the block a narrow host runs on one thread of the CPU: its products are over before a second thread has woken.

    A user's OMP_NUM_THREADS stays.
    """
    before = torch.get_num_threads()
    if host.hidden_size <= NARROW and host.device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
