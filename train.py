"""Train a weight-to-object decoder: facts -> edits -> store -> decoder -> scores -> exported decoder.

python train.py                              the main job, on the pocket host
python train.py seed=1                       another decoder on the same host, edits and splits
python train.py -m decoder.layer=0,1,2,3     a grid of runs
python train.py experiment=sequential        facts one after the other until a host breaks: `python -m data.sequential`
python train.py --help                       every setting
"""

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decoder.utils.errors import is_interruption, lasting, line_of, run_command, starting

with starting():
    from decoder.config import TrainConfig
    from decoder.config.compose import to_dict
    from decoder.config.grids import plants_chains
    from decoder.training.distributed import is_first
    from launcher.attempt import lost
    from launcher.grid import Run, read_grid

if TYPE_CHECKING:
    from data.datamodule import EditDataModule
    from data.workspace import Workspace
    from decoder.host import Host
    from decoder.training.module import DecoderModule
    from launcher.summary import Clock, Findings

log = logging.getLogger(__name__)


@run_command
def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    if argv == ["--worker"]:
        from launcher.workers import serve

        return serve(run)
    if plants_chains(argv):
        from data.sequential.__main__ import plant_all

        return plant_all(argv)
    grid = read_grid(argv)
    if grid.is_one_run:
        run(grid.runs[0])
    else:
        from launcher.launch import launch

        launch(grid, run, Path(__file__))


def run(run: Run, workspace: "Workspace | None" = None) -> dict[str, Any]:
    """One run with everything around it; returns what is in its result.json. A workspace holds what earlier runs left to share."""
    from decoder.utils.terminal import quiet, silence
    from launcher import run_folder

    if not is_first(run.config):
        # One of several processes of this run: it fits and scores its share, and the first one speaks and writes.
        with silence():
            return train(run.config, run.folder, workspace)
    with run_folder.held(run.folder):
        # What it will do is said before what takes seconds is imported.
        folder = run_folder.start(run)
        quiet()
        try:
            result = train(run.config, folder, workspace)
            from launcher.summary import finish

            finish(result, folder)
        except BaseException as error:
            log.error(line_of(error))
            if not is_interruption(error):
                lost(run, error)
            raise
        return result


def train(cfg: TrainConfig, folder: Path, workspace: "Workspace | None" = None) -> dict[str, Any]:
    """One run from facts to exported decoder, in five stages; returns its result, empty in all but the first of several processes."""
    with lasting():
        from data.workspace import Workspace
        from decoder.training.trainer import threads_for
        from launcher.estimate import announce
        from launcher.summary import Clock, describe_edits

    clock, workspace = Clock(), workspace or Workspace()
    with clock("host"):
        host = workspace.host(cfg)
        for layer in cfg.decoder.layers:
            host.check_layer(layer, "decoder.layer")
    if not cfg.host.is_pocket and is_first(cfg):
        announce(cfg, host)
    with clock("edits"):
        datamodule = workspace.edits(cfg)
    describe_edits(datamodule)
    with clock("fit"), threads_for(host):
        module = fit(cfg, folder, host, datamodule)
    with clock("test"), threads_for(host):
        found = test(cfg, folder, module, workspace)
    return publish(cfg, folder, module, found, clock) if found else {}


def fit(cfg: TrainConfig, folder: Path, host: "Host", datamodule: "EditDataModule") -> "DecoderModule":
    """Trains the prompt and one layer of the host, from where a killed run of these settings was."""
    from lightning import seed_everything

    from decoder.training import trainer as training
    from decoder.training.module import DecoderModule
    from decoder.training.tracking import describe_run
    from launcher import run_folder

    checkpoint = training.checkpoint_to_go_on_from(cfg, folder)
    seed_everything(cfg.seed, workers=True, verbose=False)
    module = DecoderModule(cfg, host, hparams=to_dict(cfg))
    trainer = training.build_trainer(cfg, folder, checkpoint)
    if is_first(cfg):
        # A finished run goes only now that Lightning has taken the settings.
        run_folder.begin(folder, checkpoint)
        describe_run(trainer, cfg, host.layers)
    training.fit(trainer, module, datamodule, checkpoint)
    return module


def test(cfg: TrainConfig, folder: Path, module: "DecoderModule", workspace: "Workspace") -> "Findings | None":
    """Reads validation and test edits with the best checkpoint; the first process also scores the baselines and calibrates."""
    from decoder.training.trainer import read_splits
    from launcher.summary import Findings, calibration, nothing_planted, save_predictions

    read_splits(module)
    if not is_first(cfg):
        return None
    readings = save_predictions(module, folder)
    return Findings(readings, workspace.baselines(cfg), calibration(module, readings), nothing_planted(module, readings))


def publish(cfg: TrainConfig, folder: Path, module: "DecoderModule", found: "Findings", clock: "Clock") -> dict[str, Any]:
    """Exports the decoder with its scores, logs them, and returns what becomes result.json."""
    from decoder.export import save_decoder
    from decoder.scores import versions
    from decoder.training.tracking import log_result
    from launcher.summary import export_facts, summarise

    result = summarise(module, found)
    save_decoder(folder / "decoder", module.decoder, export_facts(module, result))
    result |= log_result(module.trainer, result, found.readings, folder / "decoder" if cfg.wandb.log_decoder else None)
    return result | {"seconds": clock.seconds(), "versions": versions()}


if __name__ == "__main__":
    main()
