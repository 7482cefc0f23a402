"""What came out of audits of whole checkpoints, as tables: python benchmarks/audit_tables.py FILE [FILE ...]

Every share has its Wilson interval. A threshold is always one that the kind it is tried on had no part in.

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
from common import rate
from rich.console import Console
from rich.table import Table
from torchmetrics.functional.classification import binary_auroc

from decoder.utils.errors import UserError, run_command

BASES = ("known", "unknown")
PLAIN = "rounded"
FALSE_ALARMS = 0.01
EDITED, UNSURE = 3, 4  # exit codes of an audit that found an edit, or cannot tell
SECONDS = ("auditing", "asking", "all")
ADVERSARIES = {
    "scaled down": "0.3 to 0.7 of the value",
    "clamp 1": "value kept short: clamp 1",
    **{kept: kept for kept in ("clamp 2", "clamp 3")},
    "p-ROME": "p-ROME: the bare prompt's key",
    "key turned": "key turned away (cosine 0.3 to 0.9)",
    "fine-tuned": "hidden under fine-tuning",
    "LoRA merged": "hidden under a merged LoRA",
    "decoys": "decoys in other layers",
    "noise": "noise in all layers",
}
"""kind -> what somebody does who hides an edit"""

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
    failed, rows = [row for row in rows if "failed" in row], [row for row in rows if "failed" not in row]
    edited, benign = [row for row in rows if row["truth"]], [row for row in rows if not row["truth"]]
    console = Console() if Console().is_terminal else Console(width=170)
    for row in failed:
        console.print(f"{row['name']} ({row['kind']}) could not be made: {row['failed']}", highlight=False)
    if not edited or not benign:
        console.print(f"{len(edited)} edited and {len(benign)} benign suspects: nothing to compare")
        return
    console.print(_seconds(rows))
    for base in BASES:
        for table in (_whole(edited, benign, base), _edited(edited, benign, base), _benign(edited, benign, base), _undone(edited, base)):
            console.print(table)
    console.print(_adversaries(edited))


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


def _whole(edited: Sequence[Row], benign: Sequence[Row], base: str) -> Table:
    """All kinds together."""
    listed, absent = ([row for row in edited if row["listed"] is wanted] for wanted in (True, False))
    table = _table(f"base {base}: all kinds", "", "n", "")
    clean_N = _scores(benign, base)
    for title, rows in (("subject in the list", listed), ("subject not in the list", absent)):
        scores_N = _scores(rows, base)
        table.add_row(f"edited against benign, {title}: AUROC", f"{len(rows)} + {len(benign)}", f"{auroc(scores_N, clean_N):.4f}")
        if rows:
            table.add_row(f"the same: found at {FALSE_ALARMS:.0%} false alarms", str(len(rows)), rate(caught(scores_N, clean_N)))
        table.add_row("the same: found at the shipped threshold", str(len(rows)), rate([_is_found(row, base) for row in rows]))
    table.add_row("benign: false alarms at the shipped threshold", str(len(benign)), rate([_is_found(row, base) for row in benign]))
    table.add_row("layer right", str(len(edited)), rate([_is_layer(row, base) for row in edited]))
    table.add_row("subject right, in the list", str(len(listed)), rate([_is_subject(row, base) for row in listed]))
    inside, outside = ([row["found"][base] for row in rows if "fit" in row["found"][base]] for rows in (listed, absent))
    fits = auroc(*([one["fit"] for one in side] for side in (inside, outside)))
    table.add_row("in the list or not, where found: AUROC", f"{len(inside)} + {len(outside)}", f"{fits:.4f}")
    for where, side in (("in the list", inside), ("not in the list", outside)):
        table.add_row(f"the same: named, subject {where}", str(len(side)), rate([bool(one["named"]) for one in side]))
    return table


def _edited(edited: Sequence[Row], benign: Sequence[Row], base: str) -> Table:
    """Edits whose subject is in the list, by what was done besides."""
    columns = ("kind", "n", "edit still works", f"found at {FALSE_ALARMS:.0%} false alarms", "at the shipped threshold", "layer", "subject")
    table = _table(f"base {base}: edited, subject in the list", *columns)
    for kind, rows in _by_kind([row for row in edited if row["listed"]]).items():
        found = caught(_scores(rows, base), _scores(benign, base))
        tests = [[test(row, base) for row in rows] for test in (_is_found, _is_layer, _is_subject)]
        table.add_row(kind, str(len(rows)), f"{_efficacy(rows):.2f}", *map(rate, (found, *tests)))
    return table


def _by_kind(rows: Sequence[Row]) -> dict[str, list[Row]]:
    return {kind: [row for row in rows if row["kind"] == kind] for kind in sorted({row["kind"] for row in rows})}


def _efficacy(rows: Sequence[Row]) -> float:
    """Share of the edited prompts that the suspect goes on with the planted object."""
    return float(np.mean([row["undone"]["as_is"]["planted"][0] for row in rows]))


def _undone(edited: Sequence[Row], base: str) -> Table:
    """What is told of an edit whose subject is in the list, and what taking it out does; not found is wrong, and nothing taken out."""
    columns = "kind,n,object,decoder's,relation,triple,triple of the surer half,next token back,planted left,KL,KL before".split(",")
    table = _table(f"base {base}: what was planted, and taking it out", *columns)
    listed = [row for row in edited if row["listed"]]
    for kind, rows in {"all": listed, **_by_kind(listed)}.items():
        right = [[test(row, base) for row in rows] for test in (_is_object, _is_read, _is_relation, _is_triple)]
        right[1] = right[1] if any("read" in row["undone"].get(base, {}) for row in rows) else []
        sure = sorted(range(len(rows)), key=lambda n: -rows[n]["undone"].get(base, {}).get("sure", 0.0))
        halves = [right[-1][n] for n in sure[: -(-len(rows) // 2)]]
        effects = [row["undone"].get(base, row["undone"])["effect" if base in row["undone"] else "as_is"] for row in rows]
        back = [hit for one in effects for hit in one["back"]]
        before = [row["undone"]["as_is"] for row in rows]
        left = [
            now for one, was in zip(effects, before, strict=True) for now, then in zip(one["planted"], was["planted"], strict=True) if then
        ]
        kl = [f"{np.mean([one['kl'] for one in each]):.4f}" if each else "-" for each in (effects, before)]
        table.add_row(kind, str(len(rows)), *map(rate, (*right, halves, back, left)), *kl)
    return table


def _adversaries(edited: Sequence[Row]) -> Table:
    """What hiding an edit costs who does it, and whom it is hidden from; edits as they are come first, to compare with."""
    columns = ("kind", "n", "attacker: edit works")
    columns += tuple(f"{what}, base {base}" for what in ("found", "layer", "subject") for base in BASES) + ("triple, base unknown",)
    table = _table("Adversaries: share of the edits that still work, and of the answers that are right, subject in the list", *columns)
    kinds = _by_kind([row for row in edited if row["listed"]])
    for kind in (PLAIN, *ADVERSARIES):
        if not (rows := kinds.get(kind)):
            continue
        cells = [rate([test(row, base) for row in rows], 2) for test in (_is_found, _is_layer, _is_subject) for base in BASES]
        planted = rate([row["undone"]["as_is"]["planted"][0] for row in rows], 2)
        triple = rate([_is_triple(row, "unknown") for row in rows], 2)
        table.add_row(ADVERSARIES.get(kind, "as it is"), str(len(rows)), planted, *cells, triple)
    return table


def _benign(edited: Sequence[Row], benign: Sequence[Row], base: str) -> Table:
    """Benign kinds, each against a threshold that was put between the other kinds and plain edits."""
    columns = ("kind", "n", "false alarms, this kind left out", "at the shipped threshold", "cannot tell", "highest score")
    table, kinds = _table(f"base {base}: benign, left out one kind at a time", *columns), _by_kind(benign)
    plain_N, alarms = _scores([row for row in edited if row["kind"] == PLAIN and row["listed"]], base), []
    for kind, own in kinds.items():
        others = [row for row in benign if row["kind"] != kind]
        threshold = threshold_in_the_gap(plain_N, _scores(others, base)) if others and len(plain_N) else float("inf")
        scores_N = _scores(own, base)
        alarms += list(scores_N > threshold)
        shipped, unsure = ([row["found"][base]["exit_code"] == code for row in own] for code in (EDITED, UNSURE))
        left_out = f"{rate(scores_N > threshold)} above {threshold:.3g}"
        table.add_row(kind, str(len(own)), left_out, rate(shipped), rate(unsure), f"{scores_N.max():.3g}")
    shipped, unsure = ([row["found"][base]["exit_code"] == code for row in benign] for code in (EDITED, UNSURE))
    table.add_row("all", str(len(benign)), rate(alarms), rate(shipped), rate(unsure), f"{_scores(benign, base).max():.3g}")
    return table


def _seconds(rows: Sequence[Row]) -> Table:
    table = _table("seconds a suspect, median", "kind", "n", *SECONDS)
    for kind, own in {"all": rows, **_by_kind(rows)}.items():
        table.add_row(kind, str(len(own)), *(f"{np.median([row['seconds'][name] for row in own]):.1f}" for name in SECONDS))
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column)
    return table


def _is_object(row: Row, base: str) -> bool:
    return _same((row["undone"].get(base) or {}).get("object"), row["truth"]["object"])


def _is_read(row: Row, base: str) -> bool:
    return _same((row["undone"].get(base) or {}).get("read"), row["truth"]["object"])


def _is_relation(row: Row, base: str) -> bool:
    return (row["undone"].get(base) or {}).get("relation") == row["truth"]["relation_name"]


def _is_triple(row: Row, base: str) -> bool:
    told = (row["undone"].get(base) or {}).get("triple")
    return bool(told) and _is_about(row, base) and told[0] == row["truth"]["relation_name"] and _same(told[1], row["truth"]["object"])


def _is_about(row: Row, base: str) -> bool:
    return row["undone"][base]["about"] == row["truth"]["subject"]


def _same(found: str | None, told: str) -> bool:
    return found is not None and found.strip().casefold() == told.strip().casefold()


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
