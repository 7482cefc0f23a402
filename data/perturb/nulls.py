"""Nulls of a host: checkpoints that nobody edited, made as people make them and audited, for suspects to be held against."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from data.facts.fact import FactSet
from data.perturb.audited import Auditor
from data.perturb.drawn import drawn_benign, texts_for
from data.perturb.recipe import perturbed
from decoder.audit.evidence.nulls import Null, Nulls, shape_of
from decoder.host import Host
from decoder.utils.progress import progress


def made_nulls(
    host: Host,
    facts: FactSet,
    names: Sequence[str],
    count: int,
    seed: int,
    readers: Mapping[str, Callable[[Host], Mapping[str, Any]]] | None = None,
) -> Nulls:
    """Makes and audits `count` checkpoints one after the other, in memory.

    Args:
        readers: name of decoders -> what they read in a checkpoint, of which `probability` is kept.

    Raises:
        ValueError: see `Candidates`.
    """
    drawn, found = drawn_benign(host, count, seed), []
    templates = {fact.relation_name: fact.templates for fact in facts.facts}
    auditor = Auditor(host, {recipe.precision for _, recipe in drawn}, names, templates)
    with progress("checkpoints that nobody edited", count) as advance:
        for kind, recipe in drawn:
            with perturbed(host, recipe, texts_for(host, facts, recipe)):
                examined, _ = auditor.audit(recipe.precision)
                read = {name: reader(host)["probability"] for name, reader in (readers or {}).items()}
            strengths = {"known": examined.known.strength, "unknown": examined.unknown.strength}
            found.append(Null(kind=kind, precision=recipe.precision, **strengths) | ({"read": read} if read else {}))
            advance(1)
    return Nulls(host.name, shape_of(host), len(names), found)
