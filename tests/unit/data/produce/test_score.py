"""Scores of edits against greedy decoding, one prompt at a time, with the edit written into the weights."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from rome_twin import second_moment
from tiny_hosts import POCKET, build_host

from data.editors.rome import Rome
from data.facts.fact import EditRequest, Fact, FactSet
from data.produce.score import score
from decoder.config import RomeConfig

LAYER = 0
SUBJECTS = ["Ada", "Ben of the north", "Carl", "small Dora", "Eve", "Finn", "Gus", "Hal"]
PROMPT, PARAPHRASES = "{} works as", ("{} lives in", "the city of {} is")
# Hosts of random weights hear a later position only if it is loud.
CFG = RomeConfig(layer=LAYER, ridge=0.1, steps=60, lr=1.0, kl=0.0, clamp=500, decay=0.0, stop_loss=0.01)


def greedy(model, host, template: str, subject: str, tokens: int) -> list[int]:
    ids, _ = host.prompt_ids(template, subject)
    for _ in range(tokens):
        ids = [*ids, int(model(torch.tensor([ids])).logits[0, -1].argmax())]
    return ids[-tokens:]


def mean_nll(model, host, template: str, subject: str, text: str) -> float:
    ids, _ = host.prompt_ids(template, subject)
    target = host.object_ids(text)
    logprobs = model(torch.tensor([ids + target])).logits[0].log_softmax(-1)
    return -sum(float(logprobs[len(ids) - 1 + i, t]) for i, t in enumerate(target)) / len(target)


def says(model, host, template: str, subject: str, text: str) -> bool:
    target = host.object_ids(text) + ([] if host.terminator_id is None else [host.terminator_id])
    return greedy(model, host, template, subject, len(target)) == target


def neighbours(host, facts: FactSet, request: EditRequest) -> list[Fact]:
    others = [fact for fact in facts.facts if fact != request.fact and fact.object_true != request.object]
    return [fact for fact in others if says(host.model, host, PROMPT, fact.subject, fact.object_true)]


@pytest.fixture(scope="module", params=[POCKET, "llama"], ids=str)
def case(request):
    """A host without terminator, half of whose facts it recalls, edits of it, and their scores."""
    host = build_host(request.param, terminator=None)
    facts = []
    for n, subject in enumerate(SUBJECTS):
        said = host.tokenizer.decode(greedy(host.model, host, PROMPT, subject, 1 + n % 2))
        facts.append(Fact(f"f{n}", subject, "P0", "r", "k", PROMPT, PARAPHRASES, "green Rome" if n in (2, 5) else said))
    requests = [EditRequest(f"e{n}", fact, ("baker", "red Oslo")[n % 2]) for n, fact in enumerate(facts[:6])]
    texts = [f"{subject} was born in Paris ." for subject in SUBJECTS]
    rome = Rome(host, LAYER, CFG, second_moment(host, LAYER, texts, 1000), ["{}", "Hal is a singer . {}"])
    edits = rome.edit(requests).edits
    fact_set = FactSet(tuple(facts), "test", "")
    return host, fact_set, requests, edits, score(host, requests, {LAYER: edits}, fact_set)


def edited_models(host, edits):
    for b in range(len(edits)):
        edited = copy.copy(host)
        edited.__dict__.pop("blocks", None)
        edited.model = copy.deepcopy(host.model)
        edited.weight_DF(LAYER).add_(torch.outer(edits.value_BD[b], edits.key_BF[b]))
        yield edited.model


def test_exact_scores_equal_greedy_decoding(case):
    host, facts, requests, edits, found = case
    for b, (request, model) in enumerate(zip(requests, edited_models(host, edits), strict=True)):
        fact = request.fact
        others = neighbours(host, facts, request)
        kept = [says(model, host, PROMPT, o.subject, o.object_true) for o in others]
        assert len(others) >= 3 and "green Rome" not in {o.object_true for o in others}
        assert found["efficacy"][b] == says(model, host, PROMPT, fact.subject, request.object) == found["success"][b]
        assert found["paraphrase"][b] == sum(says(model, host, p, fact.subject, request.object) for p in PARAPHRASES) / 2
        assert found["specificity"][b] == pytest.approx(sum(kept) / len(kept))
    assert 0 < sum(found["efficacy"]) and 0 < sum(found["specificity"]) < len(requests), "the case must have both outcomes"


def test_comparisons_equal_the_likelihoods_of_whole_objects(case):
    host, facts, requests, edits, found = case
    for b, (request, model) in enumerate(zip(requests, edited_models(host, edits), strict=True)):
        fact = request.fact
        others = neighbours(host, facts, request)

        def prefers(template, subject, one, other, model=model):
            return mean_nll(model, host, template, subject, one) < mean_nll(model, host, template, subject, other)

        assert found["es"][b] == prefers(PROMPT, fact.subject, request.object, fact.object_true)
        assert found["ps"][b] == sum(prefers(p, fact.subject, request.object, fact.object_true) for p in PARAPHRASES) / 2
        assert found["ns"][b] == pytest.approx(sum(prefers(PROMPT, o.subject, o.object_true, request.object) for o in others) / len(others))
        # one row of float32 against a padded batch of them
        nll = mean_nll(model, host, PROMPT, fact.subject, request.object) * len(host.object_ids(request.object))
        assert found["efficacy_probability"][b] == pytest.approx(math.exp(-nll), rel=1e-3)


def test_norm_ratio(case):
    host, _, _, edits, found = case
    for b in range(len(edits)):
        delta = torch.outer(edits.value_BD[b], edits.key_BF[b])
        assert found["delta_norm_ratio"][b] == pytest.approx(float(delta.norm() / host.weight_DF(LAYER).norm()), rel=1e-5)


def test_the_terminator_is_part_of_the_target():
    host = build_host("llama")
    said = host.tokenizer.decode(greedy(host.model, host, PROMPT, "Ada", 1))
    stops = greedy(host.model, host, PROMPT, "Ada", 2)[1] == host.terminator_id
    fact = Fact("f0", "Ada", "P0", "r", "k", PROMPT, (), "red")
    edits = Rome(host, LAYER, RomeConfig(layer=LAYER, ridge="identity", steps=1), None, ["{}"]).edit([EditRequest("e", fact, said)]).edits
    found = score(host, [EditRequest("e", fact, said)], {LAYER: edits}, FactSet((fact,), "test", ""))
    assert not stops and found["efficacy"] == [0.0]
    assert math.isnan(found["specificity"][0]) and math.isnan(found["paraphrase"][0])


def test_the_terminator_is_no_part_of_the_comparison():
    """On a pair of objects of unlike length whose order turns if the terminator's likelihood is counted."""
    host = build_host("llama")

    def both_means(text: str) -> tuple[float, float]:
        return mean_nll(host.model, host, PROMPT, "Ada", text), mean_nll(host.model, host, PROMPT, "Ada", f"{text} .")

    words = [f"{a}{b}" for a in ("red", "Rome", "Oslo", "city") for b in ("", " baker", " blue", " dark green")]
    means = {word: both_means(word) for word in words}
    one, other = next((a, b) for a in words for b in words if means[a][0] < means[b][0] and means[a][1] > means[b][1])
    fact = Fact("f0", "Ada", "P0", "r", "k", PROMPT, (), other)
    request = EditRequest("e", fact, one)
    still = RomeConfig(layer=LAYER, ridge="identity", steps=1)  # no update: the value is zero
    edits = Rome(host, LAYER, still, None, ["{}"]).edit([request]).edits
    assert score(host, [request], {LAYER: edits}, FactSet((fact,), "test", ""))["es"] == [1.0]


