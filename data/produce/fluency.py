"""How fluently an edited host writes: n-gram entropy of texts that it goes on with (Meng et al. 2022).

Repetition is what a broken host falls into, and what lowers the entropy. As published, a text is a prompt and its continuation, a hundred
tokens in all, drawn among the five likeliest; words are runs of letters or digits, and single other signs, which is near NLTK's splitting.

Shape letters: N texts, T positions run at a time, K likeliest tokens, V vocabulary.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from random import Random

import torch
from torch import Tensor
from transformers import DynamicCache

from data.keys.sampled import barred
from data.produce.likelihood import Planted, in_place
from decoder.host import Host

TEXT_TOKENS, TOP_K = 100, 5
ROWS = 128  # texts written together
WEIGHTS = {2: 1 / 3, 3: 2 / 3}  # of the entropies of pairs and of triples: the mean of 2/3 and 4/3 times them


def entropy(text: str) -> float:
    """Weighted entropy of a text's pairs and triples of words, in bits; papers give a hundred times it."""
    words = re.findall(r"\w+|[^\w\s]", text)
    return sum(weight * ngram_entropy(words, n) for n, weight in WEIGHTS.items())


def ngram_entropy(words: Sequence[str], n: int) -> float:
    """Entropy of the distribution of the n-grams that occur, in bits; 0 where there is none."""
    counts = Counter(zip(*(words[start:] for start in range(n)), strict=False))
    total = counts.total()
    return -sum(count / total * math.log2(count / total) for count in counts.values())


@torch.no_grad()
def written(host: Host, prompts: Sequence[list[int]], seeds: Sequence[str], planted: Planted | None = None) -> list[str]:
    """Texts of `TEXT_TOKENS` tokens, or as many as the host reads, that begin with prompts, which are shorter.

    Args:
        seeds: of the draws of each text.
        planted: edits, and the one that acts on each prompt.
    """
    texts = [""] * len(prompts)
    # Prompts of one length share a batch, so that nothing is padded.
    by_length: dict[int, list[int]] = defaultdict(list)
    for n, prompt in enumerate(prompts):
        by_length[len(prompt)].append(n)
    for alike in by_length.values():
        for start in range(0, len(alike), ROWS):
            batch = alike[start : start + ROWS]
            with in_place(host, planted, batch):
                columns = list(_columns(host, torch.tensor([prompts[n] for n in batch]), [Random(seeds[n]) for n in batch]))
            for n, drawn in zip(batch, torch.stack(columns, dim=1).tolist(), strict=True):
                texts[n] = host.tokenizer.decode(prompts[n] + drawn, skip_special_tokens=True)
    return texts


def longest_text(host: Host) -> int:
    return min(TEXT_TOKENS, host.longest_input or TEXT_TOKENS)


def _columns(host: Host, ids_NT: Tensor, generators: Sequence[Random]) -> Iterator[Tensor]:
    """One token (N) of each row after the other, until the texts are full."""
    cache, never = DynamicCache(), barred(host)
    for _ in range(longest_text(host) - ids_NT.shape[1]):
        hidden_NTD = host.model.base_model(input_ids=ids_NT.to(host.device), **host.with_cache(cache)).last_hidden_state
        # Drawn on the CPU, so that every device draws alike.
        logits_NV = host.head(hidden_NTD[:, -1]).float().cpu()
        logits_NV[:, never] = -torch.inf
        yield (drawn_N := _drawn(logits_NV, generators))
        ids_NT = drawn_N.unsqueeze(1)


def _drawn(logits_NV: Tensor, generators: Sequence[Random]) -> Tensor:
    """A token (N) of each row's likeliest, by the row's own generator: who shares a batch changes nothing."""
    best_NK, ids_NK = logits_NV.topk(min(TOP_K, logits_NV.shape[1]), dim=1)
    chance_N1 = torch.tensor([[generator.random()] for generator in generators])
    place_N1 = (best_NK.softmax(1).cumsum(dim=1) < chance_N1).sum(dim=1, keepdim=True).clamp(max=best_NK.shape[1] - 1)
    return ids_NK.gather(1, place_N1).squeeze(1)
