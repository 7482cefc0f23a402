"""Text that hosts write themselves: by seed, to a budget, cut at special tokens, kept in the cache.

Shape letters: T positions, V vocabulary.
"""

import json
from dataclasses import replace

import pytest
import torch
from tokenizers import Regex, decoders, normalizers

import data.keys.sampled
import data.keys.text
from data.keys.sampled import context_texts, first_of, sampled_texts
from data.keys.text import key_texts
from data.produce.plan import prepare_editor, requested, store_path
from decoder.config import KeysConfig, RomeConfig, TrainConfig


def count(host, texts):
    return sum(len(host.text_ids(text)) for text in texts)


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3 window", "bloom"])
def test_texts_follow_from_the_seed(host_of, name):
    host = host_of(name)
    texts = sampled_texts(host, 600, 0, 5)
    assert texts == sampled_texts(host, 600, 0, 5) != sampled_texts(host, 600, 1, 5)
    assert texts != sampled_texts(host, 600, 0, None) and len(set(texts)) > 5
    assert 600 <= count(host, texts) and count(host, texts[:-1]) < 600
    assert sampled_texts(host, 200, 0, 5) == first_of(host, texts, 200) == texts[: len(first_of(host, texts, 200))]


def test_more_than_a_batch(host_of, monkeypatch):
    monkeypatch.setattr(data.keys.sampled, "ROWS", 4)
    texts = sampled_texts(host_of("llama"), 1000, 0, None)
    assert count(host_of("llama"), texts) >= 1000 and len(set(texts)) > len(texts) / 2


def test_every_family_writes(any_host, weights_hash, hooks, monkeypatch):
    monkeypatch.setattr(data.keys.sampled, "LENGTH", 12)
    before = weights_hash(any_host.model)
    assert sampled_texts(any_host, 100, 0, None)
    assert weights_hash(any_host.model) == before and hooks(any_host.model) == 0


def test_a_token_is_drawn_by_its_probability_after_all_before_it(host_of, monkeypatch):
    """Greedy, on a cache, against whole forwards: rows are the likeliest continuation of their opening."""
    host = host_of("llama")
    monkeypatch.setattr(data.keys.sampled, "LENGTH", 10)
    rows = torch.stack(list(data.keys.sampled._columns(host, torch.Generator().manual_seed(0), 1, lambda: None)), dim=1)
    assert rows.shape == (data.keys.sampled.ROWS, 9) and len(rows[:, 0].unique()) > 5
    for row_T in rows.unique(dim=0):
        with torch.no_grad():
            logits_TV = host.model(torch.cat([torch.tensor([host.terminator_id]), row_T])[None]).logits[0]
        assert row_T[1:].tolist() == logits_TV[1:-1].argmax(1).tolist()


def test_shares_of_tokens_are_their_probabilities(host_of, monkeypatch):
    host = host_of("gpt2")
    monkeypatch.setattr(data.keys.sampled, "LENGTH", 3)
    monkeypatch.setattr(data.keys.sampled, "ROWS", 20000)
    first, second = data.keys.sampled._columns(host, torch.Generator().manual_seed(0), None, lambda: None)
    start = int(first.mode().values)
    with torch.no_grad():
        share_V = host.model(torch.tensor([[host.terminator_id, start]])).logits[0, -1].softmax(0)
    drawn = second[first == start]
    assert len(drawn) > 300
    counted_V = torch.bincount(drawn, minlength=len(share_V)) / len(drawn)
    # Three standard deviations of the likeliest tokens' shares.
    assert (counted_V - share_V).abs().max() < 3 * (0.25 / len(drawn)) ** 0.5


def test_a_special_token_ends_a_row_and_a_terminator_a_text(new_host):
    host = new_host("llama", terminator=".")
    row = host.tokenizer.convert_tokens_to_ids(["Ada", ".", "is", "<bos>", "Ada", "<pad>"])
    assert list(data.keys.sampled._texts(host, row)) == ["Ada . is"]
    assert list(data.keys.sampled._texts(host, row[:3])) == ["Ada . is"] and not list(data.keys.sampled._texts(host, row[3:]))
    host.tokenizer.eos_token = "."
    assert list(data.keys.sampled._texts(host, row)) == ["Ada .", "is"]


def test_a_host_whose_tokens_spell_nothing_is_refused(new_host, monkeypatch):
    host = new_host("gpt2")
    monkeypatch.setattr(data.keys.sampled, "LENGTH", 4)
    host.tokenizer.backend_tokenizer.decoder = decoders.Replace(Regex(".*"), "")
    with pytest.raises(ValueError, match="keys.text=self: gpt2 writes no text"):
        sampled_texts(host, 10, 0, None)


def test_rows_of_the_head_that_are_no_token_are_never_drawn(new_host):
    host = new_host("llama", vocab_size=200)
    assert sampled_texts(host, 300, 0, None)
    assert data.keys.sampled.barred(host) == list(range(len(host.tokenizer), 200))


