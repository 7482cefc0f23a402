"""ROME, MEMIT, EMMET, AlphaEdit, fine-tuning: the published loop, one edit at a time, the whole host at every step | ours.

    python benchmarks/edit.py [out=FILE] [repeats=5]

Both give the same vectors, which is checked before anything is timed. The host has the shape of GPT-2 small and random weights: speed does
not depend on them. Prompts have CounterFact's length, one token a word. The last row makes edits of the pocket host and scores them.

Shape letters: B edits, C contexts, N rows, D hidden width, F MLP width.
"""

import dataclasses
import random
import statistics
import sys
from dataclasses import dataclass

import torch
from common import Common, Rates, Row, alternate, compare, measure_rates, settings, write
from edit_others import CONTEXTS, fine_tuned, together
from published import Published, Task
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from data.editors.prefix_cache import clean_pass
from data.editors.rome import BARE, Rome
from data.editors.value_search import DeltaSearch
from data.facts.fact import EditRequest, Fact, FactSet
from data.facts.load import load_facts
from data.facts.splits import draw_splits, plan_edits
from data.hosts import open_host
from data.keys.moments import second_moments
from data.produce.plan import prepare_editor
from data.produce.score import score
from decoder.config import RomeConfig, TrainConfig
from decoder.config.compose import compose
from decoder.host import Host
from decoder.utils.errors import run_command

AGREEMENT = 1e-4  # of the vectors, relative; float32
LAYERS = 3  # that MEMIT spreads facts over, up to the one that is edited otherwise
MINIATURE_POCKET = ["host.pocket.steps=3", "host.pocket.min_recall=0", "edits.steps=3", "edits.key_tokens=500"]


@dataclass
class Settings(Common):
    facts: int = 64  # of one host, for MEMIT, EMMET and AlphaEdit
    batch: int = 8  # edits together
    contexts: int = 20  # contexts a key is averaged over
    steps: int = 20  # forwards of a whole edit, as published
    checked_steps: int = 4  # forwards before the vectors are compared
    pocket_edits: int = 128  # edits made of the pocket host


