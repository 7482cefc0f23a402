"""Train a weight-to-object decoder: facts -> edits -> store -> decoder -> scores -> exported decoder.

python train.py                      the main job, on the pocket host
python train.py seed=1               another decoder on the same host, edits and splits
python train.py --help               every setting
"""

import sys
from pathlib import Path

from decoder.compose import compose, to_dict, to_yaml
from decoder.config import TrainConfig
from decoder.errors import run_command


@run_command
def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    cfg = compose(TrainConfig, "train", argv)
    # The command line is good; only now import what takes seconds.
    from decoder import result, session

    folder = session.start(cfg, to_yaml(cfg), argv)
    try:
        session.finish(train(cfg, folder), folder)
    except BaseException as error:
        # What went wrong before anything was replaced says nothing about the finished run that lies there.
        if not session.is_finished(folder):
            session.write_result(folder, result.failed(to_dict(cfg), error))
        raise


def train(cfg: TrainConfig, folder: Path) -> dict:
    """One run from facts to exported decoder; returns what becomes result.json."""
    from lightning import seed_everything

    from data.datamodule import EditDataModule
    from data.hosts import open_host
    from decoder import result, session
    from decoder.export import save_decoder
    from decoder.module import DecoderModule
    from decoder.paths import trained_layers
    from decoder.training import build_trainer, fit_summary, log_to_wandb

    clock = session.Clock()
    with clock("host"):
        host = open_host(cfg)
        for layer in trained_layers(cfg):
            host.check_layer(layer, "decoder.layer")
    with clock("edits"):
        edits = EditDataModule(cfg, host)
        edits.prepare_data()
        edits.setup()
    session.describe_edits(edits)

    if not cfg.resume:
        session.clear(folder)
    with clock("fit"):
        seed_everything(cfg.seed, workers=True, verbose=False)
        module = DecoderModule(cfg, host, hparams=to_dict(cfg))
        start = module.start_decoder()
        trainer = build_trainer(cfg, folder)
        trainer.fit(module, datamodule=edits, ckpt_path="last" if cfg.resume else None)
    fit = fit_summary(trainer)

    with clock("test"):
        trainer.test(module, datamodule=edits, ckpt_path="best", verbose=False)
        module.to(host.device)
        readings = session.save_predictions(module.readings, edits.table, folder)
        scores = result.test_scores(readings)
        baselines = session.baselines(cfg, host, edits, start)
        calibration = session.calibration(cfg, module.decoder, edits, readings)

    summary = {
        "status": "ok",
        "config": to_dict(cfg),
        "host": {"name": host.name, "family": host.model_type, "fingerprint": host.fingerprint, "layers": host.layers},
        "edited_layer": cfg.edits.layer,
        "trained_layer": cfg.decoder.layer,
        "seed": cfg.seed,
        "edits": result.edit_summary(edits.table, cfg.edits.ridge, edits.store.manifest["requests"]["count"]),
        "fit": fit,
        "validation": result.validation_scores(readings),
        "test": scores,
        "baselines": baselines,
        "calibration": calibration,
        "controls": {"shuffled_labels": result.shuffled_labels(readings), "clean_matrix": calibration["clean_matrix"]},
        "decoder": "decoder",
    }
    save_decoder(folder / "decoder", module.decoder, session.export_facts(cfg, edits, summary))
    log_to_wandb(trainer, summary, readings, folder / "decoder" if cfg.wandb.log_decoder else None)
    return summary | {"seconds": clock.seconds(), "versions": result.versions()}


if __name__ == "__main__":
    main()
