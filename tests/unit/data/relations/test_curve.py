"""How many edits it takes to tell relations: the benchmark's curve.

Shape letters: N edits, D hidden width, F MLP width.
"""

import json

import pytest
import torch
from places import ROOT

from data.store.store import EditStore
from decoder.edit import RankOneEdit


@pytest.fixture(scope="module")
def benchmark():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        import audit_relations

        yield audit_relations


class Telling(EditStore):
    """A store whose values tell their relation, the less noise the clearer."""

    def edits(self, rows):
        edits, names = super().edits(rows), self.table()["relation_name"].iloc[rows.tolist()].tolist()
        width = edits.value_BD.shape[1]
        told_KD = 3 * torch.randn(len(set(names)), width, generator=torch.Generator().manual_seed(0))
        place = {name: told_KD[k] for k, name in enumerate(sorted(set(names)))}
        return RankOneEdit(edits.key_BF, torch.stack([place[name] for name in names]) + edits.value_BD)


def shares(benchmark, store, host, sizes):
    cfg = benchmark.Settings(repeats=2, sizes=sizes)
    return {row.case.split()[-2]: row.ours for row in benchmark.curve(cfg, store, host.weight_DF(store.layers[0]).float())}


def test_more_edits_tell_more_of_what_values_say(benchmark, store_path, fact_host):
    told = shares(benchmark, Telling(store_path), fact_host, "20,200")
    assert list(told) == ["20", "200", "all"] and told["20"] < told["200"] <= told["all"] and told["all"] > 0.9


def test_values_that_say_nothing_tell_nothing(benchmark, store_path, fact_host):
    assert shares(benchmark, EditStore(store_path), fact_host, "200")["all"] < 0.2


def test_values_are_read_out_of_rounded_matrices(benchmark, store_path, fact_host):
    edits = EditStore(store_path).edits(torch.arange(5))
    weight_DF = fact_host.weight_DF(1).float()
    read_ND = benchmark.read_out(edits, weight_DF)
    assert not torch.equal(read_ND, edits.value_BD)
    torch.testing.assert_close(read_ND, edits.value_BD, rtol=0.05, atol=0.05)


def test_the_table_is_written(benchmark, store_path, fact_host, new_host, tmp_path, capsys):
    fact_host.model.save_pretrained(tmp_path / "host")
    fact_host.tokenizer.save_pretrained(tmp_path / "host")
    benchmark.main([f"store={store_path}", f"host={tmp_path / 'host'}", "sizes=30", "repeats=1", f"out={tmp_path / 'rows.json'}"])
    rows = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))["rows"]
    assert [row["case"] for row in rows] == ["relation, learnt from 30 edits", "relation, learnt from all edits"]
    with pytest.raises(SystemExit) as stop:
        benchmark.main(["store=only"])
    assert stop.value.code == 2 and "both needed" in capsys.readouterr().err
    other = new_host("llama")
    other.model.save_pretrained(tmp_path / "other")
    other.tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(SystemExit) as stop:
        benchmark.main([f"store={store_path}", f"host={tmp_path / 'other'}"])
    assert stop.value.code == 2 and other.fingerprint in capsys.readouterr().err
