"""Scores and intervals against published and hand-made values.

Shape letters: B edits, T object tokens, V vocabulary, M prompt vectors, K keys, F MLP width.
"""

import statistics

import pandas as pd
import pytest
import torch

from decoder.batch import PADDING
from decoder.beam import Beams
from decoder.metrics import first_token_correct
from decoder.scores import cluster_interval, exact_match, grouped_scores, share, split_scores, wilson
from decoder.training.losses import gain_spread, key_spread, object_loss

END = 9


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_equals_published_intervals(hits, n, low, high):
    """Newcombe 1998, table I, method 3 (score interval without continuity correction); four digits are printed."""
    assert share([True] * hits + [False] * (n - hits)) == {"value": hits / n, "ci95": wilson(hits, n)}
    assert wilson(hits, n) == pytest.approx([low, high], abs=6e-5)


def test_cluster_interval_knows_that_answers_of_a_cluster_agree():
    correct = [cluster % 2 == 0 for cluster in range(20) for _ in range(15)]
    clusters = [f"s{cluster}" for cluster in range(20) for _ in range(15)]
    low, high = cluster_interval(correct, clusters)
    narrow_low, narrow_high = wilson(sum(correct), len(correct))
    # 20 independent answers instead of 300: sqrt(15) = 3.9 times as wide.
    assert (high - low) / (narrow_high - narrow_low) == pytest.approx(15**0.5, rel=0.15)
    assert low < 0.5 < high


def test_cluster_interval_of_independent_answers_is_near_wilson():
    correct = [i % 4 == 0 for i in range(300)]
    found = cluster_interval(correct, [str(i) for i in range(300)])
    assert found == pytest.approx(wilson(sum(correct), len(correct)), abs=0.015)
    assert found == cluster_interval(correct, [str(i) for i in range(300)]), "drawn by a fixed seed"


def test_cluster_interval_weighs_clusters_by_their_size():
    low, high = cluster_interval([True] * 99 + [False], ["a"] * 99 + ["b"])
    assert (low, high) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("predicted", "planted", "expected"),
    [
        ("New York", "New York", True),
        ("new  york", "New York", True),
        ("Sa\u0303o Paulo", "S\u00e3o Paulo", True),
        ("STRASSE", "Straße", True),
        ("New", "New York", False),
        ("New York City", "New York", False),
        ("York New", "New York", False),
        ("Sao Paulo", "S\u00e3o Paulo", False),
        ("UK", "United Kingdom", False),
        ("", "Oslo", False),
    ],
)
def test_exact_match_is_equality_of_texts(predicted, planted, expected):
    assert exact_match(predicted, planted) is expected


def test_the_first_token_is_that_of_the_most_probable_token_and_not_of_the_best_object():
    found = Beams([[[4, 5], [6]]], torch.ones(1, 2), torch.eye(8)[[6]])
    assert first_token_correct(found, torch.tensor([[4, 5, END]])) == [False]
    assert first_token_correct(found, torch.tensor([[6, END, PADDING]])) == [True]


def test_loss_is_the_mean_over_all_tokens_but_padding():
    logits_BTV = torch.randn(2, 3, 10, generator=torch.Generator().manual_seed(0))
    planted_BT = torch.tensor([[4, 5, END], [7, END, PADDING]])
    logprobs = logits_BTV.log_softmax(-1)
    said = [logprobs[b, t, planted_BT[b, t]] for b in range(2) for t in range(3) if planted_BT[b, t] != PADDING]
    torch.testing.assert_close(object_loss(logits_BTV, planted_BT), -torch.stack(said).mean())
    assert object_loss(logits_BTV.bfloat16(), planted_BT).dtype == torch.float32


def test_gain_spread_is_the_variance_of_gains_over_their_squared_mean():
    key_KF = torch.randn(7, 5, generator=torch.Generator().manual_seed(0)) + 1
    input_MF = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
    gains = [[sum(float(x * k) for x, k in zip(row, key, strict=True)) for key in key_KF] for row in input_MF]
    variances = [statistics.variance(gain) for gain in gains]
    means = [statistics.mean(gain) for gain in gains]
    expected = sum(variances) / sum(mean**2 for mean in means)
    assert float(gain_spread(input_MF, key_spread(key_KF))) == pytest.approx(expected, rel=1e-5)
    assert float(gain_spread(4 * input_MF, key_spread(key_KF))) == pytest.approx(expected, rel=1e-5), "it is a share: scale is free"


def test_an_even_prompt_has_no_gain_spread():
    key_KF = torch.tensor([[1.0, 3.0], [1.0, -2.0], [1.0, 0.5]])
    assert float(gain_spread(torch.tensor([[2.0, 0.0], [0.0, 0.0]]), key_spread(key_KF))) == 0


READINGS = pd.DataFrame(
    {
        "first_token": [True, True, False, True],
        "exact_match": [True, False, False, True],
        "subject": ["Ada", "Ada", "Ben", "Ben"],
        "relation": ["P1", "P1", "P2", "P2"],
        "seen_kind": [True, True, False, False],
    }
)


@pytest.mark.parametrize(
    ("split", "clusters"),
    [("id", "subject"), ("ood", "relation"), ("unseen_object", "subject"), ("val/id", "subject"), ("val/new", "relation")],
)
def test_split_scores(split, clusters):
    readings = READINGS.assign(relation=["P1", "P2", "P2", "P1"])
    scores = split_scores(readings, split)
    assert scores["n"] == 4 and scores["first_token"]["value"] == 0.75 and scores["exact_match"]["value"] == 0.5
    assert scores["exact_match"]["ci95"] == wilson(2, 4)
    assert scores["exact_match"]["ci95_cluster"] == cluster_interval(readings["exact_match"], readings[clusters])


def test_grouped_scores():
    assert grouped_scores(READINGS, "relation") == {
        "P1": {"n": 2, "exact_match": 0.5, "first_token": 1.0, "seen_kind": True},
        "P2": {"n": 2, "exact_match": 0.5, "first_token": 0.5, "seen_kind": False},
    }
