"""The table editor × metric."""

import json

import pytest
from places import ROOT

from data.facts.splits import draw_splits
from data.store.store import FURTHER_COLUMNS
from decoder.config.commands import ProduceConfig
from decoder.config.compose import compose


@pytest.fixture
def metrics(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import editing_metrics

    return editing_metrics


def test_every_editor_plants_the_same_facts_of_the_tests_and_has_every_metric(metrics, fact_host, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(metrics, "open_host", lambda cfg: fact_host)
    out = tmp_path / "rows.jsonl"
    argv = ["n=3", f"out={out}", "experiment=smoke", f"cache_dir={tmp_path}"]
    metrics.main(["editors=none,ft", *argv])
    clean, tuned = map(json.loads, out.read_text().splitlines())
    assert (clean["editor"], tuned["editor"]) == ("none", "ft") and clean["asked"] == tuned["edits"] == 3
    usual = (
        set(metrics.METRICS) - set(FURTHER_COLUMNS) - {"specificity", "specificity_probability", "ns"}
    )  # a random host knows no neighbour
    assert usual | {"fluency", "seconds", "peak_memory"} <= tuned["metrics"].keys() and "portability" not in tuned["metrics"]
    assert tuned["metrics"]["efficacy_probability"]["value"] > 1.2 * clean["metrics"]["efficacy_probability"]["value"]
    assert tuned["metrics"]["seconds"]["value"] > 100 * clean["metrics"]["seconds"]["value"]
    shown = capsys.readouterr().out.splitlines()
    assert shown[2] == "| | none | ft |" and any(line.startswith("| fluency | ") and "±" in line for line in shown)
    metrics.main(["editors=none,ft", *argv])
    assert len(out.read_text().splitlines()) == 2 and capsys.readouterr().out.splitlines() == shown[2:], "what is there is not done again"


def test_facts_are_drawn_from_the_test_splits(metrics, fact_host):
    cfg = compose(ProduceConfig, "train", [])
    facts, requests = metrics.drawn(cfg, fact_host, 40)
    plan = draw_splits(facts, cfg.splits)
    splits = {plan.split_of(one.fact.relation, one.fact.subject, one.object) for one in requests}
    assert splits == {"id", "ood", "unseen_object"} and len({one.edit_id for one in requests}) == 40
    assert requests == metrics.drawn(compose(ProduceConfig, "train", ["edits=memit"]), fact_host, 40)[1]


@pytest.mark.parametrize(("word", "said"), [("editors=romes", "did you mean 'rome'"), ("n=0", "n=0: expected a number"), ("nn=3", "nn=3")])
def test_bad_input_is_one_line(metrics, capsys, word, said):
    with pytest.raises(SystemExit) as stop:
        metrics.main([word])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and said in error and error.count("\n") == 1
