"""How often a clean host says after a paraphrase what it says after the edit prompt: what paraphrase scores of edits stand beside.

    python benchmarks/paraphrases.py [host=smollm2-135m] [any setting of train.py]

A fact counts once, with all its paraphrases; first tokens are compared.

Shape letters: N prompts.
"""

import sys
from math import nan
from statistics import mean, stdev

import torch

from data.facts.fact import Fact
from data.facts.load import load_facts
from data.hosts import open_host
from data.produce.likelihood import Tokens, first_tokens
from decoder.config import TrainConfig
from decoder.config.compose import compose
from decoder.host import Host
from decoder.utils.errors import run_command


@torch.no_grad()
def consistency(host: Host, facts: list[Fact]) -> dict[str, list[float]]:
    """Of all facts, and of those whose true object the host says after the edit prompt: the share of paraphrases that it answers alike."""
    tokens, asked = Tokens(host), [(n, prompt) for n, fact in enumerate(facts) for prompt in (fact.prompt, *fact.paraphrases)]
    said_N = first_tokens(host, [tokens.of_prompt(prompt, facts[n].subject, facts[n].object_true) for n, prompt in asked])
    said: list[list[int]] = [[] for _ in facts]
    for (n, _), first in zip(asked, said_N, strict=True):
        said[n].append(first)
    alike = [mean(other == first for other in others) for first, *others in said]
    known = [share for share, fact, (first, *_) in zip(alike, facts, said, strict=True) if first == host.object_ids(fact.object_true)[0]]
    return {"all facts": alike, "facts it knows": known}


@run_command
def main(argv: list[str] | None = None) -> None:
    cfg = compose(TrainConfig, "train", ["host=smollm2-135m", *(sys.argv[1:] if argv is None else argv)])
    facts = [fact for fact in load_facts(cfg.facts).facts if fact.paraphrases]
    for name, shares in consistency(open_host(cfg), facts).items():
        error = stdev(shares) / len(shares) ** 0.5 if len(shares) > 1 else float("nan")
        print(f"{name:15s} {mean(shares or [nan]):.3f} of paraphrases as the edit prompt, error {error:.3f}, n {len(shares)} facts")


if __name__ == "__main__":
    main()
