"""Scores of edits beyond efficacy, paraphrase and specificity, for those who ask for them (`edits.scores`)."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from contextlib import suppress
from math import isnan

from data.editors import Edited
from data.facts.fact import EditRequest
from data.produce.cost import Cost
from data.produce.fluency import entropy, longest_text, written
from data.produce.likelihood import Likelihood, Planted, Tokens, read
from data.produce.score import in_parts, mean
from decoder.edit import LayerEdits
from decoder.host import Host


def further_scores(
    host: Host, layers: Sequence[int], hosts: Sequence[Sequence[EditRequest]], made: Edited, asked: Collection[str], cost: Cost
) -> dict[str, list[float]]:
    """Columns of the scores asked for, one entry an edited host; of several facts the mean.

    Args:
        asked: some of `FURTHER`.
        cost: of making the edits, and those that could not be made.

    Returns:
        fluency: entropy of what the host writes about the subject (`fluency.py`), the mean over its prompts.
        portability, portability_probability, portability_tokens: of what follows from the planted object, by exact match of an answer, its
            probability, and the share of its tokens that come out under teacher forcing, as EasyEdit scores it. Of several prompts or
            answers the best counts; the mean over the kinds of consequences. nan where the fact set gives none.
        seconds, peak_memory: of making an edit, of its shard's edits the mean; GiB in use at most meanwhile.
    """
    requests = [request for together in hosts for request in together]
    owners = [b for b, together in enumerate(hosts) for _ in together]

    def scored(some: Sequence[EditRequest], planted: Planted) -> dict[str, list[float]]:
        columns = {"fluency": fluency(host, some, planted)} if "fluency" in asked else {}
        return columns | (portability(host, some, planted) if "portability" in asked else {})

    if made.matrices:
        alone = layers[0]
        found = in_parts(
            host, requests, made, lambda some, edits: scored(some, (LayerEdits({alone: edits}).to(host.device), range(len(some))))
        )
    else:
        found = scored(requests, (LayerEdits.of(made.edits, layers).to(host.device), owners))
    places: dict[int, list[int]] = defaultdict(list)
    for n, owner in enumerate(owners):
        places[owner].append(n)
    columns = {name: [mean([values[n] for n in own if not isnan(values[n])]) for own in places.values()] for name, values in found.items()}
    if "efficiency" in asked:
        each = cost.seconds / max(1, len(hosts) + len(made.skipped))
        columns |= {"seconds": [each] * len(hosts), "peak_memory": [cost.peak_memory] * len(hosts)}
    return columns


def fluency(host: Host, requests: Sequence[EditRequest], planted: Planted | None = None) -> list[float]:
    """Of each request: the mean over the fact's openings, or its sentences where the fact set gives no openings. nan if all are too long.

    Args:
        planted: edits, and the one that acts on each request; None: what the clean host writes.
    """
    prompts: list[list[int]] = []
    seeds, asked = [], []
    for b, request in enumerate(requests):
        fact = request.fact
        texts = fact.openings or [template.replace("{}", fact.subject) for template in fact.templates]
        for k, text in enumerate(texts):
            if 0 < len(ids := host.text_ids(text)) < longest_text(host):
                prompts.append(ids)
                seeds.append(f"fluency {request.edit_id} {k}")
                asked.append(b)
    found: list[list[float]] = [[] for _ in requests]
    for b, text in zip(asked, written(host, prompts, seeds, _of(planted, asked)), strict=True):
        found[b].append(entropy(text))
    return [mean(values) for values in found]


def portability(host: Host, requests: Sequence[EditRequest], planted: Planted | None = None) -> dict[str, list[float]]:
    """The three columns of that name; `planted` as of `fluency`."""
    tokens, questions = Tokens(host), []
    places: list[tuple[int, int]] = []
    for b, request in enumerate(requests):
        for c, consequence in enumerate(request.fact.consequences):
            for prompt in consequence.prompts:
                for answer in consequence.answers:
                    with suppress(ValueError):
                        questions.append(tokens.of_text(prompt, answer))
                        places.append((b, c))
    answers: dict[tuple[int, int], list[Likelihood]] = defaultdict(list)
    for place, (answer,) in zip(places, read(host, questions, _of(planted, [b for b, _ in places])), strict=True):
        answers[place].append(answer)
    columns = {}
    for name, field in (("portability", "exact"), ("portability_probability", "probability"), ("portability_tokens", "tokens")):
        best = {place: max(float(getattr(one, field)) for one in found) for place, found in answers.items()}
        columns[name] = [
            _over_kinds(request, {c: value for (owner, c), value in best.items() if owner == b}) for b, request in enumerate(requests)
        ]
    return columns


def _over_kinds(request: EditRequest, best: dict[int, float]) -> float:
    by_kind: dict[str, list[float]] = defaultdict(list)
    for c, value in best.items():
        by_kind[request.fact.consequences[c].kind].append(value)
    return mean([mean(values) for values in by_kind.values()])


def _of(planted: Planted | None, requests: Sequence[int]) -> Planted | None:
    """The edits of some requests, for questions one a request."""
    if planted is None:
        return None
    edits, owners = planted
    return edits, [owners[b] for b in requests]