def build(cfg: Settings, rng: random.Random) -> Task:
    """A host of random weights, and facts of random words about it."""
    small = {"n_embd": 32, "n_layer": 3, "n_head": 2, "vocab_size": 300} if cfg.miniature else {}
    shape = GPT2Config(**small)
    words = [f"w{n}" for n in range(shape.vocab_size)]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    torch.manual_seed(0)
    host = Host(GPT2LMHeadModel(shape), PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0"), name="gpt2 shape")
    layer = 1 if cfg.miniature else 8
    edits = RomeConfig(layer=layer, contexts=cfg.contexts, batch_size=cfg.batch, steps=cfg.checked_steps, lr=0.5, stop_loss=0.0, kl=0.0625)

    def some(least: int, most: int) -> str:
        return " ".join(rng.choices(words, k=rng.randint(least, most)))

    facts, requests = [], []
    for b in range(cfg.batch):
        prompt, paraphrases = (
            f"{some(3, 5)} {BARE} {some(1, 3)}",
            (f"{some(8, 10)} {BARE} {some(1, 3)}", f"{some(8, 10)} {BARE} {some(1, 3)}"),
        )
        for n in range(11):
            subject = some(2, 4)
            facts.append(Fact(f"P{b}-{n}", subject, f"P{b}", "relation", "kind", prompt, paraphrases, _said(host, prompt, subject)))
        requests.append(EditRequest(f"e{b}", facts[-1], some(1, 2)))
    contexts = [
        BARE,
        *(f"{some(length, length)} {BARE}" for _, length in zip(range(cfg.contexts - 1), [4, 9] * cfg.contexts, strict=False)),
    ]
    layers = [one for one in range(layer - LAYERS + 1, layer + 1) if one >= 0]
    moments = second_moments(host, layers, [some(20, 40) for _ in range(8 if cfg.miniature else 100)], 10**9)
    return Task(host, edits, Rome(host, layer, edits, moments[layer], contexts), FactSet(tuple(facts), "random", ""), requests, moments)


@torch.no_grad()
def _said(host: Host, prompt: str, subject: str) -> str:
    ids, _ = host.prompt_ids(prompt, subject)
    return host.tokenizer.decode(host.model(torch.tensor([ids]), logits_to_keep=1).logits[0, -1].argmax())


def difference(task: Task) -> float:
    """The largest relative distance between both ways' δ and ΔW, which must be rounding.

    Raises:
        ValueError: it is more.
    """
    ours, worst = task.rome.edit(task.requests), 0.0
    for b, request in enumerate(task.requests):
        plain = Published(task, request)
        for _ in range(task.cfg.steps - 1):
            plain.step()
        mean_F, bare_F = plain.keys()
        unit_F = task.rome.whiten(mean_F[None])[0]
        unit_F = unit_F / unit_F.norm()
        delta_D = plain.delta_D.detach().double()
        pairs = [(ours.delta_BD[b], delta_D), (ours.edits.key_BF[b], unit_F), (ours.edits.value_BD[b], delta_D / (bare_F @ unit_F))]
        worst = max(worst, *(float((own - theirs).norm() / theirs.norm()) for own, theirs in pairs))
    if not worst < AGREEMENT:
        raise ValueError(f"the published loop and ours differ by {worst:.1e}, expected {AGREEMENT:.0e} at most")
    return worst


def necessary(task: Task) -> float:
    """Operations of one step that nothing can spare: suffixes through the blocks above the edit and scored tokens through the head,
    forward and backward to the inputs."""
    host, jobs = task.host, task.rome.jobs(task.requests)[0]
    weights = sum(p.numel() for block in host.blocks[task.cfg.layer + 1 :] for p in block.parameters() if p.ndim == 2)
    suffixes = sum(row.suffix for job in jobs for row in job.rows)
    scored = sum(len(row.targets) for job in jobs for row in job.rows) + len(jobs)
    return 4.0 * (weights * suffixes + host.hidden_size * host.text_config.vocab_size * scored)


def phases(task: Task, cfg: Settings, rates: Rates) -> list[Row]:
    """Rows of the random host."""
    apart = difference(task)
    batch, unit = len(task.requests), "edits/s"
    plain = [Published(task, request) for request in task.requests]
    jobs = sorted(task.rome.jobs(task.requests)[0], key=lambda job: job.size)
    rows, groups = [row for job in jobs for row in job.rows], [n for job in jobs for n in range(len(job.rows))]
    suffixes = clean_pass(task.host, task.cfg.layer, rows, groups).above()
    search = DeltaSearch(suffixes, jobs, task.cfg)
    step = alternate({"published": lambda: [one.step() for one in plain], "ours": search.step}, cfg.repeats)
    ways = {
        "published": lambda: [one.keys() for one in plain],
        "ours": lambda: clean_pass(task.host, task.cfg.layer, rows, groups),
    }
    keys = alternate(ways, cfg.repeats)
    key_BF = suffixes.key_NF[:batch]
    made = task.rome.edit(task.requests).edits
    texts = [" ".join(f"w{n}" for n in range(20))] * (8 if cfg.miniature else 50)
    others = alternate(
        {
            "statistics": lambda: second_moments(task.host, [task.cfg.layer], texts, 10**9),
            "solve": lambda: task.rome.whiten(key_BF),
            "scoring": lambda: score(task.host, task.requests, {task.cfg.layer: made}, task.facts),
        },
        cfg.repeats,
    )
    whole = {way: [k + cfg.steps * s for k, s in zip(keys[way], step[way], strict=True)] for way in ("published", "ours")}
    what = f"{batch} edits, {cfg.contexts} contexts, layer {task.cfg.layer}"
    return [
        compare(
            "figure/edit",
            step["ours"],
            step["published"],
            amount=batch,
            unit="steps of an edit/s",
            floor_seconds=rates.floor_seconds(necessary(task)),
            note=f"{what}; one optimisation step; vectors differ by {apart:.0e}",
        ),
        compare("phase/statistics", others["statistics"], amount=20 * len(texts), unit="tokens/s", note="once a layer"),
        compare("phase/keys", keys["ours"], keys["published"], amount=batch, unit=unit, note="with all that is kept for the steps"),
        compare("phase/solve", others["solve"], amount=batch, unit=unit, note="the factorisation is made once a layer"),
        compare("phase/scoring", others["scoring"], amount=batch, unit=unit, note="13 prompts an edit, two objects each"),
        compare(
            "whole edit", whole["ours"], whole["published"], amount=batch, unit=unit, note=f"keys and {cfg.steps} steps, as timed above"
        ),
    ]


def pocket(cfg: Settings) -> Row:
    """Successful edits of the pocket host a second, value search and scoring; host and key statistics from the cache."""
    train = compose(TrainConfig, "train", MINIATURE_POCKET if cfg.miniature else [], page="produce")
    host, facts = open_host(train), load_facts(train.facts)
    requests = plan_edits(facts, draw_splits(facts, train.splits), train.splits, train.edits.seed)
    requests = requests[:: max(1, len(requests) // (4 if cfg.miniature else cfg.pocket_edits))]
    rome = prepare_editor(train, host, facts)
    found: list[float] = []

    def make() -> None:
        made = rome.edit(requests)
        scores = score(host, [requests[i] for i in made.kept], {train.edits.layer: made.edits}, facts)
        found.append(sum(scores["success"]))

    seconds = alternate({"ours": make}, cfg.repeats)["ours"]
    note = f"{len(requests)} edits with their scores, {statistics.median(found):.0f} of them successful"
    return compare("figure/edit-pocket", seconds, amount=statistics.median(found), unit="successful edits/s", note=note)


@run_command
def main(argv: list[str] | None = None) -> None:
    cfg = settings(Settings, sys.argv[1:] if argv is None else argv)
    if cfg.miniature:
        cfg = dataclasses.replace(cfg, batch=3, contexts=3, checked_steps=4, facts=4)
    rates = measure_rates(width=256 if cfg.miniature else 2048)
    rows = phases(build(cfg, random.Random(0)), cfg, rates)
    many = build(dataclasses.replace(cfg, batch=cfg.facts, contexts=max(cfg.contexts, CONTEXTS)), random.Random(1))
    rows += [*together(many, many.moments, cfg.repeats, cfg.steps), fine_tuned(many, cfg.repeats)]
    write("edit", [*rows, pocket(cfg)], cfg.out)


if __name__ == "__main__":
    main()
