"""Whether what a checkpoint says of names that nearly stand out shows edits that were kept small, base unknown.

    python benchmarks/audit_said.py store=STORE small=STORE [host=smollm2-135m] [part=1/2] [benign=60] [names=2000]

`store` has edits as they usually are: of its `ood` ones some are scaled down, and of some the subject is taken off the list. `small` has
edits that an editor kept short (`edits.clamp=1`). Beside them lie checkpoints that nobody edited. A line of JSON a suspect is kept in
`out=`: the same command goes on after a kill, and prints what all lines of that folder say.
"""

import json
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from audit_checkpoints import part_of, subjects
from audit_tables import read
from common import RESULTS, settings

from data.facts.load import load_pocket
from data.facts.splits import draw_splits
from data.hosts import open_host
from data.perturb.drawn import SAVED, drawn_benign, texts_for
from data.perturb.recipe import Recipe, perturbed, planted
from data.store.store import EditStore
from decoder.audit.candidates import Candidates
from decoder.audit.evidence.examine import Evidence, examine
from decoder.config import SplitsConfig, TrainConfig
from decoder.config.compose import compose
from decoder.host import Host
from decoder.scores import wilson
from decoder.utils.errors import run_command
from decoder.utils.progress import progress
from decoder.utils.terminal import quiet


@dataclass
class Settings:
    store: str = ""  # edits of the host's one layer, as they usually are
    small: str = ""  # the same, kept short
    host: str = "pocket"
    part: str = "1/1"  # which of how many parts of the suspects
    short: int = 40  # edits of `small`
    skip: int = 0  # of them, drawn first: those that something was set on
    scaled: int = 30  # edits of `store` that are planted at 0.3 to 0.7
    absent: int = 20  # and that are about nobody in the list
    benign: int = 60
    names: int = 2000
    seed: int = 22
    out: str = ""  # folder; empty is benchmarks/results/said-<host>


class Case(NamedTuple):
    """One suspect to be made; `row` is of which store's edit."""

    kind: str
    recipe: Recipe
    subject: str | None = None
    layer: int | None = None


def cases(cfg: Settings, host: Host, facts: Any) -> list[Case]:
    """All suspects, shuffled, so that any first part of them has some of each kind."""
    small, store, rng = EditStore(Path(cfg.small).expanduser()), EditStore(Path(cfg.store).expanduser()), random.Random(cfg.seed)
    plan = draw_splits(facts, SplitsConfig())
    found = [*_edited("kept short", host, small, _rows(small, None, 1)[cfg.skip :][: cfg.short])]
    rows = _rows(store, plan, 2)
    found += [
        one._replace(recipe=replace(one.recipe, edit=replace(one.recipe.edit, scale=rng.uniform(0.3, 0.7))))
        for one in _edited("scaled down", host, store, rows[: cfg.scaled])
    ]
    found += _edited("not in the list", host, store, rows[cfg.scaled :][: cfg.absent])
    found += [Case(kind, recipe) for kind, recipe in drawn_benign(host, cfg.benign, cfg.seed)]
    random.Random(5).shuffle(found)
    return found


def _rows(store: EditStore, plan: Any, seed: int) -> list[int]:
    """Rows of successful edits, of the `ood` split where there is a plan, in an order drawn."""
    told = enumerate(store.table().itertuples())
    rows = [n for n, one in told if one.success and (not plan or plan.split_of(one.relation, one.subject, one.object) == "ood")]
    random.Random(seed).shuffle(rows)
    return rows


def _edited(kind: str, host: Host, store: EditStore, rows: list[int]) -> Iterator[Case]:
    for n, row in enumerate(rows):
        edit = planted(host, store, row)
        (layer,) = edit.deltas
        yield Case(kind, Recipe(precision=SAVED[n % 2], edit=edit), edit.row["subject"], layer)


def said(name: str, found: Evidence, case: Case) -> dict[str, Any]:
    """What a line says of an audit."""
    layer = found.verdict.layers[0] if found.verdict.layers else max(found.scores, key=found.scores.__getitem__)
    about = found.located[0] if found.located else None
    return {
        "name": name,
        "kind": case.kind,
        "is_edited": case.subject is not None,
        "by_scan": found.stands_out,
        "found": found.verdict.exit_code == 3,
        "cannot_tell": found.verdict.exit_code == 4,
        "layer": layer == case.layer,
        "asked": about is not None and about.asked == case.subject,
        "named": about is not None and about.subject == case.subject,
        "strength": found.strength,
        "nearly": [asdict(one) | {"strength": one.strength} for one in found.confirmed],
    }


def run(cfg: Settings, out: Path) -> None:
    """Audits what is not in the file of this part yet."""
    host = open_host(compose(TrainConfig, "train", [f"host={cfg.host}"]))
    facts, (number, of) = load_pocket(), part_of(cfg.part)
    candidates = Candidates(host, subjects(host, facts, cfg.names, cfg.seed))
    templates = {fact.relation_name: fact.templates for fact in facts.facts}
    file = out / f"{number}-of-{of}.jsonl"
    done = {row["name"] for row in read([file])}
    left = {name: case for n, case in enumerate(cases(cfg, host, facts)) if n % of == number - 1 and (name := str(n)) not in done}
    with file.open("a", encoding="utf-8") as lines, progress("suspects", len(left)) as advance:
        for name, case in left.items():
            began, listed = time.perf_counter(), candidates.without(case.subject) if case.kind == "not in the list" else candidates
            with perturbed(host, case.recipe, texts_for(host, facts, case.recipe)):
                found = said(name, examine(host, listed, templates=templates).unknown, case)
            lines.write(json.dumps(found | {"seconds": time.perf_counter() - began}, ensure_ascii=False) + "\n")
            lines.flush()
            advance(1)


def table(rows: list[dict[str, Any]]) -> str:
    """What was found of each kind, edited ones first."""
    heads = ("", "n", "by the scan", "found", "cannot tell", "layer", "its subject", "highest strength")
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for is_benign, kind in sorted({(not row["is_edited"], row["kind"]) for row in rows}):
        own = [row for row in rows if row["kind"] == kind]
        counts = [sum(row[name] for row in own) for name in ("by_scan", "found", "cannot_tell", "layer", "asked")]
        low, high = wilson(counts[1], len(own))
        about = ("–", "–") if is_benign else counts[3:]
        cells = (
            kind,
            len(own),
            counts[0],
            f"{counts[1]} [{low:.3f}, {high:.3f}]",
            counts[2],
            *about,
            f"{max(row['strength'] for row in own):.2f}",
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


@run_command
def main(argv: list[str] | None = None) -> None:
    cfg = settings(Settings, sys.argv[1:] if argv is None else argv)
    quiet()
    torch.set_num_threads(1)
    out = Path(cfg.out) if cfg.out else RESULTS / f"said-{cfg.host}"
    out.mkdir(parents=True, exist_ok=True)
    run(cfg, out)
    print(table(read(sorted(out.glob("*.jsonl")))))


if __name__ == "__main__":
    main()
