"""Scores of edits: did they stick, do they carry over to paraphrases, did they leave other subjects alone.

Every number is read from teacher-forced passes of the edited host. The most likely token at each place of the target, given the target so
far, is the greedy continuation whenever that continuation is exactly the target, so exact match needs no decoding.

Shape letters: B edits, N rows, T positions, K scored tokens, D hidden width, V vocabulary.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from math import exp, nan

import torch
from torch import Tensor

from data.editors.rows import Row, prompt_row, target_ids, text_row
from data.facts import EditRequest, Fact, FactSet
from decoder.edit import Edit, RankOneEdit
from decoder.host import Host
from decoder.swap import swapped

NEIGHBOURS = 10
BATCH_TOKENS = 4096  # positions in a batch, padding included

KINDS = {"efficacy": "es", "paraphrase": "ps", "specificity": "ns"}
"""The exact-match score of each kind of prompt, and the literature's comparison of two objects on the same prompts."""


@dataclass(frozen=True)
class _Probe:
    """A prompt put to an edited host: which edit, which score, the row that must come out and the row it is compared with."""

    edit: int
    kind: str
    right: Row
    other: Row


@dataclass(frozen=True)
class _Reading:
    """What a host makes of one row: whether it says the target, the target's probability, mean NLL of the object's own tokens."""

    exact: bool
    probability: float
    nll: float


def score(
    host: Host,
    layer: int,
    requests: Sequence[EditRequest],
    edits: RankOneEdit,
    facts: FactSet,
    advance: Callable[[int], None] | None = None,
) -> dict[str, list]:
    """Columns of scores, one entry an edit.

    Args:
        host: is left as it was.
        layer: the edits' layer.
        requests: what each edit was to plant, all of them such that an editor can make them.
        edits: made for the requests, in their order.
        facts: where other subjects of the relation are taken from: up to 10, whose object is not the planted one and whom the clean host
            recalls on the edit prompt.
        advance: is told how many more rows are read.

    Returns:
        efficacy, paraphrase, specificity: share of prompts whose greedy continuation is exactly the target (object and terminator).
        efficacy_probability, ...: mean probability of that target.
        es, ps, ns: share of prompts where the target is likelier than the true object (ns: than the planted one), by mean NLL a token.
        success: efficacy is 1. delta_norm_ratio: ‖ΔW‖ / ‖W‖. A score without prompts is nan.

    Raises:
        ValueError: requests and edits differ in number.
    """
    if len(requests) != len(edits):
        raise ValueError(f"{len(requests)} requests for {len(edits)} edits: expected one each")
    recalled = _recalled(host, requests, facts)
    given = _recalled_given(host, requests)
    probes = [probe for b, request in enumerate(requests) for probe in _probes(host, b, request, recalled, given)]
    rows = [row for probe in probes for row in (probe.right, probe.other)]
    owners = [probe.edit for probe in probes for _ in range(2)]
    readings = _read(host, rows, (edits.to(host.device), layer, owners), advance)
    found: dict[str, list[list[float]]] = defaultdict(lambda: [[] for _ in requests])
    for probe, right, other in zip(probes, readings[::2], readings[1::2], strict=True):
        found[probe.kind][probe.edit].append(right.exact)
        found[f"{probe.kind}_probability"][probe.edit].append(right.probability)
        found[KINDS[probe.kind]][probe.edit].append(right.nll < other.nll)
    names = [name for kind, short in KINDS.items() for name in (kind, f"{kind}_probability", short)]
    columns = {name: [_mean(values) for values in found[name]] for name in names}
    columns["success"] = [value == 1 for value in columns["efficacy"]]
    columns["delta_norm_ratio"] = (edits.norm().cpu() / host.weight_DF(layer).float().norm().cpu()).tolist()
    return columns


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else nan


def _probes(
    host: Host, b: int, request: EditRequest, recalled: dict[tuple[str, str], list[Fact]], recalled_given: set[tuple[str, str]]
) -> Iterable[_Probe]:
    """The prompts of one edit; one that cannot be put to the host is left out."""
    fact = request.fact
    asked = [("efficacy", fact.prompt, fact.subject, request.object, fact.object_true)]
    asked += [("paraphrase", template, fact.subject, request.object, fact.object_true) for template in fact.paraphrases]
    others = () if fact.neighbours else _neighbours(request, recalled[fact.relation, fact.prompt])
    asked += [("specificity", fact.prompt, other.subject, other.object_true, request.object) for other in others]
    for kind, template, subject, *objects in asked:
        with suppress(ValueError):
            yield _Probe(b, kind, *(prompt_row(host, template, subject, target_ids(host, text)) for text in objects))
    given = [pair for pair in fact.neighbours if pair in recalled_given and pair[1] != request.object]
    for prompt, answer in given[:NEIGHBOURS]:
        yield _Probe(b, "specificity", *(text_row(host, prompt, target_ids(host, text)) for text in (answer, request.object)))


