"""Hosts edited in several layers: whether an audit finds all of them, and what is left when all that it found is taken out at once.

    python benchmarks/audit_layers.py model=FOLDER store=STORE [beside=STORE] [hosts=40] [precision=bf16]

`store` has edits over several layers (`python -m data.produce edits=memit edits.layer=[0,1]`). With `beside`, a store of the same host in
another layer, each suspect has an edit of either, about two subjects. Suspects are made in memory, the list are the subjects of the
built-in facts. What is counted are the edited prompts and two paraphrases of each.
"""

import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from common import rate, settings
from rich.console import Console
from rich.table import Table

from data.facts.load import load_pocket
from data.perturb.audited import Auditor
from data.perturb.drawn import manual
from data.perturb.recipe import Planted, Recipe, perturbed, planted
from data.perturb.text import fact_text
from data.store.store import EditStore
from decoder.audit.evidence.effect import all_logprobs, divergence, next_tokens, text_rows
from decoder.audit.evidence.parts import out_of_layers
from decoder.audit.reversal import to_base
from decoder.edit import Edit
from decoder.host import Host
from decoder.utils.errors import UserError, run_command
from decoder.utils.progress import progress
from decoder.utils.terminal import quiet

PARAPHRASES = 2  # of each edited prompt
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
    """What is planted, and its prompts: as token rows, with the first token of what was planted behind each."""

    edit: Planted
    rows: list[list[int]]
    objects: list[int]


def cases(host: Host, stores: Sequence[EditStore], count: int, seed: int) -> Iterator[Case]:
    """Successful edits of each store in an order drawn, one of each a host, about different subjects."""
    templates = {fact.relation_name: fact.templates for fact in load_pocket().facts}
    drawn = [[n for n, one in enumerate(store.table().itertuples()) if one.success] for store in stores]
    for rows in drawn:
        random.Random(seed).shuffle(rows)
    for row in zip(*drawn, strict=False):
        edits = [planted(host, store, n) for store, n in zip(stores, row, strict=True)]
        if len({edit.row["subject"] for edit in edits}) < len(edits):
            continue
        deltas = {layer: delta_DF for edit in edits for layer, delta_DF in edit.deltas.items()}
        asked = [(edit.row, template) for edit in edits for template in _templates(edit.row, templates)]
        ids = [host.prompt_ids(template, told["subject"])[0] for told, template in asked]
        whole = Planted(dict(sorted(deltas.items())), edits[0].row, edits[0].store)
        yield Case(whole, ids, [host.object_ids(told["object"])[0] for told, _ in asked])
        if not (count := count - 1):
            return


def _templates(row: Mapping[str, str], templates: Mapping[str, Sequence[str]]) -> list[str]:
    return [row["prompt"], *[one for one in templates[row["relation_name"]] if one != row["prompt"]][:PARAPHRASES]]


class Effect:
    """What the unedited host says, and how a suspect with something taken out of it compares."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.text = text_rows(host, fact_text(load_pocket(), -1) if host.name == "pocket" else manual(), TEXT_ROWS)
        self.clean_NTV = all_logprobs(host, self.text)

    def of(self, case: Case, clean: Sequence[int], edits: Mapping[int, Edit]) -> dict[str, Any]:
        found = next_tokens(self.host, case.rows, edits)
        back = [token == own for token, own in zip(found, clean, strict=True)]
        left = [token == planted_one for token, planted_one in zip(found, case.objects, strict=True)]
        return {"back": back, "left": left, "kl": divergence(self.clean_NTV, all_logprobs(self.host, self.text, edits))}


def taken_out(auditor: Auditor, effect: Effect, case: Case, precision: str) -> dict[str, dict[str, Any]]:
    """base -> which layers were found, and what taking out all that was does."""
    host, planted_layers, told = auditor.host, case.edit.deltas.keys(), {}
    clean = next_tokens(host, case.rows)
    with perturbed(host, Recipe(precision=precision, edit=case.edit)):
        found, _ = auditor.audit(precision)
        before = next_tokens(host, case.rows)
        was = {"changed": [token != own for token, own in zip(before, clean, strict=True)]}
        was["planted"] = [token == planted_one for token, planted_one in zip(before, case.objects, strict=True)]
        of_base = {layer: to_base(auditor.base_DF(layer)) for layer in sorted({one.layer for one in found.known.located})}
        for base, edits in (("known", of_base), ("unknown", out_of_layers(host, None, found.unknown.located)), ("as it is", {})):
            layers = {"all": edits.keys() >= planted_layers, "others": bool(edits.keys() - planted_layers)}
            told[base] = layers | effect.of(case, clean, edits) | was
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
    auditor, effect = Auditor(host, [cfg.precision], names), Effect(host)
    told: dict[str, list[dict[str, Any]]] = {}
    with progress("hosts audited", cfg.hosts) as advance:
        for case in cases(host, stores, cfg.hosts, cfg.seed):
            for base, row in taken_out(auditor, effect, case, cfg.precision).items():
                told.setdefault(base, []).append(row)
            advance(1)
    table = Table(*COLUMNS)
    for base, rows in told.items():
        back, left = (
            [one for row in rows for one, counts in zip(row[name], row[of], strict=True) if counts]
            for name, of in (("back", "changed"), ("left", "planted"))
        )
        whole, others = ([row[name] for row in rows] for name in ("all", "others"))
        kl = sum(row["kl"] for row in rows) / len(rows)
        table.add_row(base, str(len(rows)), rate(whole), rate(others), str(len(back)), rate(back), rate(left), f"{kl:.2g}")
    (Console() if Console().is_terminal else Console(width=170)).print(table)


if __name__ == "__main__":
    main()
