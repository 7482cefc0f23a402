"""How good an audit of whole checkpoints is, from start to end: which are edited, where, about whom, and what the edit says.

    python benchmarks/audit_checkpoints.py model=FOLDER edits=FOLDER [decoder=FOLDER] [device=cuda] [part=2/12] [edited=300] [benign=300]

Makes the suspects of checkpoints.py one after the other out of a model and the edits that `audit_edits.py` wrote for it, audits each with
the unedited checkpoint known and unknown, asks about what was found, and takes it out again. A line of JSON a suspect is kept in `out=`:
the same command goes on after a kill. `part=` takes its share of the same list, into a file of its own; audit_tables.py reads any number
of them together.

Shape letters: C candidates, D hidden width, F MLP width, N rows, T tokens, V vocabulary.
"""

import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audit_edits import Edits, opened
from audit_prompts import Asked, Prompts
from audit_tables import read, write_tables
from checkpoints import Case, cases, suspects
from common import RESULTS, settings

from data.facts.fact import FactSet
from data.facts.load import load_pocket
from data.perturb.audited import Auditor
from decoder.audit.asking import NEIGHBOURS, ask, likely, triples
from decoder.audit.decoded.readers import reader_of_parts
from decoder.audit.evidence.examine import Evidence, Examined, named
from decoder.audit.evidence.parts import alone, out_of, value_of
from decoder.audit.evidence.questions import Reader
from decoder.audit.reversal import to_base
from decoder.audit.suspect import Suspect
from decoder.audit.verdict import Compared
from decoder.config.commands import EvaluateConfig
from decoder.host import Host
from decoder.utils.errors import UserError, run_command
from decoder.utils.progress import progress
from decoder.utils.terminal import quiet

TEXT_ROWS = 12  # of neutral text, that say what else a reversal moves


@dataclass
class Settings:
    model: str = ""  # folder or GGUF file of the host
    edits: str = ""  # folder that audit_edits.py wrote
    decoder: str = ""  # of the host's edited layer; empty: the suspect alone says what was planted
    device: str = "cpu"
    part: str = "1/1"  # which of how many parts of the suspects
    edited: int = 300  # suspects with an edit
    benign: int = 300
    names: int = 4000  # subjects in the auditor's list
    seed: int = 0
    out: str = ""  # empty is benchmarks/results/audit-<host>-<part>.jsonl


def seen(found: Examined, compared: Compared) -> dict[str, dict[str, Any]]:
    """For both kinds of evidence: how much it looks edited, where, about whom, whatever the threshold says."""
    scans = {one.layer: one for one in found.scans}
    shown, verdict = found.unknown.verdict.layers, found.known.verdict
    first = scans[shown[0]] if shown else max(found.scans, key=lambda one: one.score)
    layer = verdict.layers[0] if verdict.layers else max(compared.scores, key=compared.scores.__getitem__)
    others = max((one.score for one in found.scans if one.layer != first.layer), default=0.0)
    more = {"next_layer": others, "ratio": first.ratio}
    spike = {"spike": max(compared.scores.values()), "least": compared.threshold}
    return {
        "known": _told(found.known, layer, named(scans[layer].along_top, found.names)) | spike,
        "unknown": _told(found.unknown, first.layer, named(first.top, found.names)) | more,
    }


def _told(found: Evidence, layer: int, top: Sequence[tuple[str, float]]) -> dict[str, Any]:
    subject, subject_score = top[0] if top else (None, 0.0)
    verdict = found.verdict
    told = {"verdict": verdict.what, "exit_code": verdict.exit_code, "facts": found.facts, "layers": verdict.layers}
    told |= {"score": found.strength, "layer": layer, "subject": subject, "subject_score": subject_score}
    return told | ({"fit": found.located[0].fit, "named": found.located[0].subject} if found.located else {})


