"""A program that is killed loses nothing it had finished, and the same command goes on.

The commands are forked from a process that has imported the libraries, so that moments of killing fall on the work and not on imports.
"""

import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from datasets import load_from_disk
from forked import started
from safetensors.torch import load_file

from data.store.store import EditStore, partial_folder
from decoder.report.results import is_finished

SEED = 20
KILLS = 21
ORDER = ("edits", "edits", "edits", "fit", "fit", "export", "export")
ARGUMENTS = (
    "experiment=smoke", "optim.epochs=8", "wandb.mode=disabled", "trainer.accelerator=cpu", "edits.shard_size=16", "edits.key_tokens=5000",
    "edits.contexts=2", "decoder.beams=2", "decoder.max_object_tokens=3",
)  # fmt: skip


def train(*argv: str) -> None:
    import train

    os.environ["WANDB_MODE"] = "disabled"
    torch.set_num_threads(1)
    train.main(list(argv))


def kill(process: multiprocessing.Process) -> bool:
    """Kills a process; whether it was still at work."""
    if process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    return process.exitcode == -signal.SIGKILL


def run_paths(folder: Path) -> SimpleNamespace:
    run = folder / "runs" / "smoke" / "pocket" / "rome-e1-t1-s0"
    return SimpleNamespace(
        store=folder / "store",
        shards=partial_folder(folder / "store"),
        log=run / "log.txt",
        checkpoint=run / "checkpoints" / "last.ckpt",
        predictions=run / "predictions.parquet",
        decoder=run / "decoder",
        result=run / "result.json",
    )


@pytest.fixture(scope="module")
def command(cache) -> Callable[[Path], list[str]]:
    return lambda folder: [*ARGUMENTS, f"cache_dir={cache}", f"runs={folder / 'runs'}", f"store={folder / 'store'}"]


def shown(paths: SimpleNamespace) -> dict[str, float]:
    """When each shard that is there was made. Everything with its final name must be whole."""
    if paths.store.exists():
        EditStore(paths.store)  # compares every hash
    made = {}
    for shard in sorted(paths.shards.glob("shard-*")):
        json.loads((shard / "skipped.json").read_text())
        assert (shard / "state.json").exists() and len(load_from_disk(str(shard))) > 0
        made[shard.name] = shard.stat().st_mtime
    for checkpoint in paths.checkpoint.parent.glob("*.ckpt"):
        torch.load(checkpoint, weights_only=True)
    if paths.predictions.exists():
        pd.read_parquet(paths.predictions)
    if paths.result.exists():
        json.loads(paths.result.read_text())
    if paths.decoder.exists():
        json.loads((paths.decoder / "decoder_config.json").read_text())
        assert load_file(paths.decoder / "decoder_model.safetensors")
    return made


def epoch(checkpoint: Path) -> int:
    return torch.load(checkpoint, weights_only=True)["epoch"] if checkpoint.exists() else -1


def assert_same(paths: SimpleNamespace, reference: SimpleNamespace) -> None:
    pd.testing.assert_frame_equal(*(pd.read_parquet(p.predictions) for p in (paths, reference)))
    found, wanted = (json.loads(p.result.read_text()) for p in (paths, reference))
    for part in ("status", "edits", "fit", "validation", "test", "baselines", "calibration"):
        assert found[part] == wanted[part], part
    assert EditStore(paths.store).fingerprint == EditStore(reference.store).fingerprint
    ours, theirs = (load_file(p.decoder / "decoder_model.safetensors") for p in (paths, reference))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    curves, expected = (pd.read_csv(p.result.with_name("metrics.csv"))["val/id/loss"].dropna() for p in (paths, reference))
    assert curves.tolist() == expected.tolist()


