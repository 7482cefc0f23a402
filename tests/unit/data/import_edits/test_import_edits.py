"""Edits of other tools: matrices and checkpoint folders in the layouts they are really saved in.

Shape letters: D hidden width, F MLP width, R rank.
"""

import json
import os

import numpy as np
import pytest
import torch
from edited import LAYER, NAMES, edited_folder, facts_file, outer, stored
from fact_records import KNOWEDIT, written
from safetensors.torch import save_file

from data.batches import EditRows
from data.datamodule import facts_of
from data.facts.fact import EditRequest
from data.import_edits.__main__ import main
from data.import_edits.sources import import_edits
from data.produce.score import score
from data.store.matrices import read_matrix
from data.store.store import EditStore
from decoder.checkpoint.folders import INDEX
from decoder.config.commands import ImportConfig
from decoder.dense import DenseEdit, applied
from decoder.edit import LowRankEdit
from decoder.model import ObjectDecoder


def importing(host, edited, facts, store, **settings) -> EditStore:
    return import_edits(ImportConfig(edited=str(edited), facts=str(facts), store=str(store), **settings), host)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt2 square"])
@pytest.mark.parametrize("ending", ["safetensors", "npz"])
def test_matrices_become_factors(host_of, tmp_path, name, ending):
    host = host_of(name)
    matrices = tmp_path / "matrices"
    matrices.mkdir()
    for b in range(3):
        matrix = stored(host, host.weight_DF(LAYER) + outer(host, b))
        if ending == "npz":
            np.savez(matrices / f"{b}.npz", weight=matrix.numpy())
        else:
            save_file({"weight": matrix}, str(matrices / f"{b}.safetensors"))
    store = importing(host, matrices, facts_file(tmp_path, 3), tmp_path / "store", layer=LAYER)
    assert [row["rank"] for row in store.manifest["imported"]] == [1, 1, 1] and store.manifest["layer"] == LAYER
    for b in range(3):
        found_DF = store.edits(torch.tensor([b])).delta()[0]
        assert (found_DF - outer(host, b)).norm() <= 1e-4 * outer(host, b).norm()
        assert store.manifest["imported"][b]["residual"] < 1e-4
    assert store.table()["subject"].tolist() == NAMES and set(store.table()["object"]) == {"singer"}


