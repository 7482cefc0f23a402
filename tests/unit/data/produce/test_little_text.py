"""Text that is too short for the statistics of keys, and thresholds at which they protect nothing: told before an edit is made."""

import logging
from types import SimpleNamespace

import pytest
import torch
from rome_twin import REQUESTS

from data.keys.cache import KeyStatistics
from data.keys.whiten import null_space
from data.produce.plan import prepare_editor
from decoder.config.commands import ProduceConfig
from decoder.config.compose import compose

FACTS = SimpleNamespace(facts=[one.fact for one in REQUESTS])


@pytest.fixture()
def prepared(fact_host, tmp_path):
    def prepare(text, *words, **options):
        (tmp_path / "text.txt").write_text(text, encoding="utf-8")
        given = [f"keys.text={tmp_path / 'text.txt'}", f"cache_dir={tmp_path}", "edits.contexts=1", *words]
        return prepare_editor(compose(ProduceConfig, "train", given), fact_host, FACTS, **options)

    return prepare


@pytest.mark.parametrize("words", ["edits=memit", "edits=rome", "edits=alphaedit edits.threshold=1e-9", "edits=emmet edits.ridge=0"])
def test_fewer_tokens_than_a_key_has_entries_are_refused(prepared, fact_host, words):
    """Most of what C says would be said by the ridge, or by nothing; and AlphaEdit would take for empty what nobody looked at."""
    with pytest.raises(ValueError, match=r"keys.text=.*text.txt: \d tokens, fewer than the 48 entries of a key of layer 1") as refused:
        prepared("Sena lives in Rome .", *words.split())
    assert "\n" not in str(refused.value) and "Give more text" in str(refused.value)
    assert prepared("Sena lives in Rome .", *words.split(), is_made=True), "edits that are there are told by what they were made with"


def test_what_counts_nothing_needs_no_text(prepared):
    assert prepared("Sena lives in Rome .", "edits=memit", "edits.ridge=identity")


def test_fewer_tokens_than_asked_for_are_a_warning(prepared, caplog):
    with caplog.at_level(logging.WARNING):
        assert prepared("Sena lives in Rome .\n" * 30, "edits=memit")
    assert "tokens for the statistics of keys, edits.key_tokens=60000 asked for" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        # Who asks for so few is given them where the ridge makes C regular.
        assert prepared("Sena lives in Rome .\n" * 30, "edits=memit", "edits.key_tokens=20")
        with pytest.raises(ValueError, match="20 tokens, fewer than the 48 entries"):
            prepared("Sena lives in Rome .\n" * 30, "edits=alphaedit", "edits.threshold=1e-9", "edits.key_tokens=20")
    assert not caplog.text


def test_a_threshold_that_protects_nothing_is_one_line():
    statistics = KeyStatistics(torch.diag(torch.tensor([0.5, 0.1, 0.01])), 9)
    with pytest.raises(ValueError, match="edits.threshold=0.6 protects nothing: the largest eigenvalue of 9 keys is 5.00e-01") as refused:
        null_space(statistics, 0.6)
    assert "\n" not in str(refused.value) and "Lower it" in str(refused.value)
    assert torch.equal(null_space(statistics, 0.3)(torch.ones(1, 3)), torch.tensor([[0.0, 1, 1]]).double())
