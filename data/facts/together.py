"""Which facts are planted in one host, where several are."""

import random
from collections.abc import Sequence

from data.facts.fact import EditRequest
from data.facts.splits import SPLITS, SplitPlan
from decoder.utils.files import short_hash


def grouped(requests: Sequence[EditRequest], plan: SplitPlan, count: int, seed: int) -> list[list[EditRequest]]:
    """Hosts of `count` facts each, dealt by seed: all of one split, of any of its relations, no subject twice in a host.

    What is left over and fills no host is left out.
    """
    if count == 1:
        return [[request] for request in requests]
    by_split: dict[str, list[EditRequest]] = {split: [] for split in SPLITS}
    for request in requests:
        by_split[plan.split_of(request.fact.relation, request.fact.subject, request.object)].append(request)
    full: list[list[EditRequest]] = []
    for split, found in by_split.items():
        random.Random(f"hosts {seed} {split}").shuffle(found)
        filling: list[list[EditRequest]] = []
        for request in found:
            host = next((host for host in filling if all(other.fact.subject != request.fact.subject for other in host)), None)
            if host is None:
                filling.append(host := [])
            host.append(request)
            if len(host) == count:
                filling.remove(host)
                full.append(host)
    return full


def refuse_repeated(requests: Sequence[EditRequest], called: Sequence[str]) -> None:
    """Raises ValueError if a subject is there twice in one host, where a fact would count twice, or two objects have one key.

    Args:
        called: what each request is named by.
    """
    seen: dict[str, str] = {}
    for request, name in zip(requests, called, strict=True):
        subject = request.fact.subject
        if subject in seen:
            raise ValueError(f"one host has the subject {subject!r} twice: {seen[subject]} and {name}. Leave one out")
        seen[subject] = name


def host_id(requests: Sequence[EditRequest]) -> str:
    """What the store calls an edited host: its edit, or the first of several and a hash of all."""
    first = requests[0].edit_id
    return first if len(requests) == 1 else f"{first}+{short_hash([request.edit_id for request in requests])}"
