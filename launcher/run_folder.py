"""The folder of a run: made, gone on with, or cleared for a new one."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import Timeout

from decoder.config.compose import to_yaml
from decoder.config.identity import editor_of
from decoder.report.results import is_finished
from decoder.utils.errors import UserError
from decoder.utils.files import alone, remove_unfinished, remove_whole, write_text
from decoder.utils.terminal import console, log_to
from launcher.grid import Run

NEXT = ".next"


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Inside the block this process alone writes to a run folder; another one that asks for it is refused.

    Raises:
        UserError: another process is writing there.
    """
    try:
        lock = alone(folder).acquire(timeout=0)
    except Timeout:
        raise UserError(f"{folder}: another process is doing this run. Wait for it, or give variant=NAME or runs=FOLDER") from None
    with lock:
        yield


def start(run: Run) -> Path:
    """Makes the run folder, says what will be done, and writes log lines and what the run says to its log.txt."""
    cfg, folder, replaces = run.config, run.folder, run.would_replace()
    folder.mkdir(parents=True, exist_ok=True)
    # A finished run keeps its own until the new one makes room for itself.
    end = NEXT if is_finished(folder) else ""
    write_text(folder / f"config.yaml{end}", to_yaml(cfg))
    write_text(folder / f"overrides.txt{end}", "\n".join(run.argv) + "\n")
    log_to(folder / "log.txt")
    out = console()
    out.print(
        f"Palimpsest: read {editor_of(cfg)} edits of layer {', '.join(map(str, cfg.edits.layers))} of {cfg.host.name}, "
        f"training layer {', '.join(map(str, cfg.decoder.layers))} behind {cfg.decoder.prompt_length} prompt vectors (seed {cfg.seed})\n"
        f"1 host   2 edits   3 fit   4 test, baselines, calibration   5 export\nRun folder: {folder}",
        highlight=False,
    )
    if replaces:
        there, now = replaces
        out.print(f"  replaces the finished run of other settings in {folder}: {there} there, {now} now", style="dim", markup=False)
    return folder


def begin(folder: Path, checkpoint: Path | None) -> None:
    """Says that a killed run goes on, or makes room for a new one."""
    if checkpoint:
        console().print(f"  goes on from {checkpoint}; resume=false starts anew", style="dim", highlight=False)
    else:
        clear(folder)
    for file in folder.glob(f"*{NEXT}"):
        file.replace(file.with_name(file.name.removesuffix(NEXT)))


def clear(folder: Path) -> None:
    """Removes what an earlier run of the same name left, so that a folder never mixes two runs."""
    # A run counts as finished until its result is gone, and then has no checkpoint to go on from.
    remove_whole(folder / "checkpoints")
    for name in ("result.json", "metrics.csv", "predictions.parquet", "report.html"):
        (folder / name).unlink(missing_ok=True)
    remove_whole(folder / "decoder")
    remove_unfinished(folder)
