"""What a run will take, said before it begins."""

import re

import pytest

from data.produce.shards import ShardMaker
from decoder.config import TrainConfig
from launcher import estimate


@pytest.fixture
def cfg(tmp_path):
    cfg = TrainConfig(cache_dir=str(tmp_path))
    cfg.edits.shard_size = 1000
    return cfg


def minutes(text):
    number, unit = re.search(r"fit of at most \d+ epochs, about ([\d.]+) (s|min|h)", text).groups()
    return float(number) * {"s": 1 / 60, "min": 1, "h": 60}[unit]


def test_it_says_how_many_edits_are_left_and_how_long_all_takes(cfg, fact_host, capsys, monkeypatch):
    monkeypatch.setattr(estimate, "seconds_a_token", lambda host: 1e-3)
    estimate.announce(cfg, fact_host)
    said = capsys.readouterr().out
    assert f"{ShardMaker(cfg, fact_host).left():,} edits to make" in said
    cfg.optim.epochs *= 3
    estimate.announce(cfg, fact_host)
    assert minutes(capsys.readouterr().out) == pytest.approx(3 * minutes(said), rel=0.05)
    cfg.splits.spelt_per_relation = cfg.splits.train_per_relation
    estimate.announce(cfg, fact_host)
    assert minutes(capsys.readouterr().out) == pytest.approx(6 * minutes(said), rel=0.05)


def test_one_forward_of_the_host_is_timed(fact_host):
    called = []
    with fact_host.model.base_model.register_forward_hook(lambda *args: called.append(args)):
        assert estimate.seconds_a_token(fact_host) > 0
    assert len(called) == estimate.TIMES


def test_a_stream_is_not_asked(cfg, fact_host, capsys):
    cfg.data.streaming = True
    estimate.announce(cfg, fact_host)
    assert capsys.readouterr().out == ""
