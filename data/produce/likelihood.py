"""What a host says after a prompt: how likely each of some objects is there, and whether it would say it.

A prompt is run once and leaves its keys and values; each object runs on top of them. Prompts are padded on the left, so that what follows
stands next to them.

Shape letters: N prompts, P positions of a prompt, T positions of an object but its last, K scored tokens, V vocabulary.
"""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from math import exp
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from data.editors.prompts import check_length, target_ids
from decoder.edit import LayerEdits
from decoder.host import Host
from decoder.shortcuts import branched, changed
from decoder.swap import swapped

BATCH_TOKENS = 2048  # positions of prompts in a batch, padding included

Planted = tuple[LayerEdits, Sequence[int]]
"""Edited hosts, and the one that each question is put to."""


@dataclass(frozen=True)
class Question:
    """Tokens of a prompt and of the objects that are looked for after it, each with the host's terminator."""

    ids: list[int]
    targets: list[list[int]]


@dataclass(frozen=True)
class Likelihood:
    """Whether a host says a target, the target's probability, mean NLL of the object's own tokens, and the share of these that are the
    likeliest where they stand."""

    exact: bool
    probability: float
    nll: float
    tokens: float


class Tokens:
    """Questions to a host; prompts and objects that come again are not tokenised again."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._prompt = cache(host.prompt_ids)
        self._text = cache(host.text_ids)
        self._target = cache(lambda text: target_ids(host, text))

    def of_prompt(self, template: str, subject: str, *objects: str) -> Question:
        """The question that a filled template asks.

        Raises:
            ValueError: the template has no place for the subject, the subject or an object is empty, or all is longer than the host reads.
        """
        return self._checked(template, self._prompt(template, subject)[0], objects)

    def of_text(self, prompt: str, *objects: str) -> Question:
        """The question that a whole prompt asks.

        Raises:
            ValueError: the prompt or an object is empty, or all is longer than the host reads.
        """
        ids = self._text(prompt)
        if not ids:
            raise ValueError(f"prompt {prompt!r} tokenises to nothing")
        return self._checked(prompt, ids, objects)

    def _checked(self, prompt: str, ids: list[int], objects: Iterable[str]) -> Question:
        question = Question(ids, [self._target(text) for text in objects])
        check_length(self.host, prompt, len(ids) + max(map(len, question.targets)))
        return question


@torch.no_grad()
def read(host: Host, questions: Sequence[Question], planted: Planted | None = None) -> list[list[Likelihood]]:
    """An answer to each target of each question, of the clean host or of the host with the question's edit.

    Args:
        questions: all with as many targets.
    """
    answers: list[list[Likelihood]] = [None] * len(questions)
    for batch in _batches(questions):
        for n, answer in zip(batch, _read_batch(host, questions, batch, planted), strict=True):
            answers[n] = answer
    return answers


@torch.no_grad()
def first_tokens(host: Host, questions: Sequence[Question]) -> list[int]:
    """What the clean host says first after each prompt."""
    said = [0] * len(questions)
    for batch in _batches(questions):
        prompts = _Prompts.run(host, [questions[n].ids for n in batch])
        for n, token in zip(batch, prompts.first_NV.argmax(dim=1).tolist(), strict=True):
            said[n] = token
    return said


def _batches(questions: Sequence[Question]) -> Iterable[list[int]]:
    """Indices of questions of like length, at most `BATCH_TOKENS` padded positions together."""
    batch: list[int] = []
    for n in sorted(range(len(questions)), key=lambda n: len(questions[n].ids)):
        if batch and (len(batch) + 1) * len(questions[n].ids) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(n)
    if batch:
        yield batch


def _read_batch(host: Host, questions: Sequence[Question], batch: list[int], planted: Planted | None) -> list[list[Likelihood]]:
    asked = [questions[n] for n in batch]

    def edited(rows: Sequence[int]) -> AbstractContextManager[None]:
        return in_place(host, planted, [batch[row] for row in rows])

    with edited(range(len(asked))):
        prompts = _Prompts.run(host, [one.ids for one in asked])
    answers: list[list[Likelihood]] = [[] for _ in asked]
    for targets in zip(*(one.targets for one in asked), strict=True):
        scores = [[score] for score in _scores(prompts.first_NV, [target[0] for target in targets])]
        if rows := [n for n, target in enumerate(targets) if len(target) > 1]:
            with edited(rows):
                later = prompts.continued(rows, [targets[n] for n in rows])
            for n, score in later:
                scores[n].append(score)
        for n, found in enumerate(scores):
            answers[n].append(_answer(host, found))
    return answers


def in_place(host: Host, planted: Planted | None, questions: Sequence[int]) -> AbstractContextManager[None]:
    """Inside the block each row of a forward, a question, is run with the edit that acts on it."""
    if planted is None:
        return nullcontext()
    edits, owners = planted
    return swapped(host, edits[torch.tensor([owners[question] for question in questions], device=host.device)].by_layer)


@dataclass(frozen=True)
class _Prompts:
    """Prompts that have been run: log-probabilities of what comes first after each, real positions, keys and values."""

    host: Host
    first_NV: Tensor
    mask_NP: Tensor
    cache: DynamicCache

    @classmethod
    def run(cls, host: Host, rows: list[list[int]]) -> "_Prompts":
        longest = max(map(len, rows))
        ids_NP = torch.tensor([[0] * (longest - len(row)) + row for row in rows], device=host.device)
        mask_NP = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=host.device)
        cache = DynamicCache()
        hidden_NPD = host.model.base_model(
            input_ids=ids_NP,
            attention_mask=mask_NP,
            position_ids=(mask_NP.cumsum(dim=1) - 1).clamp(min=0),
            **host.with_cache(cache),
        ).last_hidden_state
        return cls(host, host.head(hidden_NPD[:, -1]).float().log_softmax(dim=1), mask_NP, cache)

    def continued(self, rows: list[int], targets: list[list[int]]) -> list[tuple[int, "_Score"]]:
        """The row and the score of every token but the first of these rows' targets."""
        device = self.host.device
        index, mask_NP = torch.tensor(rows, device=device), self.mask_NP[rows]
        ids_NT = pad_sequence([torch.tensor(target[:-1]) for target in targets], batch_first=True).to(device)
        hidden_NTD = self.host.model.base_model(
            input_ids=ids_NT,
            # Padding on the right is seen by nobody.
            attention_mask=torch.cat([mask_NP, mask_NP.new_ones(ids_NT.shape)], dim=1),
            position_ids=mask_NP.sum(dim=1, keepdim=True) + torch.arange(ids_NT.shape[1], device=device),
            **self.host.with_cache(changed(branched(self.cache), lambda rows: rows[index])),
        ).last_hidden_state
        places = [(n, t) for n, target in enumerate(targets) for t in range(len(target) - 1)]
        row_K, place_K = map(list, zip(*places, strict=True))
        logprobs_KV = self.host.head(hidden_NTD[row_K, place_K]).float().log_softmax(dim=1)
        scores = _scores(logprobs_KV, [label for target in targets for label in target[1:]])
        return [(rows[n], score) for n, score in zip(row_K, scores, strict=True)]


class _Score(NamedTuple):
    """Whether a token is the most likely one, and its negative log-likelihood."""

    hit: bool
    nll: float


def _scores(logprobs_KV: Tensor, labels: list[int]) -> list[_Score]:
    label_K = torch.tensor(labels, device=logprobs_KV.device)
    nll_K = -logprobs_KV.gather(1, label_K[:, None]).squeeze(1)
    return [_Score(*pair) for pair in zip((logprobs_KV.argmax(dim=1) == label_K).tolist(), nll_K.tolist(), strict=True)]


def _answer(host: Host, scores: list[_Score]) -> Likelihood:
    """Of a target's tokens, of which the host's terminator is the last."""
    own = scores[: len(scores) - (host.terminator_id is not None)]
    nll, hits = (sum(values) / len(own) for values in zip(*((one.nll, one.hit) for one in own), strict=True))
    return Likelihood(all(one.hit for one in scores), exp(-sum(one.nll for one in scores)), nll, hits)
