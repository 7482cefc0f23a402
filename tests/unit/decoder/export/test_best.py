"""Which runs compete for a place in a collection, and which wins."""

import json

import pytest
from exported_runs import write_run

from decoder.export.best import best_runs
from decoder.export.collection import export_best
from decoder.report.results import find_runs, write_result
from decoder.utils.errors import UserError


def test_equal_validation_goes_to_the_lower_loss(runs, host_of):
    write_run(runs, host_of("llama"), 0, 2, 7, 0.7, loss=0.1)
    assert [one.run.name for one in best_runs(find_runs([runs]))][1] == "rome-e0-t2-s7"


def test_runs_without_a_decoder_or_that_failed_are_passed_over(runs, host_of):
    failed = write_run(runs, host_of("llama"), 0, 1, 9, 0.99)
    write_result(failed, json.loads((failed / "result.json").read_text()) | {"status": "failed"})
    (write_run(runs, host_of("llama"), 0, 2, 9, 0.99) / "decoder" / "decoder_config.json").unlink()
    assert [one.run.name for one in best_runs(find_runs([runs]))][1] == "rome-e0-t0-s1"


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"edits": {"editor": "rome", "layer": 0, "ridge": 0.1}}, "edits.ridge: 0.01.* edits.ridge: 0.1"),
        ({"edits": {"editor": "r-rome", "layer": 0, "ridge": 0.01}}, "edits.editor: 'rome'.* edits.editor: 'r-rome'"),
        ({"facts": {"source": "zsre"}}, "facts.source: .*zsre"),
        ({"splits": {"seed": 7}}, "splits.seed: .*7"),
        ({"store": "elsewhere"}, "store: 'not given'.*store: '0123456789ab'"),
    ],
)
def test_runs_on_other_edits_do_not_compete(runs, host_of, tmp_path, config, told):
    write_run(runs, host_of("llama"), 0, 2, 7, 0.99, **config)
    with pytest.raises(UserError, match=f"rome-e0.*edited layer 0, but.*{told}.*ewer run folders") as refused:
        export_best(find_runs([runs]), tmp_path / "out")
    assert "\n" not in str(refused.value) and not (tmp_path / "out").exists()


def test_facts_of_the_same_settings_and_other_content_do_not_compete(runs):
    for run, content in (("rome-e0-t0-s0", "1234"), ("rome-e0-t0-s1", "abcd")):
        file = runs / "llama" / run / "decoder" / "decoder_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"facts": {"source": "plain", "sha256": content}}))
    with pytest.raises(UserError, match="facts.sha256: '1234' .*facts.sha256: 'abcd'"):
        best_runs(find_runs([runs]))


@pytest.mark.parametrize(
    ("edited", "config"),
    [
        (2, {"edits": {"editor": "rome", "layer": 2, "ridge": 0.1}}),
        (0, {"edits": {"editor": "rome", "layer": 0, "ridge": 0.01, "batch_size": 8}}),
        (0, {"cache_dir": "elsewhere", "optim": {"lr_layer": 1.0}, "variant": "x"}),
    ],
    ids=["another layer", "speed only", "training"],
)
def test_runs_on_the_same_edits_compete(runs, host_of, edited, config):
    write_run(runs, host_of("llama"), edited, 2, 7, 0.99, **config)
    assert f"rome-e{edited}-t2-s7-varied" in [one.run.name for one in best_runs(find_runs([runs]))]


def test_two_stores_given_compete_where_they_hold_the_same(host_of, tmp_path):
    for seed, store in enumerate(("stores/a", "/elsewhere/a")):
        write_run(tmp_path, host_of("llama"), 0, 1, seed, 0.5 + seed / 10, store=store, edits={"ridge": seed})
    assert [one.run.name for one in best_runs(find_runs([tmp_path]))] == ["rome-e0-t1-s1-varied"]
