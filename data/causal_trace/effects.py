"""What tracing many facts says: mean effects with intervals, by token group and layer, and the layer they point to.

Shape letters: N facts, P positions, G token groups, L layers.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import torch
from torch import Tensor

from data.causal_trace.trace import KINDS, Asked, Trace
from decoder.scores import mean_of

GROUPS = ("first subject token", "middle subject tokens", "last subject token", "first subsequent token", "further tokens", "last token")
"""A position belongs to one: a subject's only token is its last, and so is the only token behind it the prompt's."""
LAST_SUBJECT = GROUPS[2]


class Mean(TypedDict):
    """Over facts, with Student's interval, which two facts are needed for."""

    value: float
    ci95: list[float] | None


class Effects(TypedDict):
    """Indirect effects: by how much restoring raises the object's probability over that under noise."""

    clean: Mean
    corrupted: Mean
    total: Mean
    suggested_layer: int
    """Where restoring the MLP at the subject's last token helps most."""
    configured_layer: int
    ahead: Mean
    """By how much it helps more there than in the configured layer, fact by fact."""
    facts: dict[str, int]
    """Group -> how many facts have tokens of it."""
    effects: dict[str, dict[str, list[Mean]]]
    """Kind -> group -> a mean a layer. A fact's tokens of one group count as their mean."""


def group_of(asked: Asked, position: int) -> str:
    last = asked.subject[-1]
    if position in asked.subject:
        return LAST_SUBJECT if position == last else GROUPS[0] if position == asked.subject[0] else GROUPS[1]
    return GROUPS[5] if position == asked.prompt_length - 1 else GROUPS[3] if position == last + 1 else GROUPS[4]


def average_effects(asked: Sequence[Asked], traces: Sequence[Trace], configured: int) -> Effects:
    """The means over facts.

    Args:
        configured: layer beside which the suggested one is put.
    """
    effects_of: dict[str, dict[str, list[Tensor]]] = {kind: {group: [] for group in GROUPS} for kind in KINDS}
    for one, trace in zip(asked, traces, strict=True):
        groups = [group_of(one, position) for position in one.positions]
        for kind, restored_PL in trace.restored.items():
            for group in dict.fromkeys(groups):
                places = [place for place, found in enumerate(groups) if found == group]
                effects_of[kind][group].append(restored_PL[places].mean(dim=0).cpu() - trace.corrupted)
    at_subject_NL = torch.stack(effects_of["mlp"][LAST_SUBJECT])
    # As ROME chose its layer.
    suggested = int(at_subject_NL.mean(dim=0).argmax())
    return {
        "clean": mean_of([trace.clean for trace in traces]),
        "corrupted": mean_of([trace.corrupted for trace in traces]),
        "total": mean_of([trace.clean - trace.corrupted for trace in traces]),
        "suggested_layer": suggested,
        "configured_layer": configured,
        "ahead": mean_of((at_subject_NL[:, suggested] - at_subject_NL[:, configured]).tolist()),
        "facts": {group: len(found) for group, found in effects_of["hidden"].items()},
        "effects": {
            kind: {group: [mean_of(column) for column in torch.stack(found).T.tolist()] for group, found in by_group.items() if found}
            for kind, by_group in effects_of.items()
        },
    }


def shown(mean: Mean) -> str:
    """`0.312 [0.280, 0.344]`."""
    return f"{mean['value']:.3f}" + (f" [{mean['ci95'][0]:.3f}, {mean['ci95'][1]:.3f}]" if mean["ci95"] else "")


def summary(found: Mapping[str, Any]) -> str:
    """What the command prints of a result."""
    at = found["effects"]["mlp"][LAST_SUBJECT]
    suggested, configured = found["suggested_layer"], found["configured_layer"]
    beside = f"edits.layer={configured} has {shown(at[configured])}, less by {shown(found['ahead'])}"
    return (
        f"{found['traced']} of {found['asked']} facts were answered rightly and traced; {found['draws']} draws of noise, "
        f"windows of {found['window']} of {len(at)} layers\n"
        f"probability of the object: clean {shown(found['clean'])}, subject under noise {shown(found['corrupted'])}\n"
        f"suggested layer {suggested} (MLP at the last subject token, effect {shown(at[suggested])}); "
        + (f"edits.layer={configured}, too" if configured == suggested else beside)
    )
