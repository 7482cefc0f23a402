"""Reading several facts of one host apart, with a decoder of single facts and no list of names.

    python benchmarks/apart.py decoder=RUN/decoder single=STORE store=STORE [hosts=90] [out=apart.jsonl]

`store` has hosts of several facts, `single` the edits that the decoder learnt from. The values of the facts of a host span a space of few
directions, and a direction that is one fact's value alone is read surely, as any other edit of its object. So directions are drawn, each
climbs to where the decoder is surest, and what is read there is weighed: a choice that is fitted on hosts of validation facts says which
are facts, and no two of them may lie along each other. A line of JSON a host is kept in `out=`: the same command goes on after a kill.

Shape letters: N directions, R facts of a host, D hidden width, F MLP width, C features.
"""

import json
import math
import random
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from audit_tables import read
from common import RESULTS, settings
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, normalize

from data.facts.load import load_pocket
from data.facts.splits import draw_splits
from data.store.store import EditStore
from decoder.answers import best_texts
from decoder.config import SplitsConfig
from decoder.config.commands import EvaluateConfig
from decoder.edit import RankOneEdit
from decoder.export.opened import open_decoder
from decoder.model import ObjectDecoder
from decoder.scores import wilson
from decoder.utils.errors import run_command
from decoder.utils.progress import progress
from decoder.utils.terminal import quiet

VALIDATION, TESTS = ("val/id", "val/new"), ("id", "ood", "unseen_object")
STARTS, STEPS, RATE = 128, 25, 0.08  # directions drawn, and how they climb
STRENGTHS = (0.35, 0.5, 0.7, 1.0, 1.4)  # times the usual, at which what is read is looked at again
KEYS = 4  # of training edits; the first is what directions are read with
APART = 2.0  # weight of how far a direction is from those that were chosen before, in nats
RIDGE = 1.0  # of the choice's weights, over all candidates


@dataclass
class Settings:
    decoder: str = ""  # exported, of single facts
    single: str = ""  # store of single facts, for a key and how long values are
    store: str = ""  # of hosts of several facts
    hosts: int = 90  # of each group of splits, at most
    seed: int = 0
    out: str = ""  # empty is benchmarks/results/apart.jsonl


class Reader:
    """Values, read by a decoder of single facts as edits of one key."""

    def __init__(self, decoder: ObjectDecoder, search: dict[str, int], key_KF: Tensor, length: float) -> None:
        self.decoder, self.search, self.key_KF, self.length = decoder, search, key_KF, length

    def edits(self, value_ND: Tensor, key: int = 0, strength: float = 1.0) -> RankOneEdit:
        return RankOneEdit(self.key_KF[key].expand(len(value_ND), -1), strength * self.length * normalize(value_ND, dim=1))

    def first(self, value_ND: Tensor, key: int = 0, strength: float = 1.0) -> Tensor:
        """Log-probabilities (N, V) of the first token."""
        first_NV = self.decoder(self.edits(value_ND, key, strength), torch.zeros(len(value_ND), 1, dtype=torch.long))[:, 0]
        return first_NV.float().log_softmax(1) - self.decoder.prior_V

    def read(self, value_ND: Tensor) -> list[tuple[str, float]]:
        return best_texts(self.decoder.host, self.decoder.read(self.edits(value_ND), **self.search))

    def climbed(self, basis_DR: Tensor, generator: torch.Generator) -> Tensor:
        """Unit directions (N, R) within a space where what is read is surest."""
        within_NR = normalize(torch.randn(STARTS, basis_DR.shape[1], generator=generator), dim=1).requires_grad_()
        optimiser = torch.optim.Adam([within_NR], lr=RATE)
        for _ in range(STEPS):
            optimiser.zero_grad()
            self.first(within_NR @ basis_DR.T).max(1).values.sum().neg().backward()
            optimiser.step()
        return normalize(within_NR.detach(), dim=1)

    @torch.no_grad()
    def candidates(self, basis_DR: Tensor, generator: torch.Generator) -> list[dict[str, Any]]:
        """What is read anywhere in a space: each object where it is surest, with how many directions came to it."""
        with torch.enable_grad():
            within_NR = self.climbed(basis_DR, generator)
        value_ND = within_NR @ basis_DR.T
        told, first_N = self.read(value_ND), self.first(value_ND).argmax(1)
        sure_SKN = [
            [self.first(value_ND, key, strength).exp().gather(1, first_N[:, None])[:, 0] for key in range(KEYS)] for strength in STRENGTHS
        ]
        count, best = Counter(text for text, _ in told), {}
        for n, (text, probability) in enumerate(told):
            if text not in best or probability > best[text]["probability"]:
                sure = [[float(one[n]) for one in own] for own in sure_SKN]
                best[text] = {"text": text, "probability": probability, "within": within_NR[n].tolist(), "sure": sure, "count": count[text]}
        return [*best.values()]