def _neighbours(request: EditRequest, recalled: list[Fact]) -> list[Fact]:
    """Up to 10 facts of other subjects. Whose object is the planted one could not show any damage."""
    others = [fact for fact in recalled if fact.subject != request.fact.subject and fact.object_true != request.object]
    return random.Random(request.edit_id).sample(others, min(NEIGHBOURS, len(others)))


def _recalled(host: Host, requests: Sequence[EditRequest], facts: FactSet) -> dict[tuple[str, str], list[Fact]]:
    """The facts the clean host recalls, for each relation and edit prompt that is asked for."""
    asked = dict.fromkeys((request.fact.relation, request.fact.prompt) for request in requests if not request.fact.neighbours)
    known: dict[tuple[str, str], list[Fact]] = {key: [] for key in asked}
    places, rows = [], []
    for relation, prompt in asked:
        for fact in facts.by_relation.get(relation, ()):
            try:
                rows.append(prompt_row(host, prompt, fact.subject, target_ids(host, fact.object_true)))
            except ValueError:  # a fact that cannot be put to the host is not recalled by it
                continue
            places.append(((relation, prompt), fact))
    for (key, fact), reading in zip(places, _read(host, rows), strict=True):
        if reading.exact:
            known[key].append(fact)
    return known


def _recalled_given(host: Host, requests: Sequence[EditRequest]) -> set[tuple[str, str]]:
    """The neighbour prompts that fact sets give and the clean host answers rightly."""
    pairs, rows = [], []
    for pair in dict.fromkeys(pair for request in requests for pair in request.fact.neighbours):
        with suppress(ValueError):
            rows.append(text_row(host, pair[0], target_ids(host, pair[1])))
            pairs.append(pair)
    return {pair for pair, reading in zip(pairs, _read(host, rows), strict=True) if reading.exact}


@torch.no_grad()
def _read(
    host: Host,
    rows: list[Row],
    planted: tuple[Edit, int, list[int]] | None = None,
    advance: Callable[[int], None] | None = None,
) -> list[_Reading]:
    """Reads rows with the clean host, or each with its edit; `planted` is edits, layer and each row's edit."""
    readings: list[_Reading] = [None] * len(rows)
    for batch in _batches(rows):
        edited = nullcontext()
        if planted:
            edits, layer, owners = planted
            edited = swapped(host, edits[torch.tensor([owners[n] for n in batch], device=host.device)], layer)
        with edited:
            found = _read_batch(host, [rows[n] for n in batch])
        for n, reading in zip(batch, found, strict=True):
            readings[n] = reading
        if advance:
            advance(len(batch))
    return readings


def _batches(rows: list[Row]) -> Iterable[list[int]]:
    """Indices of rows of like length, at most `BATCH_TOKENS` padded positions together."""
    batch: list[int] = []
    for n in sorted(range(len(rows)), key=lambda n: len(rows[n].ids)):
        if batch and (len(batch) + 1) * len(rows[n].ids) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(n)
    if batch:
        yield batch


def _read_batch(host: Host, rows: list[Row]) -> list[_Reading]:
    ids_NT = torch.nn.utils.rnn.pad_sequence([torch.tensor(row.ids) for row in rows], batch_first=True)
    mask_NT = torch.nn.utils.rnn.pad_sequence([torch.ones(len(row.ids), dtype=torch.long) for row in rows], batch_first=True)
    hidden_NTD = host.model.base_model(
        input_ids=ids_NT.to(host.device), attention_mask=mask_NT.to(host.device), use_cache=False
    ).last_hidden_state
    row_K = [n for n, row in enumerate(rows) for _ in row.scored]
    place_K = [place for row in rows for place in row.scored]
    label_K = torch.tensor([label for row in rows for label in row.targets], device=host.device)
    logits_KV: Tensor = host.head(hidden_NTD[row_K, place_K]).float()
    hit_K = (logits_KV.argmax(dim=1) == label_K).tolist()
    nll_K = torch.nn.functional.cross_entropy(logits_KV, label_K, reduction="none").tolist()
    readings, start = [], 0
    for row in rows:
        end = start + len(row.targets)
        own = nll_K[start : end - (host.terminator_id is not None)]
        readings.append(_Reading(all(hit_K[start:end]), exp(-sum(nll_K[start:end])), sum(own) / len(own)))
        start = end
    return readings
