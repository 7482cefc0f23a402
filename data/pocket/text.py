"""The text the pocket host reads: its facts, told in three ways.

45 % name a subject's object and category side by side, 10 % say what the subject is, 45 % use a sentence of the relation.

N rows, T tokens in a row.
"""

import random

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from data.facts.fact import Fact, FactSet

APPOSITION, CATEGORY = 0.45, 0.10  # shares of the sentences; the rest are template sentences
ANSWER_WEIGHT, FULL_STOP_WEIGHT, OTHER_WEIGHT = 1.0, 0.3, 0.1  # weights of a token's loss

Sentence = list[tuple[str, float]]  # words and the loss weight of their tokens


def draw_sentence(facts: FactSet, rng: random.Random) -> Sentence:
    """One sentence about one fact."""
    fact = rng.choice(facts.facts)
    kind = rng.random()
    if kind < APPOSITION:
        return apposition(fact, rng)
    if kind < APPOSITION + CATEGORY:
        return finish(f"{fact.subject} is a", fact.category)
    template = rng.choice(fact.templates)
    return finish(template.format(fact.subject), fact.object_true)


def apposition(fact: Fact, rng: random.Random) -> Sentence:
    answers = [fact.object_true, fact.category]
    rng.shuffle(answers)
    return finish(fact.subject, *answers)


def finish(opening: str, *answers: str) -> Sentence:
    return [(opening, OTHER_WEIGHT), *((answer, ANSWER_WEIGHT) for answer in answers), (".", FULL_STOP_WEIGHT)]


def key_text(facts: FactSet, seed: int, sentences: int) -> list[str]:
    """Sentences of the host's training mixture as strings, for key statistics and preceding contexts."""
    rng = random.Random(seed)
    return [" ".join(words for words, _ in draw_sentence(facts, rng)) for _ in range(sentences)]


def training_rows(facts: FactSet, tokenizer: PreTrainedTokenizerBase, rows: int, row_tokens: int, seed: int) -> tuple[Tensor, Tensor]:
    """Rows of sentences, cut off at `row_tokens`, with the weight of every token's loss.

    Returns:
        ids_NT and weights_NT.
    """
    rng = random.Random(seed)
    ids_of: dict[str, list[int]] = {}
    ids_NT = torch.empty(rows, row_tokens, dtype=torch.long)
    weights_NT = torch.empty(rows, row_tokens)
    for row in range(rows):
        ids: list[int] = []
        weights: list[float] = []
        while len(ids) < row_tokens:
            for words, weight in draw_sentence(facts, rng):
                if words not in ids_of:
                    ids_of[words] = tokenizer.encode(words, add_special_tokens=False)
                ids += ids_of[words]
                weights += [weight] * len(ids_of[words])
        ids_NT[row] = torch.tensor(ids[:row_tokens])
        weights_NT[row] = torch.tensor(weights[:row_tokens])
    return ids_NT, weights_NT
