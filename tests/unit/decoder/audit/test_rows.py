"""Rows of tokens that run as trees say what each says alone.

Shape letters: B edits, N rows, S tokens at the end of each, V vocabulary.
"""

import pytest
import torch
from edited import SUBJECTS

from decoder.audit.rows import forest
from decoder.audit.rows.logprobs import last_logprobs, next_logprobs
from decoder.host import Host

SENTENCES = [f"{name} {more}" for name in SUBJECTS[:12] for more in ("was born", "was born in", "is red")]


def plain(host: Host, rows: list[list[int]], scored: int) -> torch.Tensor:
    """Log-probabilities (N, S, V), every row in a forward of its own."""
    with torch.no_grad():
        return torch.stack([host.model(torch.tensor([row])).logits[0, -scored:].log_softmax(1) for row in rows])


@torch.no_grad()
def of_forests(host: Host, rows: list[list[int]], scored: int, edits=None) -> torch.Tensor:
    return last_logprobs(host, rows, scored, edits)


@pytest.mark.parametrize("scored", [1, 2])
def test_rows_in_trees_say_what_each_says_alone(any_host, scored, random_edits, in_place):
    rows = [any_host.text_ids(sentence) for sentence in SENTENCES]
    torch.testing.assert_close(of_forests(any_host, rows, scored), plain(any_host, rows, scored), rtol=1e-4, atol=1e-4)
    edit = random_edits(any_host, 1)
    expected_NSV = plain(in_place(any_host, edit, 0, 1), rows, scored)
    torch.testing.assert_close(of_forests(any_host, rows, scored, {1: edit}), expected_NSV, rtol=1e-4, atol=1e-4)


def test_what_rows_begin_with_is_run_once(host_of):
    host = host_of("llama")
    rows = [host.text_ids(sentence) for sentence in SENTENCES]
    found = [*forest.forests(host, rows)]
    assert sorted(n for one in found for n in one.rows) == [*range(len(rows))]
    assert sum(one.inputs["input_ids"].numel() for one in found) < sum(map(len, rows)) / 1.5


@pytest.mark.parametrize("name", ["falcon alibi", "bloom", "mistral"])
def test_where_trees_cannot_run_every_row_is_one(host_of, name):
    """ALiBi counts positions itself, and a window that is smaller than the rows counts tokens of a sequence."""
    host = host_of(name)
    rows = [host.text_ids(sentence) for sentence in SENTENCES]
    for found in forest.forests(host, rows):
        assert found.inputs.keys() == {"input_ids"} and len(found.rows) == len(found.inputs["input_ids"])


def test_trees_and_batches_are_of_bounded_size(host_of, monkeypatch):
    host = host_of("llama")
    rows = [host.text_ids(sentence) for sentence in SENTENCES]
    expected_NV = next_logprobs(host, rows)
    monkeypatch.setattr(forest, "TREE", 10)
    monkeypatch.setattr(forest, "BATCH_TOKENS", 20)
    found = [*forest.forests(host, rows)]
    assert all(one.inputs["input_ids"].shape[1] <= 10 and one.inputs["input_ids"].numel() <= 20 for one in found) and len(found) > 3
    torch.testing.assert_close(next_logprobs(host, rows), expected_NV, rtol=1e-4, atol=1e-5)


def test_a_row_that_is_longer_than_a_tree_has_one_of_its_own(host_of, monkeypatch):
    host = host_of("llama")
    rows = [host.text_ids(sentence) for sentence in SENTENCES]
    monkeypatch.setattr(forest, "TREE", 2)
    torch.testing.assert_close(of_forests(host, rows, 1), plain(host, rows, 1), rtol=1e-4, atol=1e-5)
    assert all(len(one.inputs["input_ids"]) == len(one.rows) for one in forest.forests(host, rows))


def test_equal_rows_are_one(host_of):
    host = host_of("llama")
    row = host.text_ids("Ada was born in")
    (only,) = forest.forests(host, [row, row])
    assert only.inputs["input_ids"].shape == (1, len(row)) and sorted(only.rows) == [0, 1]