def features(host: dict[str, Any], one: dict[str, Any], spurious: Counter[str]) -> list[float]:
    """What a choice sees of a candidate; `spurious`: how many hosts of validation have its text where nobody planted it."""
    mean, least = ([math.log(of(own) + 1e-4) for own in one["sure"]] for of in (lambda own: sum(own) / len(own), min))
    # How long a key would be that this direction alone is written with.
    length = math.log(math.dist([0.0] * len(host["values"]), [a / s for a, s in zip(one["within"], host["values"], strict=True)]))
    seen = spurious[one["text"]] - (host["split"] == "validation" and one["text"] not in host["planted"])
    return [math.log(one["probability"] + 1e-6), math.log(one["count"]), *mean, *least, length, length**2, math.log(seen + 1)]


class Choice:
    """Which candidates are facts: a logistic regression, fitted on hosts of validation facts."""

    def __init__(self, hosts: Sequence[dict[str, Any]]) -> None:
        pairs = [(host, one) for host in hosts for one in host["candidates"]]
        self.spurious = Counter(one["text"] for host, one in pairs if one["text"] not in host["planted"])
        x_NC = torch.tensor([features(*pair, self.spurious) for pair in pairs], dtype=torch.float64)
        y_N = torch.tensor([one["text"] in host["planted"] for host, one in pairs], dtype=torch.float64)
        self.mean_C, self.spread_C = x_NC.mean(0), x_NC.std(0) + 1e-9
        self.weight_C = torch.zeros(x_NC.shape[1] + 1, dtype=torch.float64, requires_grad=True)
        optimiser = torch.optim.LBFGS([self.weight_C], max_iter=300)

        def loss() -> Tensor:
            optimiser.zero_grad()
            lost = binary_cross_entropy_with_logits(self._logits(x_NC), y_N, reduction="sum")
            lost = lost + RIDGE / 2 * self.weight_C[1:].square().sum()
            lost.backward()
            return lost

        optimiser.step(loss)

    def _logits(self, x_NC: Tensor) -> Tensor:
        return (x_NC - self.mean_C) / self.spread_C @ self.weight_C[1:] + self.weight_C[0]

    @torch.no_grad()
    def answers(self, host: dict[str, Any]) -> list[str]:
        """As many objects as the host has facts, none along the directions of those before it."""
        left, chosen_RN, texts = list(host["candidates"]), torch.zeros(len(host["values"]), 0), []
        while left and len(texts) < len(host["values"]):
            logit_N = self._logits(torch.tensor([features(host, one, self.spurious) for one in left], dtype=torch.float64))
            within_NR = torch.tensor([one["within"] for one in left])
            basis_RN = torch.linalg.qr(chosen_RN).Q
            rest_N = (within_NR - within_NR @ basis_RN @ basis_RN.T).norm(dim=1)
            best = int((logit_N + APART * (rest_N + 1e-6).log()).argmax())
            chosen_RN = torch.cat([chosen_RN, within_NR[best, :, None]], 1)
            texts.append(left.pop(best)["text"])
        return texts


