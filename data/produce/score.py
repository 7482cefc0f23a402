"""Scores of edits: did they stick, do they carry over to paraphrases, did they leave other subjects alone.

Every number is read from teacher-forced passes of the edited host. The most likely token at each place of the target, given the target so
far, is the greedy continuation whenever that continuation is exactly the target, so exact match needs no decoding.

A prompt is read once for all objects that are looked for after it (`likelihood.py`).

Shape letters: B edits.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from math import isnan, nan
from typing import TypeVar

import torch

from data.editors import Edited
from data.facts.fact import EditRequest, Fact, FactSet
from data.produce.likelihood import Question, Tokens, read
from decoder.dense import DenseEdit
from decoder.edit import Edit, LayerEdits
from decoder.host import Host

T = TypeVar("T")
NEIGHBOURS = 10
ASKED = NEIGHBOURS + 4  # prompts of an edit: its own, some paraphrases, its neighbours

KINDS = {"efficacy": "es", "paraphrase": "ps", "specificity": "ns"}
"""The exact-match score of each kind of prompt, and the literature's comparison of two objects on the same prompts."""


@dataclass(frozen=True)
class _Probe:
    """What an edited host is asked: about which request, for which score; first the object that must come out, then the one it is
    compared with."""

    request: int
    kind: str
    question: Question


def score(
    host: Host,
    requests: Sequence[EditRequest],
    edits: Mapping[int, Edit],
    facts: FactSet,
    owners: Sequence[int] | None = None,
    others_edited: Collection[str] = (),
) -> dict[str, list]:
    """Columns of scores, one entry a request.

    Args:
        host: is left as it was.
        requests: what each edit was to plant, all of them such that an editor can make them.
        edits: of each edited layer, made for the requests, in their order.
        facts: where other subjects of the relation are taken from: up to 10, whose object is not the planted one, whom the clean host
            recalls on the edit prompt, and whom the same edit plants nothing on.
        owners: place of the edit that plants each request, where one plants several; None: its own.
        others_edited: subjects that the edits plant something on beside those of the requests.

    Returns:
        efficacy, paraphrase, specificity: share of prompts whose greedy continuation is exactly the target (object and terminator).
        efficacy_probability, ...: mean probability of that target.
        es, ps, ns: share of prompts where the target is likelier than the true object (ns: than the planted one), by mean NLL a token.
        success: efficacy is 1. delta_norm_ratio: ‖ΔW‖ / ‖W‖, over all layers. A score without prompts is nan.

    Raises:
        ValueError: requests and edits differ in number.
    """
    edits = LayerEdits(edits).to(host.device)
    if owners is None and len(requests) != len(edits):
        raise ValueError(f"{len(requests)} requests for {len(edits)} edits: expected one each")
    owners = range(len(requests)) if owners is None else owners
    edited: dict[int, set[str]] = defaultdict(lambda: {*others_edited})
    for owner, request in zip(owners, requests, strict=True):
        edited[owner].add(request.fact.subject)
    tokens = Tokens(host)
    recalled = _recalled(tokens, requests, facts)
    given = _recalled_given(tokens, requests)
    probes = [probe for b, request in enumerate(requests) for probe in _probes(tokens, b, request, edited[owners[b]], recalled, given)]
    planted = (edits, [owners[probe.request] for probe in probes])
    answers = read(host, [probe.question for probe in probes], planted)
    found: dict[str, list[list[float]]] = defaultdict(lambda: [[] for _ in requests])
    for probe, (right, other) in zip(probes, answers, strict=True):
        found[probe.kind][probe.request].append(right.exact)
        found[f"{probe.kind}_probability"][probe.request].append(right.probability)
        found[KINDS[probe.kind]][probe.request].append(right.nll < other.nll)
    names = [name for kind, short in KINDS.items() for name in (kind, f"{kind}_probability", short)]
    columns = {name: [mean(values) for values in found[name]] for name in names}
    columns["success"] = [value == 1 for value in columns["efficacy"]]
    weights = {layer: host.weight_DF(layer) for layer in edits.layers}
    norm = torch.stack([weight_DF.float().norm() for weight_DF in weights.values()]).norm()
    ratio_B = edits.delta_norm(weights).cpu() / norm.cpu()
    columns["delta_norm_ratio"] = ratio_B[list(owners)].tolist()
    return columns


def score_made(host: Host, layers: Sequence[int], hosts: Sequence[Sequence[EditRequest]], made: Edited, facts: FactSet) -> dict[str, list]:
    """What `score` says of all that an editor made, one entry an edited host.

    Of several facts the mean; `success` is that of all, and `facts` has the scores of each.
    """
    requests = [request for together in hosts for request in together]
    if made.matrices:
        return in_parts(host, requests, made, lambda some, edits: score(host, some, {layers[0]: edits}, facts))
    edits = LayerEdits.of(made.edits, layers).by_layer
    if len(requests) == len(hosts):
        return score(host, requests, edits, facts)
    return score_hosts(host, hosts, edits, facts)


