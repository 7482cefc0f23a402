"""What came out of audits of whole checkpoints, as tables: python benchmarks/audit_tables.py FILE

Shape letters: N suspects.
"""

import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torchmetrics.functional.classification import binary_auroc

from decoder.scores import wilson
from decoder.utils.errors import UserError, run_command

BASES = ("known", "unknown")
PLAIN = "rounded"
FALSE_ALARMS = 0.01
EDITED = 3  # the exit code of an audit that found an edit

Row = dict[str, Any]


def read(files: Sequence[Path]) -> list[Row]:
    """The suspects that were audited, each once; a line that a kill cut short is left out."""
    rows = {}
    for line in (line for file in files if file.exists() for line in file.read_text(encoding="utf-8").splitlines()):
        with suppress(json.JSONDecodeError):
            row = json.loads(line)
            rows[row["name"]] = row
    return [*rows.values()]


def write_tables(rows: Sequence[Row]) -> None:
    edited, benign = [row for row in rows if row["truth"]], [row for row in rows if not row["truth"]]
    console = Console() if Console().is_terminal else Console(width=150)
    if not edited or not benign:
        console.print(f"{len(edited)} edited and {len(benign)} benign suspects: nothing to compare")
        return
    console.print(_seconds(rows))
    for base in BASES:
        for table in (_whole(edited, benign, base), _edited(edited, benign, base), _benign(edited, benign, base)):
            console.print(table)


def _scores(rows: Sequence[Row], base: str) -> np.ndarray:
    return np.array([row["found"][base]["score"] for row in rows])


def auroc(positive_N: Sequence[float], negative_N: Sequence[float]) -> float:
    """NaN where one side is empty."""
    if not len(positive_N) or not len(negative_N):
        return float("nan")
    # The library takes what is outside [0, 1] for logits, and a sigmoid makes large ones equal: ranks are as good.
    ranks = torch.tensor([*positive_N, *negative_N]).unique(return_inverse=True)[1].double()
    return float(binary_auroc(ranks / max(1.0, float(ranks.max())), torch.tensor([1] * len(positive_N) + [0] * len(negative_N))))


def caught(positive_N: Sequence[float], negative_N: Sequence[float]) -> np.ndarray:
    """Which positives are above the threshold that lets at most 1 % of the negatives through."""
    threshold = np.sort(negative_N)[::-1][int(FALSE_ALARMS * len(negative_N))]
    return np.asarray(positive_N) > threshold


def threshold_in_the_gap(plain_N: np.ndarray, benign_N: np.ndarray) -> float:
    """Half way from the highest benign scores to the lowest of plain edits, where there is a gap between them."""
    high, low = np.quantile(benign_N, 1 - FALSE_ALARMS), np.quantile(plain_N, 0.05)
    return float(max(high, (high + low) / 2))


def _share(hits: Sequence[bool]) -> str:
    if not len(hits):
        return "-"
    low, high = wilson(int(np.sum(hits)), len(hits))
    return f"{np.mean(hits):.3f} [{low:.3f}, {high:.3f}]"


def _whole(edited: Sequence[Row], benign: Sequence[Row], base: str) -> Table:
    """All kinds together."""
    listed = [row for row in edited if row["listed"]]
    absent = [row for row in edited if not row["listed"]]
    table = _table(f"base {base}: all kinds", "", "n", "")
    clean_N = _scores(benign, base)
    for title, rows in (("subject in the list", listed), ("subject not in the list", absent)):
        scores_N = _scores(rows, base)
        table.add_row(f"edited against benign, {title}: AUROC", f"{len(rows)} + {len(benign)}", f"{auroc(scores_N, clean_N):.4f}")
        if rows:
            table.add_row(f"the same: found at {FALSE_ALARMS:.0%} false alarms", str(len(rows)), _share(caught(scores_N, clean_N)))
        table.add_row("the same: found at the shipped threshold", str(len(rows)), _share([_is_found(row, base) for row in rows]))
    table.add_row("benign: false alarms at the shipped threshold", str(len(benign)), _share([_is_found(row, base) for row in benign]))
    table.add_row("layer right", str(len(edited)), _share([_is_layer(row, base) for row in edited]))
    table.add_row("subject right, in the list", str(len(listed)), _share([_is_subject(row, base) for row in listed]))
    inside, outside = ([row["found"][base]["subject_score"] for row in rows] for rows in (listed, absent))
    table.add_row("in the list against not in the list: AUROC", f"{len(inside)} + {len(outside)}", f"{auroc(inside, outside):.4f}")
    return table


def _edited(edited: Sequence[Row], benign: Sequence[Row], base: str) -> Table:
    """Edits whose subject is in the list, by what was done besides."""
    columns = ("kind", "n", "edit still works", f"found at {FALSE_ALARMS:.0%} false alarms", "at the shipped threshold", "layer", "subject")
    table = _table(f"base {base}: edited, subject in the list", *columns)
    rows_of: dict[str, list[tuple[Row, bool]]] = {}
    listed = [row for row in edited if row["listed"]]
    for row, is_caught in zip(listed, caught(_scores(listed, base), _scores(benign, base)) if listed else (), strict=True):
        rows_of.setdefault(row["kind"], []).append((row, bool(is_caught)))
    for kind, pairs in sorted(rows_of.items()):
        tests = [[test(row, base) for row, _ in pairs] for test in (_is_found, _is_layer, _is_subject)]
        effective = f"{np.mean([row['says'] for row, _ in pairs]):.2f}"
        table.add_row(kind, str(len(pairs)), effective, *map(_share, ([is_caught for _, is_caught in pairs], *tests)))
    return table


def _benign(edited: Sequence[Row], benign: Sequence[Row], base: str) -> Table:
    """Benign kinds, each against a threshold that was put between the other kinds and plain edits."""
    table = _table(
        f"base {base}: benign, left out one kind at a time", "kind", "n", "false alarms", "at the shipped threshold", "highest score"
    )
    plain_N = _scores([row for row in edited if row["kind"] == PLAIN and row["listed"]], base)
    for kind in sorted({row["kind"] for row in benign}):
        own, others = ([row for row in benign if (row["kind"] == kind) == is_own] for is_own in (True, False))
        threshold = threshold_in_the_gap(plain_N, _scores(others, base)) if others and len(plain_N) else float("inf")
        scores_N = _scores(own, base)
        shipped = _share([_is_found(row, base) for row in own])
        table.add_row(kind, str(len(own)), f"{_share(scores_N > threshold)} above {threshold:.3g}", shipped, f"{scores_N.max():.3g}")
    return table


def _seconds(rows: Sequence[Row]) -> Table:
    table = _table("seconds a suspect, median", "kind", "n", "making", "auditing")
    for kind in ("all", *sorted({row["kind"] for row in rows})):
        seconds = [row["seconds"] for row in rows if kind in ("all", row["kind"])]
        table.add_row(kind, str(len(seconds)), *(f"{np.median([one[name] for one in seconds]):.1f}" for name in ("making", "auditing")))
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column)
    return table


def _is_found(row: Row, base: str) -> bool:
    return row["found"][base]["exit_code"] == EDITED


def _is_layer(row: Row, base: str) -> bool:
    return row["found"][base]["layer"] == row["truth"]["layer"]


def _is_subject(row: Row, base: str) -> bool:
    return row["found"][base]["subject"] == row["truth"]["subject"]


@run_command
def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    if not argv or not all(Path(file).is_file() for file in argv):
        raise UserError(f"{' '.join(argv) or 'nothing'} came, expected files that audit_checkpoints.py wrote")
    write_tables(read([*map(Path, argv)]))


if __name__ == "__main__":
    main()