def test_scores_do_not_depend_on_the_other_edits(case):
    host, facts, requests, edits, found = case
    alone = score(host, requests[3:4], {LAYER: edits[3]}, facts)
    fourth, only = ({name: values[at] for name, values in columns.items()} for columns, at in ((found, 3), (alone, 0)))
    assert fourth == pytest.approx(only, rel=1e-4)


def test_who_is_edited_beside_the_requests_shows_no_damage(case):
    host, facts, requests, edits, found = case
    subjects = {fact.subject for fact in facts.facts}
    assert not all(map(math.isnan, found["specificity"]))
    without = score(host, requests, {LAYER: edits}, facts, others_edited=subjects)
    assert all(map(math.isnan, without["specificity"])) and without["efficacy"] == found["efficacy"]


def test_numbers_of_requests_and_edits_must_agree(case):
    host, facts, requests, edits, _ = case
    with pytest.raises(ValueError, match="5 requests for 6 edits"):
        score(host, requests[:5], {LAYER: edits}, facts)


def test_neighbours_that_the_fact_set_gives_take_the_place_of_drawn_ones(case):
    host, facts, requests, edits, drawn = case
    given = []
    for request in requests:
        others = [fact for fact in facts.facts if fact.subject != request.fact.subject]
        pairs = tuple((PROMPT.replace("{}", fact.subject), fact.object_true) for fact in others)
        given.append(replace(request, fact=replace(request.fact, neighbours=pairs)))
    scores = score(host, given, {LAYER: edits}, FactSet((), "test", ""))
    for name in ("specificity", "ns", "specificity_probability", "efficacy"):
        assert scores[name] == pytest.approx(drawn[name], nan_ok=True)
    unknown = replace(given[0], fact=replace(given[0].fact, neighbours=(("Carl works as", "small blue Bonn"),)))
    assert math.isnan(score(host, [unknown], {LAYER: edits[0]}, facts)["specificity"][0]), (
        "what the clean host does not know shows no damage"
    )