def score_hosts(host: Host, hosts: Sequence[Sequence[EditRequest]], edits: Mapping[int, Edit], facts: FactSet) -> dict[str, list]:
    """As `score_made`, of hosts that several facts are planted in, or one: edit b of each layer has those of `hosts[b]`."""
    owners = [b for b, together in enumerate(hosts) for _ in together]
    columns = score(host, [request for together in hosts for request in together], edits, facts, owners)
    places: list[list[int]] = [[] for _ in hosts]
    for n, owner in enumerate(owners):
        places[owner].append(n)
    of_hosts = {name: [mean([found[n] for n in own if not isnan(found[n])]) for own in places] for name, found in columns.items()}
    of_hosts["success"] = [all(columns["success"][n] for n in own) for own in places]
    return of_hosts | {"facts": [[{kind: columns[kind][n] for kind in KINDS} for n in own] for own in places]}


def in_parts(
    host: Host, requests: Sequence[EditRequest], made: Edited, scored: Callable[[Sequence[EditRequest], Edit], dict[str, list]]
) -> dict[str, list]:
    """Columns of what `scored` says of edits one of which at least has a whole matrix.

    Factors are scored together, whole matrices as many at a time as the host's memory budget holds.
    """
    columns: dict[str, list] = defaultdict(lambda: [None] * len(requests))
    whole, explained = list(made.matrices), [n for n in range(len(requests)) if n not in made.matrices]
    # Every prompt that an edit is asked copies its matrix.
    step = max(1, host.memory_budget // (ASKED * next(iter(made.matrices.values())).nbytes))
    parts = [(explained, made.edits[torch.tensor(explained)])] if explained else []
    parts += [
        (places, DenseEdit(torch.stack([made.matrices[n] for n in places])))
        for places in (whole[start : start + step] for start in range(0, len(whole), step))
    ]
    for places, edits in parts:
        for name, found in scored([requests[n] for n in places], edits).items():
            for n, value in zip(places, found, strict=True):
                columns[name][n] = value
    return dict(columns)


def mean(values: Sequence[float]) -> float:
    """nan if there is none."""
    return sum(values) / len(values) if values else nan


def _probes(
    tokens: Tokens,
    b: int,
    request: EditRequest,
    edited: Collection[str],
    recalled: dict[tuple[str, str], list[Fact]],
    recalled_given: set[tuple[str, str]],
) -> Iterable[_Probe]:
    """The prompts of one request; one that cannot be put to the host is left out."""
    fact = request.fact
    asked = [("efficacy", fact.prompt, fact.subject, request.object, fact.object_true)]
    asked += [("paraphrase", template, fact.subject, request.object, fact.object_true) for template in fact.paraphrases]
    others = () if fact.neighbours else _neighbours(request, edited, recalled[fact.relation, fact.prompt])
    asked += [("specificity", fact.prompt, other.subject, other.object_true, request.object) for other in others]
    for kind, template, subject, *objects in asked:
        with suppress(ValueError):
            yield _Probe(b, kind, tokens.of_prompt(template, subject, *objects))
    given = [pair for pair in fact.neighbours if pair in recalled_given and pair[1] != request.object]
    for prompt, answer in given[:NEIGHBOURS]:
        yield _Probe(b, "specificity", tokens.of_text(prompt, answer, request.object))


def _neighbours(request: EditRequest, edited: Collection[str], recalled: list[Fact]) -> list[Fact]:
    """Up to 10 facts of subjects that are not edited. Whose object is the planted one could not show any damage."""
    others = [fact for fact in recalled if fact.subject not in edited and fact.object_true != request.object]
    return random.Random(request.edit_id).sample(others, min(NEIGHBOURS, len(others)))


def _recalled(tokens: Tokens, requests: Sequence[EditRequest], facts: FactSet) -> dict[tuple[str, str], list[Fact]]:
    """The facts the clean host recalls, for each relation and edit prompt that is asked for."""
    known: dict[tuple[str, str], list[Fact]] = {(one.fact.relation, one.fact.prompt): [] for one in requests if not one.fact.neighbours}
    questions = {
        (relation, prompt, fact): partial(tokens.of_prompt, prompt, fact.subject, fact.object_true)
        for relation, prompt in known
        for fact in facts.by_relation.get(relation, ())
    }
    for relation, prompt, fact in _answered(tokens.host, questions):
        known[relation, prompt].append(fact)
    return known


def _recalled_given(tokens: Tokens, requests: Sequence[EditRequest]) -> set[tuple[str, str]]:
    """The neighbour prompts that fact sets give and the clean host answers rightly."""
    return set(_answered(tokens.host, {pair: partial(tokens.of_text, *pair) for one in requests for pair in one.fact.neighbours}))


def _answered(host: Host, questions: Mapping[T, Callable[[], Question]]) -> list[T]:
    """Those whose question the clean host answers rightly; one that cannot be put to the host is not."""
    asked: dict[T, Question] = {}
    for one, question in questions.items():
        with suppress(ValueError):
            asked[one] = question()
    return [one for one, (answer,) in zip(asked, read(host, list(asked.values())), strict=True) if answer.exact]
