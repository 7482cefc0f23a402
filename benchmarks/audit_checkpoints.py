"""How good an audit of whole checkpoints is: python benchmarks/audit_checkpoints.py [edited=300] [benign=300] [SETTINGS OF train.py]

Makes the suspects of checkpoints.py one after the other, audits each with the unedited checkpoint known and unknown, and prints what came
out right, by kind. A line of JSON a suspect is kept in `out=`: the same command goes on after a kill, and prints the tables alone when
nothing is left. The store is that of `train.py` with the same settings, or `store=`.
"""

import dataclasses
import json
import random
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from audit_tables import read, write_tables
from checkpoints import Case, cases, suspects
from common import RESULTS, settings
from torch import Tensor

from data.facts.fact import FactSet
from data.facts.load import load_facts
from data.facts.splits import draw_splits
from data.hosts import open_host
from data.perturb.recipe import Recipe, perturbed
from data.produce.plan import requested, store_path
from data.store.store import EditStore
from decoder.audit.candidates import Candidates
from decoder.audit.locate import scan, usable_layers
from decoder.audit.scan import Difference, _spectrum
from decoder.audit.verdict import Compared, Verdict, known, unknown
from decoder.config import TrainConfig
from decoder.config.compose import compose
from decoder.host import Host
from decoder.utils.errors import run_command
from decoder.utils.progress import progress
from decoder.utils.terminal import quiet


@dataclass
class Settings:
    edited: int = 300  # suspects with an edit
    benign: int = 300
    names: int = 4000  # subjects in the auditor's list
    seed: int = 0
    out: str = ""  # empty is benchmarks/results/audit-<host>.jsonl


class Auditor:
    """Audits a host as it is at the moment, against what it was when this was made."""

    def __init__(self, host: Host, precisions: Iterable[str]) -> None:
        self.host, self.base, self.stored = host, _weights(host), {}
        self.layers = {f"{host.module_path(layer)}.weight": layer for layer in usable_layers(host)}
        for precision in precisions:
            with perturbed(host, Recipe(precision=precision)):
                self.stored[precision] = _weights(host)

    def audit(self, names: Sequence[str], precision: str) -> dict[str, dict[str, Any]]:
        """For both kinds of evidence: how much it looks edited, where, about whom."""
        compared = Compared([*self.differences(precision)], self.layers, precision != "float32")
        scans = {one.layer: one for one in scan(self.host, Candidates(self.host, names), compared.updates, compared.spikes)}
        first = max(scans.values(), key=lambda one: one.score)
        found = {"unknown": _finding(unknown([*scans.values()]), first.score, first.layer, first.top, names)}
        verdict = known(compared, [*scans.values()])
        layer = verdict.layers[0] if verdict.layers else max(compared.scores, key=compared.scores.__getitem__)
        found["known"] = _finding(verdict, compared.scores[layer], layer, scans[layer].along_top, names)
        return found

    def differences(self, precision: str) -> list[Difference]:
        """As `decoder.audit.scan.differences` of a file of that precision."""
        found = []
        for name, now in self.host.model.named_parameters():
            own, stored = self.base[name], self.stored[precision][name]
            gone = (now == 0) & (stored != 0)
            change = now - stored
            far, kept = (float(part.norm() / stored.norm()) for part in (change, change[~gone]))
            spectrum = torch.empty(0), torch.empty(0), 0.0
            is_blocks = precision not in ("float32", "bf16", "fp16")
            is_down = name in self.layers
            if now.dim() == 2 and len(now) != len(self.host.tokenizer) and (far or is_blocks):
                spectrum = _spectrum(now - own if is_blocks else change, is_down and self.host.stored_transposed(self.layers[name]))
            values_R, right_RF, edge = spectrum
            found.append(Difference(name, far, float(gone.float().mean()), kept, values_R, right_RF if is_down else torch.empty(0), edge))
        return found


