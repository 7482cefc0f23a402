"""How well decoders tell edited checkpoints from others, beside the scan of audit_checkpoints.py and together with it.

    python benchmarks/audit_read.py model=FOLDER edits=FOLDER decoder=FOLDER audited=FILE[,FILE] [edited=100] [benign=100] [seed=3]

Makes the same suspects, as far as they are in the files of `audited=`, and has the decoder read the whole matrix of its layer in each. A
line of JSON a suspect is kept in `out=`: the same command goes on after a kill.

Shape letters: N suspects.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from audit_edits import opened
from audit_tables import EDITED, auroc, caught, read
from checkpoints import cases, suspects
from common import RESULTS, rate, settings
from rich.console import Console
from rich.table import Table

from data.facts.load import load_pocket
from decoder.audit.decoded.readers import readers_of_hosts
from decoder.audit.evidence.readings import PRUNED, READ, threshold_from
from decoder.utils.errors import UserError, run_command
from decoder.utils.progress import progress
from decoder.utils.terminal import quiet

ZEROED = ("Q4_0", "int4")
"""What leaves so many zeros that a matrix counts as pruned."""


@dataclass
class Settings:
    model: str = ""  # folder or GGUF file of the host
    edits: str = ""  # folder that audit_edits.py wrote
    decoder: str = ""  # of the host's edited layer
    audited: str = ""  # what audit_checkpoints.py wrote of the same suspects
    device: str = "cpu"
    edited: int = 100  # as there
    benign: int = 100
    seed: int = 3
    out: str = ""  # empty is benchmarks/results/audit-read-<host>.jsonl


def table_of(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The decoder alone, the scan alone, both; each benign kind is held against a threshold that it had no part in."""
    benign, kinds = [row for row in rows if not row["truth"]], sorted({row["kind"] for row in rows if not row["truth"]})
    least = {kind: threshold_from([row["probability"] for row in benign if row["kind"] not in (kind, PRUNED)]) for kind in [None, *kinds]}
    ways = {
        "scan": (lambda row: row["scan"], lambda row: row["found"]),
        "decoder": (lambda row: row["probability"], lambda row: row["probability"] >= _least(row)),
        "both": (
            lambda row: max(row["scan"], row["probability"] / _least(row)),
            lambda row: row["found"] or row["probability"] >= _least(row),
        ),
    }

    def _least(row: Mapping[str, Any]) -> float:
        return READ if row["kind"] == PRUNED or row["precision"] in ZEROED else least[None if row["truth"] else row["kind"]]

    table = Table("", "n", *ways, title="Edited and benign suspects, base unknown", title_justify="left")
    groups = {"subject in the list": [row for row in rows if row["truth"] and row["listed"]]}
    groups["not in the list"] = [row for row in rows if row["truth"] and not row["listed"]]
    for name, own in groups.items():
        scores = [([score(row) for row in own], [score(row) for row in benign]) for score, _ in ways.values()]
        table.add_row(f"{name}: AUROC", f"{len(own)} + {len(benign)}", *(f"{auroc(*both):.4f}" for both in scores))
        table.add_row("the same: found at 1% false alarms", str(len(own)), *(rate(caught(*both)) for both in scores))
        table.add_row("the same: found", str(len(own)), *(rate([test(row) for row in own]) for _, test in ways.values()))
    table.add_row("false alarms, kind left out", str(len(benign)), *(rate([test(row) for row in benign]) for _, test in ways.values()))
    for kind in sorted({row["kind"] for row in rows}):
        for what, own in (("edited", True), ("benign", False)):
            if those := [row for row in rows if row["kind"] == kind and bool(row["truth"]) is own]:
                found = (rate([test(row) for row in those]) for _, test in ways.values())
                table.add_row(f"{kind}, {what}", str(len(those)), *found)
    right = [row["object"].strip().casefold() == row["truth"]["object"].strip().casefold() for row in rows if row["truth"]]
    table.add_row("object read, of all edited", str(len(right)), "", rate(right), "")
    highest, median = max(benign, key=lambda row: row["probability"]), np.median([row["probability"] for row in benign])
    table.caption = f"highest benign {highest['probability']:.3f} ({highest['kind']}), median {median:.3f}"
    return table


@run_command
def main(argv: list[str] | None = None) -> None:
    cfg = settings(Settings, sys.argv[1:] if argv is None else argv)
    if not cfg.decoder or not cfg.audited:
        raise UserError("decoder= and audited= are missing: give an exported decoder, and what audit_checkpoints.py wrote")
    quiet()
    host, edits = opened(cfg.model, cfg.edits, cfg.device)
    out = Path(cfg.out) if cfg.out else RESULTS / f"audit-read-{host.name}.jsonl"
    audited = {row["name"]: row for row in read([*map(Path, cfg.audited.split(","))]) if "failed" not in row}
    done, (reader,) = {row["name"] for row in read([out])}, readers_of_hosts(cfg.decoder, host, cfg.device).values()
    left = [case for case in cases(host, edits, cfg.edited, cfg.benign, cfg.seed) if case.name in audited and case.name not in done]
    with out.open("a", encoding="utf-8") as lines, progress("suspects", len(left)) as advance:
        for case, failed in suspects(host, edits, load_pocket(), left):
            if not failed:
                first = reader(host)
                lines.write(json.dumps({"name": case.name, "object": first["text"], "probability": first["probability"]}) + "\n")
                lines.flush()
            advance(1)
    told = [row | audited[row["name"]] for row in read([out]) if row["name"] in audited]
    rows = [row | {"scan": row["found"]["unknown"]["score"], "found": row["found"]["unknown"]["exit_code"] == EDITED} for row in told]
    if all(row["truth"] for row in rows):
        raise UserError(f"{out}: no benign suspect among {len(rows)}: nothing to hold the edited ones against")
    Console(width=150).print(table_of(rows))


if __name__ == "__main__":
    main()
