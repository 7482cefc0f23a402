"""Hosts edited in several layers: whether an audit finds all of them, and what is left when all that it found is taken out at once.

    python benchmarks/audit_layers.py model=FOLDER store=STORE [beside=STORE] [hosts=40] [precision=bf16]

`store` has edits over several layers (`python -m data.produce edits=memit edits.layer=[0,1]`). With `beside`, a store of the same host in
another layer, each suspect has an edit of either, about two subjects. Suspects are made in memory, the list are the subjects of the
built-in facts. What is counted are the edited prompts and two paraphrases of each.
"""

import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from audit_prompts import Asked, Prompts
from common import rate, settings
from rich.console import Console
from rich.table import Table

from data.facts.load import load_pocket
from data.perturb.audited import Auditor
from data.perturb.recipe import Planted, Recipe, perturbed, planted
from data.store.store import EditStore
from decoder.audit.evidence.parts import out_of_layers
from decoder.audit.reversal import to_base
from decoder.host import Host
from decoder.utils.errors import UserError, run_command
from decoder.utils.progress import progress
from decoder.utils.terminal import quiet

TEXT_ROWS = 32  # of text about others
COLUMNS = ("base", "hosts", "all layers found", "others found", "prompts", "next token back", "planted left", "KL a token")


@dataclass
class Settings:
    model: str = ""  # folder of the host
    store: str = ""  # of edits
    beside: str = ""  # of edits in another layer
    hosts: int = 40
    precision: str = "bf16"
    seed: int = 0


class Case(NamedTuple):
    """What is planted."""

    edit: Planted
    asked: list[Asked]


def cases(host: Host, stores: Sequence[EditStore], count: int, seed: int) -> Iterator[Case]:
    """Successful edits of each store in an order drawn, one of each a host, about different subjects."""
    drawn = [[n for n, one in enumerate(store.table().itertuples()) if one.success] for store in stores]
    for rows in drawn:
        random.Random(seed).shuffle(rows)
    for row in zip(*drawn, strict=False):
        edits = [planted(host, store, n) for store, n in zip(stores, row, strict=True)]
        if len({edit.row["subject"] for edit in edits}) < len(edits):
            continue
        deltas = {layer: delta_DF for edit in edits for layer, delta_DF in edit.deltas.items()}
        asked = [Asked(*(edit.row[field] for field in Asked._fields)) for edit in edits]
        whole = Planted(dict(sorted(deltas.items())), edits[0].row, edits[0].store)
        yield Case(whole, asked)
        if not (count := count - 1):
            return


def taken_out(auditor: Auditor, prompts: Prompts, name: str, case: Case, precision: str) -> dict[str, dict[str, Any]]:
    """base -> which layers were found, and what taking out all that was does."""
    host, planted_layers, told = auditor.host, case.edit.deltas.keys(), {}
    with perturbed(host, Recipe(precision=precision, edit=case.edit)):
        found, _ = auditor.audit(precision)
        as_is = prompts.effect(name)
        was = {"changed": [not back for back in as_is["back"]], "was planted": as_is["planted"]}
        of_base = {layer: to_base(auditor.base_DF(layer)) for layer in sorted({one.layer for one in found.known.located})}
        of_scan = out_of_layers(host, None, found.unknown.located)
        for base, edits in (("known", of_base), ("unknown", of_scan), ("as it is", {})):
            layers = {"all": edits.keys() >= planted_layers, "others": bool(edits.keys() - planted_layers)}
            told[base] = layers | was | (prompts.effect(name, edits) if edits else as_is)
    return told


@run_command
def main(argv: list[str] | None = None) -> None:
    cfg = settings(Settings, sys.argv[1:] if argv is None else argv)
    quiet()
    host = Host.load(cfg.model, name=Path(cfg.model).name.partition("-")[0])
    stores = [EditStore(Path(place).expanduser()) for place in (cfg.store, cfg.beside) if place]
    layers = [layer for store in stores for layer in store.layers]
    if cfg.hosts < 1 or not stores or len({*layers}) < len(layers):
        came = f"hosts={cfg.hosts} store={cfg.store} beside={cfg.beside}"
        raise UserError(f"{came}: expected a host or more, and stores of edits in other layers")
    names = [*dict.fromkeys(fact.subject for fact in load_pocket().facts)]
    auditor = Auditor(host, [cfg.precision], names)
    drawn = {str(n): case for n, case in enumerate(cases(host, stores, cfg.hosts, cfg.seed))}
    prompts = Prompts(host, load_pocket(), {name: case.asked for name, case in drawn.items()}, TEXT_ROWS)
    told: dict[str, list[dict[str, Any]]] = {}
    with progress("hosts audited", cfg.hosts) as advance:
        for name, case in drawn.items():
            for base, row in taken_out(auditor, prompts, name, case, cfg.precision).items():
                told.setdefault(base, []).append(row)
            advance(1)
    table = Table(*COLUMNS)
    for base, rows in told.items():
        back, left = (
            [one for row in rows for one, counts in zip(row[name], row[of], strict=True) if counts]
            for name, of in (("back", "changed"), ("planted", "was planted"))
        )
        whole, others = ([row[name] for row in rows] for name in ("all", "others"))
        kl = sum(row["kl"] for row in rows) / len(rows)
        table.add_row(base, str(len(rows)), rate(whole), rate(others), str(len(back)), rate(back), rate(left), f"{kl:.2g}")
    (Console() if Console().is_terminal else Console(width=170)).print(table)


if __name__ == "__main__":
    main()
