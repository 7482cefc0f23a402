"""`metrics.csv` of a run: what Lightning logs, of which a kill leaves no more missing than the row that was being written."""

import csv
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from decoder.utils.files import whole_file

Row = dict[str, Any]


class MetricsFile(Logger):
    """A table with a row for each time something was logged, and a column for each name.

    Rows are appended. Lightning's own logger writes the table anew in its place when a column is new, and takes away what is there when
    a run goes on: a kill at that moment takes all of it.

    Args:
        folder: of the run; `metrics.csv` is written there.
        up_to_epoch: what was logged up to this epoch is kept, where there is a file; None keeps nothing.
    """

    name, version = "", ""

    def __init__(self, folder: Path, up_to_epoch: int | None = None) -> None:
        super().__init__()
        self.file, self.columns = folder / "metrics.csv", []
        self.rows = [] if up_to_epoch is None or rank_zero_only.rank else _kept(self.file, up_to_epoch)
        self.written = 0  # of the rows, in the file, each once and whole

    @property
    def save_dir(self) -> str:
        return str(self.file.parent)

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append({**metrics, "step": step})

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """A run has its `config.yaml`."""

    @rank_zero_only
    def save(self) -> None:
        new = self.rows[self.written :]
        if not new:
            return
        columns = sorted(set(self.columns).union(*new))
        appends = self.written and columns == self.columns
        # Until it is through: after half a row, or rows that may be there, all are written anew.
        self.columns, self.written = columns, 0
        if appends:
            with self.file.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, columns).writerows(new)
        else:
            with whole_file(self.file) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, columns)
                writer.writeheader()
                writer.writerows(self.rows)
        self.written = len(self.rows)


def _kept(path: Path, up_to_epoch: int) -> list[Row]:
    if not path.exists():
        return []
    # A last line without its end was being written when the run was killed.
    whole = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
    rows = [{name: text for name, text in row.items() if text} for row in csv.DictReader(whole)]
    return [row for row in rows if row.get("epoch", "").isdigit() and int(row["epoch"]) <= up_to_epoch]
