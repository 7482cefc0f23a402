"""Means over facts, and the layer they point to.

Shape letters: P positions, L layers.
"""

import pytest
import torch
from scipy import stats

from data.causal_trace.effects import GROUPS, average_effects, group_of, shown, summary
from data.causal_trace.trace import KINDS, Asked, Trace
from decoder.scores import mean_of

LONG = Asked("a", list(range(10)), range(1, 5), [7, 8])  # a prompt of 9 tokens, "x S S S S x x x x"
SHORT = Asked("b", list(range(2)), range(1), [7])  # "S x"
ENDING = Asked("c", list(range(2)), range(2), [7])  # "S S"


def trace(asked: Asked, corrupted: float = 0.1, **rows) -> Trace:
    """Probabilities that are the corrupted one but in some places: kind -> (place, layer, what comes back)."""
    restored = {kind: torch.full((len(asked.positions), 3), corrupted) for kind in KINDS}
    for kind, places in rows.items():
        for place, layer, effect in places:
            restored[kind][place, layer] += effect
    return Trace(0.9, corrupted, restored)


def test_every_position_has_one_group():
    groups = [group_of(LONG, position) for position in LONG.positions]
    first, middle, last, subsequent, further, final = GROUPS
    assert groups == [first, middle, middle, last, subsequent, further, further, final]
    assert [group_of(SHORT, position) for position in SHORT.positions] == [last, final]
    assert [group_of(ENDING, position) for position in ENDING.positions] == [first, last]


def test_effects_are_means_within_a_fact_and_then_over_facts():
    traces = [
        trace(LONG, hidden=[(1, 0, 0.2), (2, 0, 0.6)], mlp=[(3, 1, 0.5)]),
        trace(SHORT, corrupted=0.2, mlp=[(0, 1, 0.1), (0, 2, 0.2)]),
        trace(ENDING, mlp=[(1, 2, 0.6)]),
    ]
    found = average_effects([LONG, SHORT, ENDING], traces, configured=1)
    first, middle, last, subsequent, further, final = GROUPS
    assert found["facts"] == {first: 2, middle: 1, last: 3, subsequent: 1, further: 1, final: 2}
    assert [mean["value"] for mean in found["effects"]["hidden"][middle]] == pytest.approx([0.4, 0, 0], abs=1e-7)
    assert found["effects"]["hidden"][middle][0]["ci95"] is None
    assert [mean["value"] for mean in found["effects"]["mlp"][last]] == pytest.approx([0, 0.2, 0.8 / 3], abs=1e-7)
    assert found["suggested_layer"] == 2 and found["ahead"]["value"] == pytest.approx(0.2 / 3, abs=1e-7)
    assert found["corrupted"]["value"] == pytest.approx(0.4 / 3) and found["total"]["value"] == pytest.approx(0.9 - 0.4 / 3)


def test_intervals_are_students():
    values = [0.1, 0.4, 0.2, 0.9]
    low, high = stats.t.interval(0.95, 3, loc=0.4, scale=stats.sem(values))
    assert mean_of(values) == {"value": pytest.approx(0.4), "ci95": [pytest.approx(low), pytest.approx(high)]}
    assert shown({"value": 0.25, "ci95": [0.1, 0.4]}) == "0.250 [0.100, 0.400]" and shown(mean_of([0.25])) == "0.250"


@pytest.mark.parametrize(
    ("configured", "said"), [(1, "suggested layer 1 (MLP at the last subject token, effect 0.500); edits.layer=1, too")]
)
def test_summary(configured, said):
    found = average_effects([LONG], [trace(LONG, mlp=[(3, 1, 0.5)])], configured)
    assert said in summary(found | {"traced": 1, "asked": 4, "draws": 2, "window": 1})
    other = average_effects([LONG], [trace(LONG, mlp=[(3, 1, 0.5)])], 0)
    assert "edits.layer=0 has 0.000, less by 0.500" in summary(other | {"traced": 1, "asked": 4, "draws": 2, "window": 1})