def undisturbed(line: list[str], paths: SimpleNamespace) -> dict[str, float]:
    """Runs to the end; seconds from each stage's first file to the next one's."""
    process, seen = started(train, *line), {}
    marks = {"edits": paths.log, "fit": paths.store / "manifest.json", "export": paths.predictions}
    while process.is_alive():
        for stage, mark in marks.items():
            if stage not in seen and mark.exists():
                seen[stage] = time.monotonic()
        time.sleep(0.005)
    process.join()
    assert process.exitcode == 0 and len(seen) == 3
    ends = [seen["fit"], seen["export"], time.monotonic()]
    return {stage: end - seen[stage] for stage, end in zip(marks, ends, strict=True)}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_anywhere_the_same_command_goes_on_to_the_same_result(command, tmp_path):
    """At random moments while edits are made, while training, and from the tests to the end of the export, until `KILLS` are done."""
    rng = random.Random(SEED)
    reference = run_paths(tmp_path / "whole")
    duration = undisturbed(command(tmp_path / "whole"), reference)
    kills, chains = dict.fromkeys(duration, 0), 0
    while sum(kills.values()) < KILLS:
        chains += 1
        folder = tmp_path / f"killed-{chains}"
        paths, line = run_paths(folder), command(folder)
        marks = {"edits": paths.log, "fit": paths.store / "manifest.json", "export": paths.predictions}
        before, reached = {}, -1
        for stage in (*ORDER, None):
            begun = time.time()
            process = started(train, *line)
            if stage:
                while process.is_alive() and not (marks[stage].exists() and (stage != "export" or marks[stage].stat().st_mtime > begun)):
                    time.sleep(0.002)
                process.join(timeout=rng.uniform(0, duration[stage]))
                kills[stage] += (killed := kill(process))
                if killed and not is_finished(paths.result.parent):
                    after = shown(paths)
                    assert paths.store.exists() or before.items() <= after.items(), "a shard is made once"
                    assert epoch(paths.checkpoint) >= reached, "an epoch that was saved is not trained again"
                    before, reached = after, epoch(paths.checkpoint)
                    continue
            process.join()
            assert process.exitcode == 0 or is_finished(paths.result.parent)
            break
        assert_same(paths, reference)
        shutil.rmtree(folder)
    assert min(kills.values()) >= 3, kills
    print(f"{sum(kills.values())} kills in {chains} chains: {kills}; stages take {duration}")


def tiny_decoder():
    from tiny_hosts import POCKET, build_host

    from decoder.model import ObjectDecoder

    host = build_host(POCKET)
    return ObjectDecoder(host, edited_layers=[1], trained_layers=[2], prompt_MD=torch.zeros(3, host.hidden_size))


def export_forever(folder: Path) -> None:
    """Exports to one place again and again; config and weights tell which time it was."""
    from changed_decoders import FACTS

    from decoder.export.save import save_decoder

    torch.set_num_threads(1)
    decoder, number = tiny_decoder(), 0
    while True:
        number += 1
        torch.nn.init.constant_(decoder.prompt_MD, number)
        save_decoder(folder, decoder, FACTS | {"number": number})


def written_at(folder: Path) -> int:
    """0 while it is not there: the next one takes its place at any moment."""
    try:
        return folder.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


@pytest.mark.slow
def test_killed_while_exporting_a_decoder_is_whole_or_absent(tmp_path):
    from decoder.export.save import load_decoder

    rng, host, folder, numbers = random.Random(SEED), tiny_decoder().host, tmp_path / "decoder", []
    for _ in range(KILLS):
        process = started(export_forever, folder)
        seen = written_at(folder)
        while process.is_alive() and written_at(folder) in (0, seen):
            time.sleep(0.001)
        process.join(timeout=rng.uniform(0, 0.2))
        assert kill(process)
        if folder.exists():
            config = json.loads((folder / "decoder_config.json").read_text())
            assert (load_decoder(folder, host).prompt_MD == config["number"]).all()
            numbers.append(config["number"])
    assert len(numbers) > KILLS // 2 and len(set(numbers)) > 3