@pytest.mark.parametrize("shards", [False, True], ids=["whole", "sharded"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox"])
def test_checkpoint_folders_tell_their_layer(new_host, tmp_path, name, shards):
    host = new_host(name)
    folder = edited_folder(host, tmp_path / "edited", shards=shards)
    assert (folder / INDEX).exists() is shards
    store = importing(host, folder, facts_file(tmp_path, 1), tmp_path / "store")
    assert store.manifest["layer"] == LAYER
    assert (store.edits(torch.tensor([0])).delta()[0] - outer(host, 0)).norm() <= 1e-4 * outer(host, 0).norm()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounded_checkpoints_say_how_much_is_left_over(new_host, tmp_path, dtype):
    host = new_host("llama")
    folder = edited_folder(host, tmp_path / "edited", dtype)
    store = importing(host, folder, facts_file(tmp_path, 1), tmp_path / "store")
    (note,) = store.manifest["imported"]
    assert note["rank"] == 1 and note["dtype"] == dtype and 0 < note["residual"] <= note["rounding"]
    found_DF = store.edits(torch.tensor([0])).delta()[0]
    assert (found_DF - outer(host, 0)).norm() <= note["rounding"] * outer(host, 0).norm()


def test_a_base_of_ones_own(new_host, tmp_path):
    """The edit sits on a model that is not the host: only against its own base is it of rank one."""
    host = new_host("llama")
    other = torch.randn(32, 48, generator=torch.Generator().manual_seed(9))
    base = edited_folder(host, tmp_path / "base", delta=other)
    folder = edited_folder(host, tmp_path / "edited", delta=other + outer(host, 0))
    store = importing(host, folder, facts_file(tmp_path, 1), tmp_path / "store", base=str(base))
    assert store.manifest["layer"] == LAYER and store.manifest["imported"][0]["rank"] == 1


@pytest.fixture
def mixed(host_of, tmp_path) -> EditStore:
    """Three edits of rank 1, rank 2 and full rank in one store."""
    host = host_of("llama")
    for b, delta in enumerate(MIXED):
        (tmp_path / "m").mkdir(exist_ok=True)
        save_file({"w": stored(host, host.weight_DF(LAYER) + delta(host))}, str(tmp_path / "m" / f"{b}.safetensors"))
    return importing(host, tmp_path / "m", facts_file(tmp_path, 3), tmp_path / "store", layer=LAYER)


def full_rank(host) -> torch.Tensor:
    return torch.randn(host.weight_DF(LAYER).shape, generator=torch.Generator().manual_seed(1))


MIXED = (lambda host: outer(host, 0), lambda host: outer(host, 1) + 2 * outer(host, 2), full_rank)


def test_updates_of_any_rank_become_rows(mixed, host_of):
    """Factors up to a rank, the whole matrix above it, in the order of the sources."""
    weight_DF = host_of("llama").weight_DF(LAYER)
    assert [note["rank"] for note in mixed.manifest["imported"]] == [1, 2, None] and mixed.manifest["rank"] == 2
    assert mixed.table()["subject"].tolist() == NAMES and list(mixed.matrix_of) == [(2, LAYER)] and mixed.is_dense
    factors, rows = mixed.edits(torch.arange(3)), torch.tensor([2, 0, 1])
    assert isinstance(factors, LowRankEdit) and not factors.key_BRF[0, 1].any() and not factors.value_BRD[0, 1].any()
    applied_BDF = applied(factors, weight_DF).weight_BDF
    for b, delta in enumerate(MIXED[:2]):
        assert (applied_BDF[b] - weight_DF - delta(host_of("llama"))).norm() <= 1e-4 * delta(host_of("llama")).norm()
    whole_BDF = mixed.whole_edits(rows, weight_DF).weight_BDF
    assert torch.equal(whole_BDF[0], weight_DF + full_rank(host_of("llama"))) and torch.equal(whole_BDF[1:], applied_BDF[:2])
    norm = torch.stack([delta(host_of("llama")).norm() for delta in MIXED]) / weight_DF.norm()
    torch.testing.assert_close(torch.tensor(mixed.table()["delta_norm_ratio"].tolist()), norm, rtol=1e-3, atol=0)


def test_scores_of_every_rank_are_those_of_the_matrix(mixed, host_of):
    """The slow twin: every row scored alone as a whole matrix."""
    host, weight_DF, facts = host_of("llama"), host_of("llama").weight_DF(LAYER), facts_of(mixed)
    for row, fact in enumerate(facts.facts):
        edit = DenseEdit((weight_DF + MIXED[row](host)).unsqueeze(0))
        alone = score(host, [EditRequest("twin", fact, fact.object)], {LAYER: edit}, facts)
        for name in ("efficacy_probability", "es"):
            assert mixed.table()[name].iloc[row] == pytest.approx(alone[name][0], rel=1e-3)


def test_a_mixed_store_is_decoded_as_whole_matrices(mixed, host_of):
    host = host_of("llama")
    rows = EditRows(mixed, [0, 1, 2], host.terminator_id, host.weight_DF(LAYER))
    batch = rows.__getitems__([0, 1, 2])
    assert isinstance(batch.edits, DenseEdit)
    decoder = ObjectDecoder(host, edited_layers=[LAYER], trained_layers=[], prompt_MD=torch.randn(3, host.hidden_size))
    found = decoder(batch.edits, batch.object_ids_BT)
    for b in range(3):
        alone = DenseEdit((host.weight_DF(LAYER) + MIXED[b](host)).unsqueeze(0))
        torch.testing.assert_close(found[b : b + 1], decoder(alone, batch.object_ids_BT[b : b + 1]), rtol=1e-3, atol=1e-3)


def test_a_killed_import_keeps_its_matrices(mixed, host_of, tmp_path, monkeypatch):
    """Killed after the store was joined and before it was in its place, an import goes on and loses no matrix."""
    host = host_of("llama")

    def replace(old, new):
        if str(new).endswith("again"):
            raise KeyboardInterrupt
        os_replace(old, new)

    os_replace = os.replace
    monkeypatch.setattr("data.store.writer.os.replace", replace)
    with pytest.raises(KeyboardInterrupt):
        importing(host, tmp_path / "m", tmp_path / "facts.jsonl", tmp_path / "again", layer=LAYER)
    monkeypatch.undo()
    again = importing(host, tmp_path / "m", tmp_path / "facts.jsonl", tmp_path / "again", layer=LAYER)
    assert (
        torch.equal(read_matrix(again.matrix_of[2, LAYER]), read_matrix(mixed.matrix_of[2, LAYER]))
        and not (tmp_path / "again.partial").exists()
    )


def test_what_was_planted_must_be_said(host_of, tmp_path):
    save_file({"w": host_of("llama").weight_DF(LAYER) + 1}, str(tmp_path / "w.safetensors"))
    with pytest.raises(ValueError, match="does not say which object was planted"):
        importing(host_of("llama"), tmp_path / "w.safetensors", facts_file(tmp_path, 1, object=""), tmp_path / "store", layer=LAYER)


def three(host, folder):
    folder.mkdir()
    for b in range(3):
        save_file({"w": stored(host, host.weight_DF(LAYER) + outer(host, b))}, str(folder / f"e{b}.safetensors"))
    return folder


def test_every_record_stands_for_its_source(host_of, tmp_path):
    """The same fact three times is three edits, and a source whose record is no fact is left to nobody else."""
    edited = three(host_of("llama"), tmp_path / "m")
    same = facts_file(tmp_path, 1).read_text()
    (tmp_path / "same.jsonl").write_text("\n".join([same] * 3))
    store = importing(host_of("llama"), edited, tmp_path / "same.jsonl", tmp_path / "same", layer=LAYER)
    assert store.table()["subject"].tolist() == ["Ada"] * 3 and store.table()["edit_id"].nunique() == 3
    for b in range(3):
        assert (store.edits(torch.tensor([b])).delta()[0] - outer(host_of("llama"), b)).norm() <= 1e-4 * outer(host_of("llama"), b).norm()
    rows = [json.loads(row) | {"fact_id": f"e{n}"} for n, row in enumerate(facts_file(tmp_path, 3).read_text().split("\n"))]
    rows[1]["subject"] = None
    (tmp_path / "named.jsonl").write_text("\n".join(map(json.dumps, rows)))
    store = importing(host_of("llama"), edited, tmp_path / "named.jsonl", tmp_path / "named", layer=LAYER)
    assert store.table()["subject"].tolist() == ["Ada", "Carl"] and [note["from"][:2] for note in store.manifest["imported"]] == [
        "e0",
        "e2",
    ]
    assert store.manifest["skipped"] == [
        ["e1", "e1.safetensors: its record is no fact: named.jsonl line 2: subject is null, expected text"]
    ]


def test_messages_name_the_settings_of_this_command(host_of, tmp_path):
    edited = three(host_of("llama"), tmp_path / "m")
    for settings, message in [
        ({}, "facts=.* is no plain: .*write schema=knowedit"),
        ({"schema": "pocket"}, "schema='pocket' is unknown; .*known: counterfact"),
        ({"schema": "zsre"}, "facts=.*write schema=knowedit"),
    ]:
        written(tmp_path, KNOWEDIT)
        with pytest.raises(ValueError, match=message) as refused:
            importing(host_of("llama"), edited, tmp_path / "P17.json", tmp_path / "store", layer=LAYER, **settings)
        assert "facts.source" not in str(refused.value) and not (tmp_path / "store").exists()
    with pytest.raises(ValueError, match="^facts=/nowhere.jsonl: no such file"):
        importing(host_of("llama"), edited, "/nowhere.jsonl", tmp_path / "store", layer=LAYER)


def test_nothing_is_read_for_a_store_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").touch()
    for store, said in ((tmp_path, "exists already, and nothing is written over"), (tmp_path / "file", "it is a file; give a folder")):
        with pytest.raises(SystemExit, match="2"):
            main(["edited=absent", "facts=absent", f"store={store}"])
        assert said in capsys.readouterr().err


def test_command_line(capsys):
    for argv, message in [([], "edited= is missing"), (["edited=a", "fact=b"], "did you mean facts")]:
        with pytest.raises(SystemExit) as stop:
            main(argv)
        err = capsys.readouterr().err
        assert stop.value.code == 2 and message in err and err.count("\n") == 1
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0 and "tolerance=" in capsys.readouterr().out