def undone(
    auditor: Auditor, found: Examined, case: Case, edits: Edits, prompts: Prompts, sentences: dict[str, Any], reader: Reader | None
) -> dict[str, Any]:
    """What the suspect says of whom the most conspicuous edit is about, in which relation, what a decoder reads of that, and what taking
    it out does; by both kinds."""
    host, answers = auditor.host, {}
    for base, evidence in (("known", found.known), ("unknown", found.unknown)):
        if not evidence.located:
            continue
        about = next(filter(None, map(found.about, evidence.located)), evidence.located[0])
        reversal = to_base(auditor.base_DF(about.layer)) if base == "known" else out_of(host, None, [about])
        answers[base] = {"about": about.subject, "asked": about.asked, "effect": prompts.effect(case.name, {about.layer: reversal})}
        if about.asked is None:
            continue
        part = alone(host, about, reversal)
        ranked = edits.relations(case.row).ranked(value_of(host, about, reversal), part.key_BF[0].cpu())
        read = {one["text"]: one["probability"] for one in reader(about.layer, part)["objects"]} if reader else {}
        others = [name for name in found.names if name != about.asked][:NEIGHBOURS]
        said = ask(host, {about.layer: reversal}, about.asked, sentences, others, likely(read))
        said, by_both = triples(said, None, read), triples(said, dict(ranked), read)
        answers[base] |= {
            "read": next(iter(read), None),
            "object": said[0].object if said else None,
            "risen": said[0].relation if said else None,
            "relation": ranked[0][0],
            "relations": ranked[:5],
            "triple": [by_both[0].relation, by_both[0].object] if by_both else None,
            "sure": by_both[0].share if by_both else 0.0,
        }
    return answers | {"as_is": prompts.effect(case.name)}


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


def run(cfg: Settings, host: Host, edits: Edits, out: Path) -> None:
    """Audits what is not in the file yet."""
    facts, done = load_pocket(), {row["name"] for row in read([out])}
    number, of = part_of(cfg.part)
    wanted = enumerate(cases(host, edits, cfg.edited, cfg.benign, cfg.seed))
    # Edited and benign ones come by turns: a step of `of` alone would make parts of one sort.
    left = [case for n, case in wanted if (n + n // of) % of == number - 1 and case.name not in done]
    sentences = {fact.relation_name: fact.templates for fact in facts.facts}
    auditor = Auditor(host, {case.recipe.precision for case in left}, subjects(host, facts, cfg.names, cfg.seed), sentences)
    planted = {one.name: (edits.told[one.row]["prompt"], one.truth) for one in left if one.truth}
    asked = {name: [Asked(prompt, truth.relation_name, truth.subject, truth.object)] for name, (prompt, truth) in planted.items()}
    prompts = Prompts(host, facts, asked, TEXT_ROWS)
    reader = (
        reader_of_parts(EvaluateConfig(decoder=cfg.decoder, host=cfg.model, device=cfg.device), Suspect(cfg.model)) if cfg.decoder else None
    )
    with out.open("a", encoding="utf-8") as lines, progress("suspects", len(left)) as advance:
        began = time.perf_counter()
        for case, failed in suspects(host, edits, facts, left):
            row = told(case) | ({"failed": failed} if failed else answered(auditor, case, edits, prompts, sentences, reader))
            row.get("seconds", {})["all"] = time.perf_counter() - began
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")
            lines.flush()
            advance(1)
            began = time.perf_counter()


def answered(
    auditor: Auditor, case: Case, edits: Edits, prompts: Prompts, sentences: dict[str, Any], reader: Reader | None
) -> dict[str, Any]:
    """The audit of the suspect that the host is at the moment."""
    began = time.perf_counter()
    found, compared = auditor.audit(case.recipe.precision, None if case.is_listed else case.truth.subject)
    row, between = {"found": seen(found, compared)}, time.perf_counter()
    if case.truth:
        row["undone"] = undone(auditor, found, case, edits, prompts, sentences, reader)
    return row | {"seconds": {"auditing": between - began, "asking": time.perf_counter() - between}}


def told(case: Case) -> dict[str, Any]:
    """What a line says of the suspect itself."""
    recipe = {"settings": dict(case.recipe.settings), "seed": case.recipe.seed, "row": case.row, "scale": case.scale}
    named = {"name": case.name, "kind": case.kind, "precision": case.recipe.precision, "listed": case.is_listed}
    return named | {"truth": case.truth._asdict() if case.truth else None, "recipe": recipe}


def part_of(text: str) -> tuple[int, int]:
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise UserError(f"part={text}: expected one of several, as 2/12")
    return int(number), int(of)


@run_command
def main(argv: list[str] | None = None) -> None:
    cfg = settings(Settings, sys.argv[1:] if argv is None else argv)
    quiet()
    host, edits = opened(cfg.model, cfg.edits, cfg.device)
    out = Path(cfg.out) if cfg.out else RESULTS / f"audit-{host.name}-{cfg.part.replace('/', '-of-')}.jsonl"
    out.parent.mkdir(parents=True, exist_ok=True)
    run(cfg, host, edits, out)
    if cfg.part == Settings.part:
        write_tables(read([out]))
    print(out)


if __name__ == "__main__":
    main()
