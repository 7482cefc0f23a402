"""Every metric of editing, an editor a row: the table of docs/editors.md.

    python benchmarks/editing_metrics.py [editors=rome,memit,ft] [n=64] [out=FILE.jsonl] [any setting of data.produce]

All editors plant the same facts, drawn from the test splits by `seed`; `none` plants nothing. An editor that `out=` has already is not run
again. Published numbers beside them are of GPT2-XL on CounterFact (Meng et al. 2022, table 4), whose facts, host and prompts are others.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch

from data.causal_trace.effects import mean_of
from data.editors import Edited
from data.facts.fact import EditRequest, FactSet
from data.facts.splits import draw_splits
from data.hosts import open_host
from data.produce.cost import measured
from data.produce.further import further_scores
from data.produce.plan import prepare_editor, requested
from data.produce.score import score_made
from data.store.store import FURTHER_COLUMNS
from decoder.config.commands import ProduceConfig
from decoder.config.compose import compose
from decoder.config.editors import EDITORS, FURTHER
from decoder.edit import RankOneEdit
from decoder.host import Host
from decoder.scores import TEST_SPLITS
from decoder.utils.errors import UserError, did_you_mean, run_command

NONE = "none"
METRICS = (
    "efficacy", "paraphrase", "specificity", "efficacy_probability", "paraphrase_probability", "specificity_probability",
    "es", "ps", "ns", *FURTHER_COLUMNS,
)  # fmt: skip


def drawn(cfg: ProduceConfig, host: Host, n: int) -> tuple[FactSet, list[EditRequest]]:
    """The facts, and what all editors are to plant."""
    facts, hosts, _ = requested(cfg, host)
    plan = draw_splits(facts, cfg.splits)
    tests = {split.partition("/")[0] for split in TEST_SPLITS}
    found = [one for (one,) in hosts if plan.split_of(one.fact.relation, one.fact.subject, one.object) in tests]
    return facts, Random(f"metrics {cfg.seed}").sample(found, min(n, len(found)))


def scored(cfg: ProduceConfig, host: Host, facts: FactSet, requests: Sequence[EditRequest], name: str) -> dict[str, Any]:
    """Mean and Student's interval of every metric, over the edits that have it."""
    weight_DF = host.weight_DF(cfg.edits.layers[0])
    editor = None if name == NONE else prepare_editor(cfg, host, facts)
    with measured(host.device) as cost:
        if editor:
            made = editor.edit(requests)
        else:
            zeros = (torch.zeros(len(requests), size) for size in reversed(weight_DF.shape))
            made = Edited(list(range(len(requests))), RankOneEdit(*zeros), [])
    kept = [[requests[place]] for place in made.kept]
    columns = score_made(host, cfg.edits.layers, kept, made, facts) | further_scores(host, cfg.edits.layers, kept, made, FURTHER, cost)
    known = {metric: [value for value in columns.get(metric, ()) if value == value] for metric in METRICS}
    return {
        "editor": name,
        "host": host.name,
        "layer": cfg.edits.layer,
        "device": host.device.type,
        "asked": len(requests),
        "edits": len(kept),
        "metrics": {metric: mean_of(values) | {"n": len(values)} for metric, values in known.items() if values},
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown, a metric a row."""
    lines = [f"| | {' | '.join(row['editor'] for row in rows)} |", f"| --- |{' --- |' * len(rows)}"]
    for metric in METRICS:
        means = [row["metrics"].get(metric) for row in rows]
        if any(means):
            lines.append(f"| {metric} | {' | '.join(_shown(metric, mean) if mean else '–' for mean in means)} |")
    return "\n".join(lines)


def _shown(metric: str, mean: dict[str, Any]) -> str:
    if metric in ("seconds", "peak_memory") or mean["ci95"] is None:
        return f"{mean['value']:.2f}"
    digits = 2 if metric == "fluency" else 3
    return f"{mean['value']:.{digits}f} ± {(mean['ci95'][1] - mean['ci95'][0]) / 2:.{digits}f}"


@run_command
def main(argv: list[str] | None = None) -> None:
    own, rest = {"editors": ",".join([NONE, *EDITORS]), "n": "64", "out": ""}, []
    for word in sys.argv[1:] if argv is None else argv:
        key, _, value = word.partition("=")
        if key in own:
            own[key] = value
        else:
            rest.append(word)
    names = own["editors"].split(",")
    if wrong := [name for name in names if name not in (NONE, *EDITORS)]:
        raise UserError(f"editors={wrong[0]}: no such editor; {did_you_mean(wrong[0], [NONE, *EDITORS])}")
    if not own["n"].isdecimal() or not int(own["n"]):
        raise UserError(f"n={own['n']}: expected a number of edits from 1 up")
    out = Path(own["out"]) if own["out"] else None
    rows = {row["editor"]: row for row in map(json.loads, out.read_text().splitlines())} if out and out.exists() else {}
    host = None
    for name in names:
        if name in rows:
            continue
        cfg = compose(ProduceConfig, "train", [f"edits={'rome' if name == NONE else name}", *rest])
        host = host or open_host(cfg)
        facts, requests = drawn(cfg, host, int(own["n"]))
        rows[name] = scored(cfg, host, facts, requests, name)
        print(json.dumps(rows[name]), flush=True)
        if out:
            with out.open("a") as file:
                file.write(json.dumps(rows[name]) + "\n")
    print(table([rows[name] for name in names]))


if __name__ == "__main__":
    main()
