"""Train a weight-to-object decoder: facts -> edits -> store -> decoder -> scores -> exported decoder.

python train.py                              the main job, on the pocket host
python train.py seed=1                       another decoder on the same host, edits and splits
python train.py -m decoder.layer=0,1,2,3     a grid of runs
python train.py --help                       every setting
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from decoder.config import TrainConfig
from decoder.config.compose import to_dict, to_yaml
from decoder.report.results import is_finished, write_result
from decoder.utils.errors import lasting, run_command
from launcher.grid import Run, read_grid

if TYPE_CHECKING:
    from data.bench import Bench


@run_command
def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    if argv == ["--worker"]:
        from launcher.workers import serve

        return serve(run)
    grid = read_grid(argv)
    if grid.is_one_run:
        run(grid.runs[0])
    else:
        from launcher.grid import refuse_several
        from launcher.launch import launch

        refuse_several(grid.runs)
        launch(grid, run, Path(__file__))


def run(run: Run, bench: "Bench | None" = None) -> dict:
    """One run with everything around it; returns what is in its result.json. A bench holds what earlier runs left to share."""
    # The command line is good; only now import what takes seconds.
    with lasting():
        from decoder import scores as result
        from decoder.training.distributed import is_first
        from launcher import summary as session

    cfg = run.config
    if not is_first(cfg):
        # One of several processes of this run: it fits and scores its share, and the first one speaks and writes.
        with session.silence():
            return train(cfg, run.folder, bench)
    replaces = run.would_replace()
    folder = session.start(cfg, to_yaml(cfg), run.argv)
    if replaces:
        there, now = replaces
        session.console().print(
            f"  replaces the finished run of other settings in {folder}: {there} there, {now} now", style="dim", markup=False
        )
    try:
        scores = train(cfg, folder, bench)
        session.finish(scores, folder)
    except Exception as error:
        # What went wrong before anything was replaced says nothing about the finished run that lies there.
        if not is_finished(folder):
            write_result(folder, result.failed(to_dict(cfg), error))
        raise
    return scores


def train(cfg: TrainConfig, folder: Path, bench: "Bench | None" = None) -> dict:
    """One run from facts to exported decoder; returns what becomes result.json, in the first of several processes."""
    with lasting():
        from lightning import seed_everything

        from data.bench import Bench
        from decoder import scores as result
        from decoder.config.identity import trained_layers
        from decoder.export.save import save_decoder
        from decoder.training.distributed import is_first
        from decoder.training.module import DecoderModule
        from decoder.training.tracking import describe_run, log_validation
        from decoder.training.trainer import build_trainer, checkpoint_to_go_on_from, fit, fit_summary, log_to_wandb, plain_interruptions
        from launcher import summary as session

    clock = session.Clock()
    with clock("host"):
        bench = bench or Bench()
        host = bench.host(cfg)
        for layer in trained_layers(cfg):
            host.check_layer(layer, "decoder.layer")
    with clock("edits"):
        edits = bench.edits(cfg)
    session.describe_edits(edits)

    with clock("fit"), session.threads_for(host):
        checkpoint = checkpoint_to_go_on_from(cfg, folder)
        if is_first(cfg):
            session.begin(folder, checkpoint)
        seed_everything(cfg.seed, workers=True, verbose=False)
        module = DecoderModule(cfg, host, hparams=to_dict(cfg))
        start = module.start_decoder()
        trainer = build_trainer(cfg, folder, checkpoint)
        if is_first(cfg):
            describe_run(trainer, cfg, host.layers)
        fit(trainer, module, edits, checkpoint)

    with clock("test"), session.threads_for(host):
        with plain_interruptions():
            trainer.test(module, datamodule=edits, ckpt_path=trainer.checkpoint_callback.best_model_path, verbose=False)
        if not is_first(cfg):
            return {}
        module.to(host.device)
        readings = session.save_predictions(module.readings, edits.table, folder)
        scores = result.test_scores(readings)
        baselines = bench.baselines(cfg, start.to(host.device))
        calibration = session.calibration(cfg, module.decoder, edits, readings)

    summary = {
        "status": "ok",
        "config": to_dict(cfg),
        "host": {"name": host.name, "family": host.model_type, "fingerprint": host.fingerprint, "layers": host.layers},
        "edited_layer": cfg.edits.layer,
        "trained_layer": cfg.decoder.layer,
        "seed": cfg.seed,
        "edits": result.edit_summary(edits.table, edits.store.manifest),
        "fit": fit_summary(trainer),
        "validation": result.validation_scores(readings),
        "test": scores,
        "baselines": baselines,
        "calibration": calibration,
        "controls": {"shuffled_labels": result.shuffled_labels(readings), "clean_matrix": calibration["clean_matrix"]},
        "decoder": "decoder",
    }
    save_decoder(folder / "decoder", module.decoder, session.export_facts(cfg, edits, summary))
    log_validation(trainer, summary)
    log_to_wandb(trainer, summary, readings, folder / "decoder" if cfg.wandb.log_decoder else None)
    return summary | {"seconds": clock.seconds(), "versions": result.versions()}


if __name__ == "__main__":
    main()
