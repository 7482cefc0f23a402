"""`benchmarks/audit_facts.py` and `audit_layers.py` in miniature: hosts in which two facts are planted, from checkpoints to the table.

Shape letters: C names, B hosts, R facts of a host, D hidden width, F MLP width.
"""

import pytest
import torch
from changed_decoders import FACTS, LAYER, changed_decoder
from places import ROOT

from data.facts.splits import draw_splits, plan_edits
from data.facts.together import grouped
from data.produce.plan import made_of
from data.produce.shards import columns
from data.store.store import FACT_SCORES, SCORE_COLUMNS
from data.store.writer import StoreWriter
from decoder.audit.candidates import Candidates, unit, whitener
from decoder.audit.rows.keys import gathered
from decoder.config import SplitsConfig
from decoder.edit import LowRankEdit
from decoder.export.save import save_decoder
from decoder.host import Host
from decoder.scores import TEST_SPLITS


def two_facts_a_host(host, facts, path):
    """A store of one host of each test split; keys are whitened as editors whiten them, values are the objects' own vectors."""
    plan = draw_splits(facts, SplitsConfig())
    by_split = {
        plan.split_of(one.fact.relation, one.fact.subject, one.object): [one, other]
        for one, other in grouped(plan_edits(facts, plan, SplitsConfig(), 0), plan, 2, 0)
    }
    hosts = [by_split[split] for split in TEST_SPLITS]
    names = [*dict.fromkeys(fact.subject for fact in facts.facts)]
    keys_CF = gathered(Candidates(host, names), [LAYER])[LAYER]
    white_CF = unit(whitener(keys_CF)(keys_CF))
    key_BRF = torch.stack([white_CF[[names.index(one.fact.subject) for one in requests]] for requests in hosts])
    vectors = [host.unembedding_VD[[host.object_ids(one.object)[0] for one in requests]] for requests in hosts]
    requests = [one for own in hosts for one in own]
    asked = made_of(host, [LAYER], {"name": "memit"}, 0, facts, requests) | {"facts_per_host": 2, "rank": 2}
    scores = {name: [1.0] * len(hosts) for name in SCORE_COLUMNS} | {"success": [True] * len(hosts)}
    scores["facts"] = [[dict.fromkeys(FACT_SCORES, 1.0)] * 2 for _ in hosts]
    writer = StoreWriter(path, asked, len(hosts))
    writer.write_shard(0, columns(host, [LAYER], hosts, LowRankEdit(key_BRF, 8 * unit(torch.stack(vectors))), scores), [])
    writer.finish(1, [])


@pytest.fixture
def tiny(fact_host, pocket_facts, tmp_path, monkeypatch):
    """A host, saved beside its store of edits."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    fact_host.model.save_pretrained(tmp_path / "tiny")
    fact_host.tokenizer.save_pretrained(tmp_path / "tiny")
    host = Host.load(tmp_path / "tiny", name="tiny", terminator=".")
    two_facts_a_host(host, pocket_facts, tmp_path / "store")
    return host


def table(said):
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in said.splitlines() if line.startswith("│")]


def test_the_planted_subjects_are_found_and_counted(tiny, tmp_path, capsys):
    import audit_facts

    save_decoder(tmp_path / "decoder", changed_decoder(tiny), FACTS)
    audit_facts.main([*(f"{name}={tmp_path / folder}" for name, folder in (("model", "tiny"), ("store", "store"), ("decoder", "decoder")))])
    rows = table(capsys.readouterr().out)
    assert [row[:4] for row in rows] == [[split, base, "1", "2"] for split in TEST_SPLITS for base in ("known", "unknown")]
    assert all(row[4].startswith("1.000 [") and row[6] == "0" for row in rows)


def test_edits_are_taken_out_of_their_layers(tiny, tmp_path, capsys):
    import audit_layers

    given = [f"model={tmp_path / 'tiny'}", f"store={tmp_path / 'store'}"]
    audit_layers.main([*given, "hosts=2"])
    known, unknown, as_is = table(capsys.readouterr().out)
    assert [row[1] for row in (known, unknown, as_is)] == ["2"] * 3
    assert [row[2][:5] for row in (known, unknown, as_is)] == ["1.000", "1.000", "0.000"], "all layers found"
    assert known[5].startswith("1.000") and as_is[5].startswith("0.000"), "next token back"
    for wrong in ("hosts=0", f"beside={tmp_path / 'store'}"):
        with pytest.raises(SystemExit):
            audit_layers.main([*given, wrong])
        assert "in other layers" in capsys.readouterr().err
