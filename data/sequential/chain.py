"""Facts planted one after the other by one editor, each on what those before left, and the host looked at in between.

Shape letters: D hidden width, F MLP width.
"""

import copy
import random
from collections.abc import Iterator, Sequence
from math import isnan
from statistics import fmean
from typing import Any

from torch import Tensor

from data.editors import Editor
from data.facts.fact import EditRequest, FactSet
from data.produce.perplexity import perplexity
from data.produce.plan import prepare_editor
from data.produce.score import score
from data.sequential.kept import Reached
from decoder.config import TrainConfig
from decoder.dense import DenseEdit
from decoder.edit import LayerEdits
from decoder.host import Host

LOOKED_AT = 20  # of all facts that are planted, drawn by seed


def chosen(requests: Sequence[EditRequest], count: int, seed: int) -> list[EditRequest]:
    """The facts of a chain, in their order: drawn by seed, no subject twice.

    Raises:
        ValueError: there are fewer subjects.
    """
    shuffled = random.Random(f"sequence {seed}").sample(requests, len(requests))
    by_subject = {request.fact.subject: request for request in reversed(shuffled)}
    found = [request for request in shuffled if by_subject[request.fact.subject] is request]
    if len(found) < count:
        raise ValueError(f"at={count}: the edits that are planned are about {len(found)} subjects. Ask for fewer, or more edits (splits.*)")
    return found[:count]


def begun(cfg: TrainConfig, host: Host, facts: FactSet) -> tuple[Host, Editor]:
    """A copy of the host to plant into, and its editor.

    Raises:
        ValueError: what the editor refuses.
    """
    edited = copy.deepcopy(host)
    return edited, prepare_editor(cfg, edited, facts)


def chain(
    cfg: TrainConfig,
    host: Host,
    facts: FactSet,
    requests: Sequence[EditRequest],
    texts: Sequence[str],
    at: Sequence[int],
    reached: Reached | None = None,
    ready: tuple[Host, Editor] | None = None,
) -> Iterator[tuple[dict[str, Any], Reached]]:
    """What a host is like after so many facts, and the host; they are planted into W_V itself, of a copy of the host.

    Args:
        host: is left as it was.
        requests: in the order in which they are planted, `edits.facts_per_host` at a time; those that cannot be are passed over.
        texts: neutral ones.
        at: numbers of facts, ascending, multiples of `edits.facts_per_host`.
        reached: from where to go on, as a chain of the same arguments gave it; what follows is what would have followed there.
        ready: what `begun` gave, if it was called before.
    """
    (edited, editor), (layer,) = ready or begun(cfg, host, facts), cfg.edits.layers
    clean_DF, weight_DF = host.weight_DF(layer), edited.weight_DF(layer)
    clean = float(perplexity(host, texts))
    start, passed_over, each = 0, 0, cfg.edits.facts_per_host
    if reached:
        start, passed_over = reached.facts, reached.passed_over
        # Whether its shortcut holds an editor finds out once, at its first edit: on the clean host, as it did then.
        any(editor.edit([request], lambda count: None).kept for request in requests[:start])
        weight_DF.copy_(reached.weight_DF)
        if reached.kept_NF is not None:
            editor.kept = {layer: reached.kept_NF}
    for count in range(start + each, len(requests) + 1, each):
        delta_DF = planted(editor, requests[count - each : count], weight_DF)
        passed_over += each * (delta_DF is None)
        if delta_DF is not None:
            weight_DF += delta_DF.to(weight_DF)
        if count in at:
            now = Reached(count, passed_over, weight_DF.detach().cpu().clone(), getattr(editor, "kept", {}).get(layer))
            edit = DenseEdit(weight_DF.clone()[None])
            yield (
                {"facts": count, "passed_over": passed_over, "clean_perplexity": clean}
                | looked_at(host, layer, requests[:count], edit, facts, texts)
                | {"norm_ratio": float((weight_DF - clean_DF).norm() / clean_DF.norm())},
                now,
            )


def planted(editor: Editor, requests: Sequence[EditRequest], weight_DF: Tensor) -> Tensor | None:
    """The update that plants the next facts together; None if it cannot be made."""
    if len(requests) == 1:
        made = editor.edit(requests, lambda count: None)
    else:
        made = editor.edit_together([requests], lambda count: None)
    if not made.kept:
        return None
    if keep := getattr(editor, "keep", None):
        keep(requests)
    return made.matrices[0].to(weight_DF) - weight_DF if made.matrices else made.edits.delta()[0]


def looked_at(
    host: Host, layer: int, requests: Sequence[EditRequest], edit: DenseEdit, facts: FactSet, texts: Sequence[str]
) -> dict[str, Any]:
    """Scores of the first and the last fact and of some of all, and the perplexity, of a host with its edit."""
    some = random.Random(len(requests)).sample(requests, min(LOOKED_AT, len(requests)))
    asked = list({request.edit_id: request for request in (requests[0], requests[-1], *some)}.values())
    subjects = {request.fact.subject for request in requests}
    columns = score(host, asked, {layer: edit}, facts, owners=[0] * len(asked), others_edited=subjects)
    efficacy = dict(zip((request.edit_id for request in asked), columns["efficacy"], strict=True))
    return {
        "first": efficacy[requests[0].edit_id],
        "last": efficacy[requests[-1].edit_id],
        "asked": len(some),
        "efficacy": fmean(efficacy[request.edit_id] for request in some),
        "paraphrase": _mean(columns["paraphrase"]),
        "specificity": _mean(columns["specificity"]),
        "perplexity": float(perplexity(host, texts, LayerEdits({layer: edit}))),
    }


def _mean(values: Sequence[float]) -> float | None:
    found = [value for value in values if not isnan(value)]
    return fmean(found) if found else None
