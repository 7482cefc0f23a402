"""Text for key statistics, and the statistics that others publish.

Shape letter: F MLP width.
"""

import json

import datasets
import numpy as np
import pytest
import torch
from rome_twin import second_moment

from data.keys.text import read_texts, rome_statistics
from decoder.config import KeysConfig

LINES = ["Ada works as a baker .", "", "Ben lives in Rome"]


def test_text_from_files_and_folders(tmp_path):
    (tmp_path / "b.txt").write_text("\n".join(LINES))
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"body": text}) for text in LINES))
    (tmp_path / "notes.md").write_text("no text")
    whole = [text for text in LINES if text]
    assert read_texts(KeysConfig(text=str(tmp_path / "b.txt")), 100) == whole
    assert read_texts(KeysConfig(text=str(tmp_path / "a.jsonl"), field="body"), 100) == whole
    assert read_texts(KeysConfig(text=str(tmp_path), field="body"), 100) == whole * 2
    assert read_texts(KeysConfig(text=str(tmp_path), field="body"), 1) == whole[:1], "no more than the budget asks for"


def test_text_from_the_hub(monkeypatch):
    def load_dataset(path, split, streaming):
        assert (path, split, streaming) == ("someone/wiki", "test", True)
        return datasets.Dataset.from_list([{"text": text} for text in LINES])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(read_texts(KeysConfig(text="someone/wiki", split="test"), 100)) == 2
    with pytest.raises(ValueError, match="cannot be read"):
        read_texts(KeysConfig(text="someone/wiki", split="train"), 100)


def test_bad_texts_are_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.jsonl").write_text('{"body": "Ada"}\n')
    (tmp_path / "cut.jsonl").write_text('{"text": "Ada"}\n{"te')
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "w.bin").write_text("x")
    for name, message in [
        ("absent.txt", "no such file"), ("folder", "has no .txt"), ("a.jsonl", "line 1: no JSON with text under 'text'"),
        ("cut.jsonl", "line 2"), ("empty.txt", "no text there"), ("w.bin", "expected .txt"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message) as refused:
            read_texts(KeysConfig(text=str(tmp_path / name)), 100)
        assert name in str(refused.value) and "\n" not in str(refused.value)


def test_published_statistics_round_trip(host_of, tmp_path):
    host = host_of("llama")
    counted = second_moment(host, 1, ["Ada works as a baker .", "Ben lives in Rome"], 100)
    sum_FF = counted.moment_FF.double().numpy() * counted.count
    np.savez(tmp_path / "mom2.npz", **{"mom2.mom2": sum_FF.astype(np.float32), "mom2.count": counted.count, "sample_size": 2})
    found = rome_statistics(str(tmp_path / "mom2.npz"), host.mlp_size(1))
    assert found.count == counted.count
    torch.testing.assert_close(found.moment_FF, counted.moment_FF, rtol=1e-6, atol=1e-7)


def test_bad_statistics_are_refused(tmp_path):
    good = {"mom2.mom2": np.eye(4, dtype=np.float32), "mom2.count": 3}
    nan = good | {"mom2.mom2": np.full((4, 4), np.nan)}
    cases = {"other": {"x": 1}, "width": good | {"mom2.mom2": np.eye(5)}, "nan": nan, "none": good | {"mom2.count": 0}}
    cases |= {"objects": good | {"mom2.mom2": np.array([{}], dtype=object)}}
    messages = {"other": "mom2.mom2", "width": "width 4", "nan": "NaN", "none": "0 tokens", "objects": "pickles", "cut": "no whole npz"}
    for name, arrays in cases.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "nan.npz").read_bytes()[:50])
    for name, message in messages.items():
        with pytest.raises(ValueError, match=message) as refused:
            rome_statistics(str(tmp_path / f"{name}.npz"), 4)
        assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match="no such file"):
        rome_statistics(str(tmp_path / "absent.npz"), 4)
