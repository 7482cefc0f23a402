"""Hosts in which several facts are planted: whether an audit finds their subjects, and what a decoder reads of each subject alone.

    python benchmarks/audit_facts.py model=FOLDER store=STORE decoder=DECODER [hosts=20] [precision=bf16]

`store` has edits of several facts (`python -m data.produce edits=memit edits.facts_per_host=4`), `decoder` reads single facts of the same
host and layer. Checkpoints are written, audited with the base unknown and known, the subjects of the built-in facts being the list, and
deleted. Per test split: the share of planted facts whose subject was found, whose object the decoder reads there, and how many were found.
"""

import random
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import rate, settings
from rich.console import Console
from rich.table import Table

from data.facts.load import load_pocket
from data.facts.splits import draw_splits
from data.perturb.recipe import Recipe, planted, write
from data.store.store import EditStore
from decoder.audit.decoded.readers import reader_of_parts
from decoder.audit.finding import audit_checkpoint
from decoder.audit.suspect import Suspect
from decoder.config import SplitsConfig
from decoder.config.commands import EvaluateConfig
from decoder.host import Host
from decoder.scores import TEST_SPLITS, exact_match
from decoder.utils.errors import run_command
from decoder.utils.progress import progress
from decoder.utils.terminal import quiet

COLUMNS = ("split", "base", "hosts", "facts", "subject found", "object read", "found, of nobody planted")


@dataclass
class Settings:
    model: str = ""  # folder of the host
    store: str = ""  # of edits of several facts
    decoder: str = ""  # of single facts
    hosts: int = 20  # of each test split, at most
    precision: str = "bf16"
    seed: int = 0


def of_splits(store: EditStore, count: int, seed: int) -> Iterator[tuple[str, int]]:
    """Split and row of hosts all facts of which are of one test split."""
    plan = draw_splits(load_pocket(), SplitsConfig())
    rows: dict[str, list[int]] = defaultdict(list)
    for row in range(len(store)):
        splits = {plan.split_of(fact["relation"], fact["subject"], fact["object"]) for fact in store.facts(row)}
        if len(splits) == 1 and (split := splits.pop()) in TEST_SPLITS:
            rows[split].append(row)
    for split in TEST_SPLITS:
        yield from ((split, row) for row in random.Random(seed).sample(rows[split], min(count, len(rows[split]))))


def audited(host: Host, store: EditStore, row: int, cfg: Settings) -> dict[str, list[dict[str, Any]]]:
    """base -> the edits that the audit of a host finds."""
    names = [*dict.fromkeys(fact.subject for fact in load_pocket().facts)]
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "suspect"
        write(host, Recipe(precision=cfg.precision, edit=planted(host, store, row)), checkpoint)
        suspect = Suspect(str(checkpoint))
        reader = reader_of_parts(EvaluateConfig(decoder=cfg.decoder, suspect=str(checkpoint)), suspect)
        finding, _ = audit_checkpoint(suspect, names, base=cfg.model, reader=reader)
        alone, _ = audit_checkpoint(suspect, names, reader=reader)
    return {"known": finding["base_known"]["edits"], "unknown": alone["base_unknown"]["edits"]}


@run_command
def main(argv: list[str] | None = None) -> None:
    cfg = settings(Settings, sys.argv[1:] if argv is None else argv)
    quiet()
    host, store = Host.load(cfg.model, name=Path(cfg.model).name), EditStore(cfg.store)
    drawn, told = [*of_splits(store, cfg.hosts, cfg.seed)], defaultdict(list)
    with progress("hosts audited", len(drawn)) as advance:
        for split, row in drawn:
            facts = [fact for fact in store.facts(row) if fact["efficacy"] == 1]
            for base, edits in audited(host, store, row, cfg).items():
                read = {edit["subject"]: edit.get("decoded") for edit in edits}
                told[split, base].append([(fact["subject"] in read, _is_read(read.get(fact["subject"]), fact["object"])) for fact in facts])
                told[split, base, "others"].append(len(set(read) - {fact["subject"] for fact in store.facts(row)}))
            advance(1)
    table = Table(*COLUMNS)
    for (split, base, *rest), hosts in told.items():
        if not rest:
            found, right = zip(*(fact for host in hosts for fact in host), strict=True)
            table.add_row(split, base, str(len(hosts)), str(len(found)), rate(found), rate(right), str(sum(told[split, base, "others"])))
    (Console() if Console().is_terminal else Console(width=150)).print(table)


def _is_read(objects: list[dict[str, Any]] | None, planted_object: str) -> bool:
    return bool(objects) and exact_match(objects[0]["text"], planted_object)


if __name__ == "__main__":
    main()
