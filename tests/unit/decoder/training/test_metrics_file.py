"""`metrics.csv` at any moment: as it was, or with what came."""

import csv
import io

import pandas as pd
import pytest

from decoder.report.results import read_history
from decoder.training.metrics_file import MetricsFile

FIRST = {"epoch": 0, "val/id/loss": 1.5}
TRAINING = {"epoch": 1, "train/loss": 2.5}


def log(logger, *rows):
    for step, row in enumerate(rows):
        logger.log_metrics(row, step=step)
        logger.save()


def test_columns_may_come_at_any_time(tmp_path):
    log(MetricsFile(tmp_path), FIRST, TRAINING, TRAINING | {"train/loss": 3.5}, {"epoch": 2, "test/id/loss": 0.5, "val/id/loss": 1.0})
    table = pd.read_csv(tmp_path / "metrics.csv")
    assert list(table) == ["epoch", "step", "test/id/loss", "train/loss", "val/id/loss"] and list(table["step"]) == [0, 1, 2, 3]
    history = read_history(tmp_path / "metrics.csv")
    assert history["val/id/loss"] == {0: 1.5, 2: 1.0} and history["train/loss"] == {1: 3.0}
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.csv"]


@pytest.mark.parametrize("moment", ["open", "write", "replace"])
def test_what_fails_while_a_column_is_added_leaves_what_was_there(tmp_path, monkeypatch, moment):
    logger = MetricsFile(tmp_path)
    log(logger, FIRST)
    before = (tmp_path / "metrics.csv").read_bytes()

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    place = {"open": "pathlib.Path.open", "write": "csv.DictWriter.writerows", "replace": "os.replace"}[moment]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(place, killed)
        log(logger, TRAINING)
    assert (tmp_path / "metrics.csv").read_bytes() == before
    logger.save()
    assert len(pd.read_csv(tmp_path / "metrics.csv")) == 2, "what was logged is not lost"


@pytest.mark.parametrize("written", [0.5, 1.0])
def test_a_row_that_was_half_written_or_was_there_already_stands_once(tmp_path, monkeypatch, written):
    logger = MetricsFile(tmp_path)
    log(logger, FIRST, TRAINING)
    write = csv.DictWriter.writerows

    def stopped(writer, rows):
        text = io.StringIO()
        write(csv.DictWriter(text, writer.fieldnames), rows)
        writer.writer.writerow([text.getvalue()[: int(written * len(text.getvalue()))]])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr("csv.DictWriter.writerows", stopped)
        log(logger, TRAINING | {"train/loss": 3.5})
    logger.save()  # as Lightning does when a run ends, however
    table = pd.read_csv(tmp_path / "metrics.csv")
    assert table["train/loss"].dropna().tolist() == [2.5, 3.5] and len(table) == 3


def test_a_run_that_goes_on_keeps_what_was_logged_up_to_its_checkpoint(tmp_path):
    log(MetricsFile(tmp_path), FIRST, TRAINING, {"epoch": 2, "val/id/loss": 0.5})
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("1,3,9")  # was being written
    before = (tmp_path / "metrics.csv").read_text()
    logger = MetricsFile(tmp_path, up_to_epoch=1)
    assert (tmp_path / "metrics.csv").read_text() == before, "nothing is taken away before something is there in its place"
    log(logger, {"epoch": 2, "val/id/loss": 0.25})
    history = read_history(tmp_path / "metrics.csv")
    assert history["val/id/loss"] == {0: 1.5, 2: 0.25} and history["train/loss"] == {1: 2.5}


def test_a_run_that_starts_anew_keeps_nothing(tmp_path):
    log(MetricsFile(tmp_path), FIRST)
    log(MetricsFile(tmp_path), TRAINING)
    assert list(read_history(tmp_path / "metrics.csv")) == ["step", "train/loss"]


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    from lightning.pytorch.utilities import rank_zero_only

    log(MetricsFile(tmp_path), FIRST)
    before = (tmp_path / "metrics.csv").read_bytes()
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    log(MetricsFile(tmp_path, up_to_epoch=0), TRAINING)
    assert (tmp_path / "metrics.csv").read_bytes() == before