def hosts_of(cfg: Settings, store: EditStore) -> list[tuple[int, str, list[str]]]:
    """Rows, their group of splits, and the objects of the facts that came out, in an order drawn."""
    plan, found = draw_splits(load_pocket(), SplitsConfig()), []
    for row, facts in enumerate(store.dataset["facts"]):
        splits = {plan.split_of(fact["relation"], fact["subject"], fact["object"]) for fact in facts}
        group = "validation" if splits <= {*VALIDATION} else next(iter(splits)) if len(splits) == 1 else None
        if group in ("validation", *TESTS):
            found.append((row, group, [fact["object"] for fact in facts if fact["efficacy"] == 1]))
    random.Random(cfg.seed).shuffle(found)
    kept = {group: [one for one in found if one[1] == group][: cfg.hosts] for group in ("validation", *TESTS)}
    return [one for own in kept.values() for one in own]


def run(cfg: Settings, out: Path) -> None:
    decoder, config = open_decoder(EvaluateConfig(decoder=cfg.decoder))
    single, store = EditStore(Path(cfg.single).expanduser()), EditStore(Path(cfg.store).expanduser())
    usual = single.edits(torch.arange(min(200, len(single))))
    reader = Reader(decoder, config["search"], normalize(usual.key_BF[:KEYS], dim=1), float(usual.norm().median()))
    done = {row["name"] for row in read([out])}
    left = [one for one in hosts_of(cfg, store) if str(one[0]) not in done]
    with out.open("a", encoding="utf-8") as lines, progress("hosts", len(left)) as advance:
        for row, group, planted in left:
            edit = store.edits(torch.tensor([row]))
            terms = len(store.dataset[row]["facts"])
            left_DR, values, _ = torch.linalg.svd(edit.value_BRD[0].T @ edit.key_BRF[0], full_matrices=False)
            told = {"name": str(row), "split": group, "planted": planted, "values": (values[:terms] / reader.length).tolist()}
            told["alone"] = [text for text, _ in reader.read(edit.value_BRD[0])]
            told["candidates"] = reader.candidates(left_DR[:, :terms], torch.Generator().manual_seed(cfg.seed + row))
            lines.write(json.dumps(told, ensure_ascii=False) + "\n")
            lines.flush()
            advance(1)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Of all planted objects those that are read: anywhere, among as many as there are facts by confidence and by choice, and alone."""
    choice = Choice([row for row in rows if row["split"] == "validation"])
    heads = ("", "hosts, facts", "chosen", "the surest", "anywhere", "each value alone")
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for split in ("validation", *TESTS):
        own = [row for row in rows if row["split"] == split]
        n = sum(len(row["planted"]) for row in own)
        sure = [[one["text"] for one in sorted(row["candidates"], key=lambda one: -one["probability"])] for row in own]
        ways = [[choice.answers(row) for row in own], [texts[: len(row["values"])] for texts, row in zip(sure, own, strict=True)]]
        hits = [
            sum(text in texts for row, texts in zip(own, way, strict=True) for text in row["planted"])
            for way in (*ways, sure, [row["alone"] for row in own])
        ]
        cells = [f"{hit / max(1, n):.3f} [{low:.3f}, {high:.3f}]" for hit in hits for low, high in [wilson(hit, n)]]
        lines.append(f"| {split} | {len(own)}, {n} | {' | '.join(cells)} |")
    return "\n".join(lines)


@run_command
def main(argv: list[str] | None = None) -> None:
    cfg = settings(Settings, sys.argv[1:] if argv is None else argv)
    quiet()
    torch.set_num_threads(1)
    out = Path(cfg.out) if cfg.out else RESULTS / "apart.jsonl"
    out.parent.mkdir(parents=True, exist_ok=True)
    run(cfg, out)
    print(table(read([out])))


if __name__ == "__main__":
    main()
