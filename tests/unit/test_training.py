"""Going on with a fit: when the same command does so, and that a fit which had stopped stays stopped."""

import dataclasses
import json

import pytest
import torch

from decoder.compose import to_dict
from decoder.config import TrainConfig
from decoder.module import DecoderModule
from decoder.training import build_trainer, checkpoint_to_go_on_from, fit, fit_summary

pytestmark = pytest.mark.usefixtures("drawn_edits", "alive")


def left_behind(folder, cfg, status=None):
    """What a run leaves: a checkpoint, and a result if it came to its end."""
    (folder / "checkpoints").mkdir(parents=True)
    torch.save({"hyper_parameters": to_dict(cfg), "epoch": 3}, folder / "checkpoints" / "last.ckpt")
    if status:
        (folder / "result.json").write_text(json.dumps({"schema": 1, "status": status}))
    return folder / "checkpoints" / "last.ckpt"


@pytest.mark.parametrize(
    ("status", "change", "resume", "goes_on"),
    [
        (None, {}, None, True),
        ("failed", {}, None, True),
        ("ok", {}, None, False),
        (None, {"seed": 5}, None, False),
        (None, {"runs": "elsewhere", "cache_dir": "there"}, None, True),
        (None, {}, False, False),
        ("ok", {}, True, True),
        (None, {"seed": 5}, True, True),
    ],
)
def test_the_same_command_goes_on_with_what_was_killed(tmp_path, status, change, resume, goes_on):
    checkpoint = left_behind(tmp_path, TrainConfig(), status)
    cfg = dataclasses.replace(TrainConfig(), **change, resume=resume)
    assert checkpoint_to_go_on_from(cfg, tmp_path) == (checkpoint if goes_on else None)


@pytest.mark.parametrize("resume", [None, True, False])
def test_without_a_checkpoint_a_run_starts(tmp_path, resume):
    assert checkpoint_to_go_on_from(dataclasses.replace(TrainConfig(), resume=resume), tmp_path) is None


def test_a_fit_that_had_stopped_stays_stopped(opened, fact_host, tmp_path):
    edits = opened(max_train=64)
    cfg = edits.cfg
    cfg.decoder.prompt_length, cfg.trainer.accelerator, cfg.wandb.mode, cfg.trainer.progress = 4, "cpu", "disabled", "none"
    cfg.optim.patience, cfg.optim.lr_layer, cfg.optim.lr_prompt, cfg.optim.gain_spread = 1, 0.0, 0.0, 0.0
    summaries = []
    for checkpoint in (None, tmp_path / "checkpoints" / "last.ckpt"):
        trainer = build_trainer(cfg, tmp_path, checkpoint)
        fit(trainer, DecoderModule(cfg, fact_host, hparams=to_dict(cfg)), edits, checkpoint)
        summaries.append(fit_summary(trainer))
        saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
        assert saved["epoch"] == 1, "an epoch is saved also where it is no better"
    assert summaries[0]["epochs"] == 2 and "did not improve" in summaries[0]["stopping_reason"]
    assert summaries[1] == summaries[0]
