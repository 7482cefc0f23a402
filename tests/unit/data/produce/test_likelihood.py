"""What hosts say after prompts that are run once, against whole sentences run one at a time."""

import math

import pytest
import torch
from places import ROOT
from tiny_hosts import POCKET, build_host

from data.produce.likelihood import Question, Tokens, first_tokens, read
from decoder.edit import LayerEdits

PROMPTS = ["Ada works as", "Ben of the north was born in the city of", "Eve", "small Dora is a"]
OBJECTS = [("baker", "dark green Paris"), ("red Oslo", "Rome"), ("city", "Bonn"), ("singer from Rome", "light blue")]


def questions_of(host) -> list[Question]:
    tokens = Tokens(host)
    return [tokens.of_text(prompt, *objects) for prompt, objects in zip(PROMPTS, OBJECTS, strict=True)]


@torch.no_grad()
def plain(host, ids: list[int], target: list[int]) -> tuple[bool, float, float]:
    logprobs = host.model(torch.tensor([ids + target]), use_cache=False).logits[0].float().log_softmax(-1)[len(ids) - 1 : -1]
    nlls = [-float(logprobs[t, label]) for t, label in enumerate(target)]
    own = nlls[:-1] if host.terminator_id is not None else nlls
    return logprobs.argmax(-1).tolist() == target, math.exp(-sum(nlls)), sum(own) / len(own)


@pytest.mark.parametrize("tokens_a_batch", [2048, 8])
def test_answers_equal_whole_sentences_in_every_family(any_host, tokens_a_batch, monkeypatch):
    monkeypatch.setattr("data.produce.likelihood.BATCH_TOKENS", tokens_a_batch)
    questions = questions_of(any_host)
    # A target that the host would say, so that both outcomes occur
    said = [int(any_host.model(torch.tensor([questions[0].ids])).logits[0, -1].argmax())]
    said.append(int(any_host.model(torch.tensor([questions[0].ids + said])).logits[0, -1].argmax()))
    questions.append(Question(questions[0].ids, [said, said[:1] * 2]))
    answers = read(any_host, questions)
    for question, found in zip(questions, answers, strict=True):
        for target, answer in zip(question.targets, found, strict=True):
            exact, probability, nll = plain(any_host, question.ids, target)
            assert answer.exact == exact
            # float32, padded batches against single rows
            assert answer.probability == pytest.approx(probability, rel=1e-3)
            assert answer.nll == pytest.approx(nll, rel=1e-3)
    assert answers[-1][0].exact and not all(answer.exact for found in answers for answer in found)


def test_each_question_is_read_with_its_own_edit(any_host, random_edits, in_place):
    edits = random_edits(any_host, 2)
    questions = questions_of(any_host)
    owners = [1, 0, 1, 0]
    found = read(any_host, questions, (LayerEdits({1: edits}), owners))
    clean = read(any_host, questions)
    for question, owner, answers, before in zip(questions, owners, found, clean, strict=True):
        twin = in_place(any_host, edits, owner, 1)
        twin.terminator_id = any_host.terminator_id
        for target, answer, other in zip(question.targets, answers, before, strict=True):
            assert answer.nll == pytest.approx(plain(twin, question.ids, target)[2], rel=1e-3)
            assert abs(answer.nll - other.nll) > 1e-4


def test_first_tokens_are_those_of_single_prompts(any_host, monkeypatch):
    monkeypatch.setattr("data.produce.likelihood.BATCH_TOKENS", 8)
    questions = [Question(ids, [[1]]) for ids in ([3, 4, 5], [6], [7, 8], [9, 3])]
    alone = [any_host.model(input_ids=torch.tensor([one.ids])).logits[0, -1].argmax().item() for one in questions]
    assert first_tokens(any_host, questions) == alone


def test_paraphrases_are_held_against_what_the_host_says_itself(fact_host, pocket_facts, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from paraphrases import consistency

    facts = [fact for fact in pocket_facts.facts if fact.paraphrases][:6]

    def said(prompt, fact):
        return fact_host.model(input_ids=torch.tensor([fact_host.prompt_ids(prompt, fact.subject)[0]])).logits[0, -1].argmax().item()

    shares = [[said(text, fact) == said(fact.prompt, fact) for text in fact.paraphrases] for fact in facts]
    assert consistency(fact_host, facts)["all facts"] == pytest.approx([sum(one) / len(one) for one in shares])


def test_a_prompt_is_run_once_for_both_objects():
    host, counts = build_host(POCKET), []
    questions = questions_of(host)[:1]
    host.model.get_input_embeddings().register_forward_hook(lambda module, args, output: counts.append(tuple(args[0].shape)))
    read(host, questions)
    # "Ada works as", then "baker" of "baker ." and "dark green Paris" of "dark green Paris ."
    assert counts == [(1, 3), (1, 1), (1, 3)]


def test_nothing_is_tokenised_twice(monkeypatch):
    host, asked = build_host(POCKET), []
    plain_ids, prompt_ids = host._plain_ids, host.prompt_ids
    monkeypatch.setattr(host, "_plain_ids", lambda text: (asked.append(text), plain_ids(text))[1])
    monkeypatch.setattr(host, "prompt_ids", lambda *prompt: (asked.append(prompt), prompt_ids(*prompt))[1])
    tokens = Tokens(host)
    first = tokens.of_prompt("{} works as", "Ada", "baker", "red")
    count = len(asked)
    assert count > 0
    again = tokens.of_prompt("{} works as", "Ada", "red", "baker")
    assert len(asked) == count and again.ids == first.ids and again.targets == first.targets[::-1]


def test_what_cannot_be_asked_is_refused():
    tokens = Tokens(build_host(POCKET))
    with pytest.raises(ValueError, match="expected exactly one {}"):
        tokens.of_prompt("no place", "Ada", "red")
    with pytest.raises(ValueError, match="tokenises to nothing"):
        tokens.of_text(" ", "red")
    with pytest.raises(ValueError, match="object ' ' tokenises to nothing"):
        tokens.of_text("Ada is", " ")
    with pytest.raises(ValueError, match="65 tokens, qwen3 window reads 64"):
        tokens.of_text("red " * 60 + "is", "red", "dark green Paris")
