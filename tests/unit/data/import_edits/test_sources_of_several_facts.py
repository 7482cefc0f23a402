"""Checkpoints that several facts were planted in, as other tools save MEMIT's: imported as one row with all of its facts.

Shape letters: D hidden width, F MLP width.
"""

import json

import pytest
import torch
from edited import SUBJECTS, edited_folder, outer
from safetensors.torch import load_file, save_file

from data.facts.fact import EditRequest
from data.facts.load import load_records
from data.import_edits.sources import import_edits
from data.produce.score import score
from data.store.fact_rows import one_fact_a_row
from decoder.config import FactsConfig
from decoder.config.commands import ImportConfig


def importing(host, edited, facts, store, **settings):
    return import_edits(ImportConfig(edited=str(edited), facts=str(facts), store=str(store), **{"several": True} | settings), host)


def facts_file(folder, *names, **fields):
    records = [
        {"subject": subject, "prompt": "{} works as a", "object_true": "baker", "object": "singer" if n % 2 else "actor"}
        | ({"fact_id": name} if name else {})
        | fields
        for n, (subject, name) in enumerate(zip(SUBJECTS, names, strict=False))
    ]
    file = folder / "facts.jsonl"
    file.write_text("\n".join(map(json.dumps, records)))
    return file


def terms(host, count):
    return sum(outer(host, b) for b in range(count))


def in_two_layers(host, folder, count):
    """As a tool leaves what it spread over layers 1 and 2."""
    edited_folder(host, folder, delta=terms(host, count))
    tensors = load_file(str(folder / "model.safetensors"))
    tensors["model.layers.2.mlp.down_proj.weight"] += 0.5 * terms(host, count)
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})


@pytest.mark.parametrize("count", [3, 10])
def test_one_checkpoint_with_all_records_is_one_row(new_host, tmp_path, count):
    """Ten facts are ten terms, more than are looked for of one."""
    host, file = new_host("llama"), facts_file(tmp_path, *[None] * count)
    in_two_layers(host, tmp_path / "memit", count)
    store = importing(host, tmp_path / "memit", file, tmp_path / "store")
    (note,), told = store.manifest["imported"], store.facts(0)
    assert len(store) == 1 and store.layers == [1, 2] and note["rank"] == [count, count] and not store.is_dense
    assert [fact["subject"] for fact in told] == SUBJECTS[:count] and store.manifest["requests"]["count"] == count
    assert note["edit_id"] == store.table()["edit_id"][0] and "+" in note["edit_id"]
    edits = store.edits(torch.tensor([0]))
    for layer, share in ((1, 1.0), (2, 0.5)):
        assert (edits.by_layer[layer].delta()[0] - share * terms(host, count)).norm() <= 1e-4 * share * terms(host, count).norm()
    facts = load_records(FactsConfig(source="plain", path=str(file)))
    requests = [EditRequest(fact.fact_id, fact, fact.object) for fact in facts.facts]
    columns = score(host, requests, edits.by_layer, facts, owners=[0] * count)
    assert [fact["efficacy"] for fact in told] == columns["efficacy"] and store.table()["efficacy"][0] == sum(columns["efficacy"]) / count
    rows = one_fact_a_row(store)
    assert rows.table()["subject"].tolist() == SUBJECTS[:count] and len(rows.table()["planted"][0]) == count
    with pytest.raises(ValueError, match="records for 1 edited sources"):
        importing(host, tmp_path / "memit", file, tmp_path / "other", several=False)


def test_of_several_sources_records_go_by_name_and_whole_matrices_stay_with_their_facts(new_host, tmp_path):
    host = new_host("llama")
    noise = 0.05 * torch.randn(host.weight_DF(1).shape, generator=torch.Generator().manual_seed(5))
    for name, delta in (("e0", terms(host, 2)), ("e1", noise), ("e2", outer(host, 4))):
        edited_folder(host, tmp_path / "m" / name, delta=delta)
    with pytest.raises(ValueError, match="1 records have the fact_id 'e9', which is no source's name"):
        importing(host, tmp_path / "m", facts_file(tmp_path, "e1", "e0", "e9"), tmp_path / "other")
    file = facts_file(tmp_path, "e1", "e0", "1", "e0")
    store = importing(host, tmp_path / "m", file, tmp_path / "store")
    assert [[fact["subject"] for fact in store.facts(row)] for row in (0, 1)] == [[SUBJECTS[1], SUBJECTS[3]], [SUBJECTS[0], SUBJECTS[2]]]
    assert [note["rank"] for note in store.manifest["imported"]] == [2, None] and "no record has its name" in str(store.manifest["skipped"])
    rows, weight_DF = one_fact_a_row(store), host.weight_DF(1)
    assert rows.is_dense and rows.table()["host"].tolist() == [0, 0, 1, 1]
    whole = rows.whole_edits(torch.tensor([3, 0, 2]), weight_DF).weight_BDF - weight_DF
    for found_DF, delta_DF in zip(whole, (noise, terms(host, 2), noise), strict=True):
        assert (found_DF - delta_DF).norm() <= 1e-4 * delta_DF.norm()


def test_a_number_that_two_sources_end_in_is_no_name(new_host, tmp_path):
    host = new_host("llama")
    for name in ("rome_1", "memit_1"):
        edited_folder(host, tmp_path / "m" / name, delta=terms(host, 2))
    with pytest.raises(ValueError, match="ends in no number that one source alone ends in"):
        importing(host, tmp_path / "m", facts_file(tmp_path, "1", "1"), tmp_path / "store")


def test_a_fact_that_does_not_say_what_was_planted_refuses_its_source(new_host, tmp_path):
    host = new_host("llama")
    edited_folder(host, tmp_path / "memit", delta=terms(host, 2))
    file = facts_file(tmp_path, None, None)
    file.write_text(file.read_text() + '\n{"subject": "Ada", "prompt": "{} works as a", "object_true": "baker"}')
    with pytest.raises(ValueError, match="not one edit; memit: facts.jsonl line 3 does not say which object was planted"):
        importing(host, tmp_path / "memit", file, tmp_path / "store")


@pytest.mark.parametrize("planted", ["singer", "actor"])
def test_a_subject_that_is_there_twice_refuses_its_source(new_host, tmp_path, planted):
    """A record written twice would count twice, and two objects of one subject are not told apart."""
    host = new_host("llama")
    edited_folder(host, tmp_path / "memit", delta=terms(host, 2))
    file = facts_file(tmp_path, None, None)
    again = json.dumps(json.loads(file.read_text().splitlines()[0]) | {"object": planted})
    file.write_text(f"{file.read_text()}\n{again}")
    with pytest.raises(
        ValueError, match="not one edit; memit: one host has the subject .* twice: facts.jsonl line 1 and facts.jsonl line 3"
    ) as refused:
        importing(host, tmp_path / "memit", file, tmp_path / "store")
    assert "\n" not in str(refused.value) and not (tmp_path / "store").exists()
