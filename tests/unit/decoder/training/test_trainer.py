"""Going on with a fit: when the same command does so, and that a fit which had stopped stays stopped."""

import dataclasses
import json
import signal
from types import SimpleNamespace

import pytest
import torch

from decoder.config import SplitsConfig, TrainConfig
from decoder.config.compose import to_dict
from decoder.training.module import DecoderModule
from decoder.training.trainer import build_trainer, checkpoint_to_go_on_from, fit, fit_summary
from decoder.utils.errors import run_command

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
    ],
)
def test_the_same_command_goes_on_with_what_was_killed(tmp_path, status, change, resume, goes_on):
    checkpoint = left_behind(tmp_path, TrainConfig(), status)
    cfg = dataclasses.replace(TrainConfig(), **change, resume=resume)
    assert checkpoint_to_go_on_from(cfg, tmp_path) == (checkpoint if goes_on else None)


def test_going_on_with_other_settings_is_refused_by_name(tmp_path):
    left_behind(tmp_path, TrainConfig())
    cfg = dataclasses.replace(TrainConfig(), splits=SplitsConfig(seed=1), resume=True)
    with pytest.raises(ValueError, match="trained with splits.seed: 0, now it is splits.seed: 1"):
        checkpoint_to_go_on_from(cfg, tmp_path)


def test_a_checkpoint_cut_short_is_not_gone_on_from(tmp_path):
    checkpoint = left_behind(tmp_path, TrainConfig())
    checkpoint.write_bytes(checkpoint.read_bytes()[:300])
    assert checkpoint_to_go_on_from(TrainConfig(), tmp_path) is None
    with pytest.raises(ValueError, match="last.ckpt cannot be read.*resume=false"):
        checkpoint_to_go_on_from(TrainConfig(resume=True), tmp_path)


@pytest.mark.parametrize(
    ("trained", "asked", "steps"), [(0, None, 100), ([2, 0], None, 100), (1, None, 0), (2, None, 0), (0, 0, 0), (1, 7, 7)]
)
def test_layers_before_the_edit_are_warmed_up(fact_host, trained, asked, steps):
    cfg = TrainConfig()
    cfg.edits.layer, cfg.decoder.layer, cfg.optim.warmup_steps = 1, trained, asked
    module = DecoderModule(cfg, fact_host)
    module.trainer = SimpleNamespace(estimated_stepping_batches=1000)
    scheduler = module.configure_optimizers()["lr_scheduler"]["scheduler"]
    factors = [scheduler.lr_lambdas[0](step) for step in range(1000)]
    assert factors.index(1.0) == max(0, steps - 1)
    assert factors[0] == pytest.approx(1 / max(1, steps)) and factors[-1] < 0.01


def test_training_that_diverges_is_no_result(opened, fact_host, tmp_path):
    edits = opened(max_train=64)
    cfg = edits.cfg
    cfg.decoder.prompt_length, cfg.trainer.accelerator, cfg.wandb.mode, cfg.trainer.progress = 4, "cpu", "disabled", "none"
    cfg.optim.lr_layer, cfg.optim.lr_prompt, cfg.optim.clip, cfg.optim.gain_spread = 1e30, 1e30, None, 0.0
    with pytest.raises(ValueError, match="training diverged: val/id/loss is (nan|inf)"):
        fit(build_trainer(cfg, tmp_path, None), DecoderModule(cfg, fact_host, hparams=to_dict(cfg)), edits, None)


@pytest.mark.parametrize(("sent", "code", "said"), [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "terminated")])
def test_a_signal_in_a_fit_ends_in_one_line_and_its_own_code(opened, fact_host, tmp_path, capsys, sent, code, said):
    edits = opened(max_train=64)
    cfg = edits.cfg
    cfg.decoder.prompt_length, cfg.trainer.accelerator, cfg.wandb.mode, cfg.trainer.progress = 4, "cpu", "disabled", "none"
    cfg.optim.gain_spread = 0.0
    module = DecoderModule(cfg, fact_host, hparams=to_dict(cfg))
    module.on_train_epoch_start = lambda: signal.raise_signal(getattr(signal, sent))
    command = run_command(lambda: fit(build_trainer(cfg, tmp_path, None), module, edits, None))
    with pytest.raises(SystemExit) as stop:
        command()
    assert stop.value.code == code and said in capsys.readouterr().err


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