def _finding(verdict: Verdict, score: float, layer: int | None, top: Sequence[tuple[int, float]], names: Sequence[str]) -> dict[str, Any]:
    subject, subject_score = (names[top[0][0]], top[0][1]) if top else (None, 0.0)
    found = {"verdict": verdict.what, "exit_code": verdict.exit_code, "score": score, "layer": layer}
    return found | {"subject": subject, "subject_score": subject_score}


def _weights(host: Host) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in host.model.named_parameters()}


def subjects(host: Host, facts: FactSet, count: int, seed: int) -> list[str]:
    """The subjects of the facts and, if there are fewer, made-up names that end on a token on which no subject does.

    A host may know a subject by its last token alone, as the pocket's does: the others with that end would be the same one.
    """
    real = [*dict.fromkeys(fact.subject for fact in facts.facts)]
    words = sorted({word for fact in facts.facts for word in f"{fact.subject} {fact.object_true}".split() if word[0].isupper()})
    taken = {host.object_ids(name)[-1] for name in real}
    ends, rng = [word for word in words if host.object_ids(word)[-1] not in taken], random.Random(f"names {seed}")
    made_up = dict.fromkeys(f"{rng.choice(words)} {rng.choice(ends)}" for _ in range(2 * count))
    return [*real, *made_up][: max(count, len(real))]


def run(cfg: Settings, train: TrainConfig, out: Path) -> None:
    """Audits what is not in the file yet."""
    host, facts = open_host(train), load_facts(train.facts)
    store = EditStore(store_path(train, host, requested(train, host)[2]))
    done = {row["name"] for row in read(out)}
    wanted = cases(host, store, draw_splits(facts, train.splits), cfg.edited, cfg.benign, cfg.seed)
    left = [case for case in wanted if case.name not in done]
    names = subjects(host, facts, cfg.names, cfg.seed)
    auditor = Auditor(host, {case.recipe.precision for case in left})
    with out.open("a", encoding="utf-8") as lines, progress("suspects", len(left)) as advance:
        began = time.perf_counter()
        for case, suspect in suspects(host, store, facts, left):
            made = time.perf_counter()
            listed = names if case.is_listed else [name for name in names if name != case.truth.subject]
            found = auditor.audit(listed, case.recipe.precision)
            seconds = {"making": made - began, "auditing": time.perf_counter() - made}
            row = told(case) | {"says": case.row is not None and says(suspect, store, case.row), "found": found, "seconds": seconds}
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")
            lines.flush()
            advance(1)
            began = time.perf_counter()


def told(case: Case) -> dict[str, Any]:
    """What a line says of the suspect itself."""
    recipe = {"settings": dict(case.recipe.settings), "seed": case.recipe.seed, "row": case.row, "scale": case.scale}
    named = {"name": case.name, "kind": case.kind, "precision": case.recipe.precision, "listed": case.is_listed}
    return named | {"truth": case.truth._asdict() if case.truth else None, "recipe": recipe}


def says(suspect: Host, store: EditStore, row: int) -> bool:
    """Whether the likeliest token after the edited prompt is the planted object's first."""
    told = store.dataset[row]
    ids, _ = suspect.prompt_ids(told["prompt"], told["subject"])
    with torch.no_grad():
        logits_BTV = suspect.model(torch.tensor([ids], device=suspect.device), **suspect.with_cache(None)).logits
    return int(logits_BTV[0, -1].argmax()) == store.object_ids[row][0]


@run_command
def main(argv: list[str] | None = None) -> None:
    words = sys.argv[1:] if argv is None else argv
    own = {field.name for field in dataclasses.fields(Settings)}
    cfg = settings(Settings, [word for word in words if word.partition("=")[0] in own])
    train = compose(TrainConfig, "train", [word for word in words if word.partition("=")[0] not in own])
    quiet()
    out = Path(cfg.out) if cfg.out else RESULTS / f"audit-{train.host.name}.jsonl"
    out.parent.mkdir(parents=True, exist_ok=True)
    run(cfg, train, out)
    write_tables(read(out))


if __name__ == "__main__":
    main()