def test_rows_begin_as_the_tokenizer_begins(new_host, monkeypatch):
    host = new_host("llama", bos=True)
    starts = data.keys.sampled._starts(host, torch.Generator().manual_seed(0))
    assert starts.shape == (data.keys.sampled.ROWS, 2) and set(starts[:, 0].tolist()) == {host.tokenizer.bos_token_id}
    assert not set(starts[:, 1].tolist()) & set(host.tokenizer.all_special_ids)
    texts = sampled_texts(host, 600, 0, None)
    assert all("bos" not in text for text in texts) and max(len(text.split()) for text in texts) > 5
    monkeypatch.setattr(data.keys.sampled, "OPENINGS", ["Ada", "Nobody"])
    starts = data.keys.sampled._starts(host, torch.Generator().manual_seed(0))
    assert set(starts[:, 1].tolist()) == {host.tokenizer.convert_tokens_to_ids("Ada")}, "words that the host does not know open nothing"


@pytest.mark.parametrize("terminator", [".", None])
def test_without_a_beginning_rows_begin_behind_an_end(new_host, terminator):
    host = new_host("llama", terminator=terminator)
    host.tokenizer.backend_tokenizer.normalizer = normalizers.Replace("\n", "of")
    before = host.tokenizer.convert_tokens_to_ids(["." if terminator else "of"])
    starts = data.keys.sampled._starts(host, torch.Generator().manual_seed(0))
    assert starts[:, :-1].unique(dim=0).tolist() == [before] and len(starts[:, -1].unique()) > 5


def test_texts_are_kept_by_host_and_settings(host_of, tmp_path, monkeypatch, caplog):
    texts = sampled_texts(host_of("llama"), 300, 0, 5, tmp_path)
    (file,) = (tmp_path / "keys").glob("*/sampled-*.json")
    assert file.parent.name == f"llama-{host_of('llama').fingerprint}" and json.loads(file.read_text()) == texts
    drawn = data.keys.sampled._until
    asked = []
    monkeypatch.setattr(data.keys.sampled, "_until", lambda *settings: asked.append(settings) or drawn(*settings))
    assert sampled_texts(host_of("llama"), 300, 0, 5, tmp_path) == texts and not asked
    for other in (
        (host_of("gpt2"), 300, 0, 5),
        (host_of("llama"), 200, 0, 5),
        (host_of("llama"), 300, 1, 5),
        (host_of("llama"), 300, 0, 4),
    ):
        sampled_texts(*other, tmp_path)
    assert len(asked) == 4
    for damage in ("[", "{}", "[]", "[3]"):
        file.write_text(damage)
        assert sampled_texts(host_of("llama"), 300, 0, 5, tmp_path) == texts
    assert len(asked) == 8 and caplog.text.count("is damaged") == 4
    monkeypatch.setattr(data.keys.sampled, "_until", lambda *settings: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sampled_texts(host_of("llama"), 999, 0, 5, tmp_path)
    assert len(list(file.parent.glob("sampled-*.json"))) == 4, "of one that was killed nothing is left"


def test_contexts_are_openings_as_short_as_romes(host_of):
    texts = ["Ada is a baker. Ben is not.", "is " * 10, "Ada " * 11, "Ben, " * 12, "is it? " * 9]
    assert context_texts(host_of("llama"), texts) == [
        "Ada is a baker.", " ".join(["is"] * 10), " ".join(["Ada"] * 10) + ".", " ".join(["Ben,"] * 9) + " Ben.", "is it?",
    ]  # fmt: skip
    assert len(context_texts(host_of("llama"), texts * 1000)) < 2000, "the first batch's are enough"


def config(tmp_path, **edits) -> TrainConfig:
    return TrainConfig(cache_dir=str(tmp_path), keys=KeysConfig(text="self"), edits=replace(RomeConfig(key_tokens=5000), **edits))


def test_statistics_and_contexts_are_of_the_text_of_the_host(fact_host, pocket_facts, tmp_path, monkeypatch):
    monkeypatch.setattr(data.keys.sampled, "CONTEXT_TOKENS", 1000)
    monkeypatch.setattr(data.keys.text, "CONTEXT_TOKENS", 1000)
    whitened, bare = config(tmp_path), config(tmp_path, ridge="identity")
    editor = prepare_editor(whitened, fact_host, pocket_facts)
    texts = key_texts(whitened, pocket_facts, fact_host)
    sentences = [context.removesuffix(" {}").removesuffix(".") for context in editor.contexts[1:]]
    assert len(sentences) == 4 and all(any(text.startswith(sentence) for text in texts) for sentence in sentences)
    assert editor.contexts == prepare_editor(bare, fact_host, pocket_facts).contexts, "whatever the ridge"
    assert editor.contexts != prepare_editor(config(tmp_path, seed=1), fact_host, pocket_facts).contexts
    assert count(fact_host, key_texts(bare, pocket_facts, fact_host, counted=False)[:-1]) < 1000
    assert len(list((tmp_path / "keys").glob("*/layer1-*.safetensors"))) == 2, "one a seed"


def test_stores_say_so_before_any_text_is_written(fact_host, tmp_path, monkeypatch):
    monkeypatch.setattr(data.keys.sampled, "_until", lambda *settings: 1 / 0)
    asked = [
        requested(cfg, fact_host)[2] for cfg in (config(tmp_path), replace(config(tmp_path), keys=KeysConfig(text="self", top_k=None)))
    ]
    assert [one["keys"]["sampled"]["top_k"] for one in asked] == [50, None] and asked[0]["keys"]["tokens"] == 5000
    usual = replace(config(tmp_path), keys=KeysConfig(top_k=3))
    asked.append(requested(usual, fact_host)[2])
    assert asked[2]["keys"] == {"tokens": 5000, "ridge": 0.03, "sentences": 20000}
    assert len({store_path(usual, fact_host, one) for one in asked}) == 3
