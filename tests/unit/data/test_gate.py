"""From decoders of two editors and their stores to a gate, and to what it makes of new edits.

Shape letters: N edits, D hidden width, F MLP width.
"""

import json
import re

import pytest
import torch
from audited_folders import NAMES, planted, saved
from changed_decoders import FACTS, LAYER, SCORES, M, changed_decoder
from safetensors.torch import save_file

import evaluate
from data.gate.__main__ import main
from data.store.store import SCORE_COLUMNS, TEXT_COLUMNS
from data.store.writer import StoreWriter
from decoder.answers import best_texts
from decoder.edit import RankOneEdit
from decoder.export.save import save_decoder
from decoder.host import Host

IDS = [f"P1-{n:03d}-x" for n in range(40)]
SPLITS = {"train": IDS[:4], "id": IDS[4:14], "ood": IDS[14:20], "unseen_object": [], "val/id": IDS[20:30], "val/new": IDS[30:]}
SIZES = {"rome": 0.1, "ft-m": 5.0}


def drawn(host, editor):
    """Edits of two editors differ in how long they are."""
    generator = torch.Generator().manual_seed(len(editor))
    key_NF, value_ND = torch.randn(40, host.mlp_size(LAYER), generator=generator), torch.randn(40, host.hidden_size, generator=generator)
    return RankOneEdit(key_NF, SIZES[editor] * value_ND)


def written(host, editor, path, objects):
    edits = drawn(host, editor)
    columns = {name: [f"{name} {row}" for row in range(40)] for name in TEXT_COLUMNS} | {name: [1.0] * 40 for name in SCORE_COLUMNS}
    columns |= {"edit_id": IDS, "object": objects, "object_ids": [host.object_ids(text) for text in objects]}
    columns |= {"key": edits.key_BF, "value": edits.value_BD, "success": [True] * 40}
    writer = StoreWriter(path, {"editor": {"name": editor}, "layer": LAYER, "host": {"fingerprint": host.fingerprint, "id": "tiny"}}, 40)
    writer.write_shard(0, columns, [])
    return writer.finish(1, [])


@pytest.fixture(scope="module")
def place(tmp_path_factory, new_host):
    """Two decoders, and for each a store whose edits plant what this one alone says of them."""
    place = tmp_path_factory.mktemp("gate")
    own = Host.load(saved(new_host("llama"), place / "cache" / "hosts" / "tiny-0123456789ab"), name="tiny", terminator=".")
    for seed, editor in enumerate(SIZES):
        decoder = changed_decoder(own, prompt_MD=torch.randn(M, 32, generator=torch.Generator().manual_seed(seed)))
        found = decoder.read(drawn(own, editor), **FACTS["search"])
        store = written(own, editor, place / f"store-{editor}", [text for text, _ in best_texts(own, found)])
        calibration = FACTS["calibration"] | {"null": {"quantiles": [0.1 * seed] * 101}}
        facts = {"editors": [{"name": editor, "settings": {}}], "splits": SPLITS, "store": store.fingerprint, "calibration": calibration}
        save_decoder(place / editor, decoder, FACTS | facts | {"scores": {"id": SCORES}, "seed": seed})
    return place


@pytest.fixture(scope="module")
def line(place):
    return [f"decoder={place / 'rome'},{place / 'ft-m'}", f"cache_dir={place / 'cache'}"]


@pytest.fixture(scope="module")
def gate(place, line):
    main([*line, f"stores=[{place / 'store-rome'},{place / 'store-ft-m'}]", f"out={place / 'gate.json'}"])
    return f"gate={place / 'gate.json'}"


def told(capsys, *argv):
    capsys.readouterr()
    evaluate.main([*argv, "json=true"])
    return json.loads(capsys.readouterr().out)


def exact(scores):
    return {split: found["exact_match"]["value"] for split, found in scores["test"].items()}


def test_new_edits_of_either_editor_are_read_as_by_its_own_decoder(line, gate, place, capsys):
    lost = 0.0
    for editor in SIZES:
        store, turned = f"store={place / f'store-{editor}'}", f"decoder={place / 'ft-m'},{place / 'rome'}"
        alone = exact(told(capsys, f"decoder={place / editor}", line[1], store))
        assert min(alone["id"], alone["ood"]) > 0.5, "texts whose tokens are others' are few"
        assert exact(told(capsys, *line, store, gate)) == exact(told(capsys, turned, line[1], store, gate)) == alone
        lost += alone["id"] - exact(told(capsys, *line, store))["id"]
    assert lost > 0, "a vote does less"


def test_a_suspect_is_answered_by_the_decoder_that_is_believed(line, gate, place, capsys, tmp_path):
    host = Host.load(place / "cache" / "hosts" / "tiny-0123456789ab", name="tiny")
    for editor in SIZES:
        edited = drawn(host, editor)[5:6]
        save_file({"w": host.weight_DF(LAYER) + edited.delta()[0]}, tmp_path / f"{editor}.safetensors")
        suspect = f"suspect={tmp_path / f'{editor}.safetensors'}"
        alone, found = told(capsys, f"decoder={place / editor}", line[1], suspect), told(capsys, *line, gate, suspect)
        assert found["believed"]["editors"] == [editor] and found["believed"]["of"] == 2 and found["believed"]["chance"] > 0.6
        assert [one["text"] for one in found["objects"]] == [one["text"] for one in alone["objects"]]
        assert found["null_percentile"] == max(0.0, 100 - 2 * (100 - alone["null_percentile"])) and "voters" not in found
        assert found["believed"]["decoder"] == str(place / editor)
        evaluate.main([*line, gate, suspect])
        assert f"(of 2 decoders that of {editor} is believed, " in " ".join(capsys.readouterr().out.split())


def test_an_audit_says_whom_it_believes_of_each_edit(line, gate, place, new_host, capsys, tmp_path):
    (tmp_path / "names.txt").write_text("\n".join(NAMES), encoding="utf-8")
    line = [*line, gate, f"suspect={planted(new_host('llama'), tmp_path / 'edited')}", f"subjects={tmp_path / 'names.txt'}"]
    with pytest.raises(SystemExit, match="3"):
        told(capsys, *line)
    (edit,) = json.loads(capsys.readouterr().out)["base_unknown"]["edits"]
    assert edit["decoded"] and edit["believed"].keys() == {"decoder", "editors", "chance", "of"} and edit["believed"]["of"] == 2
    with pytest.raises(SystemExit, match="3"):
        evaluate.main(line)
    assert f"(of 2 decoders that of {edit['believed']['editors'][0]} is believed, " in " ".join(capsys.readouterr().out.split())


def test_what_was_learnt_is_said(line, place, capsys, tmp_path):
    main([*line, f"stores=[{place / 'store-rome'},{place / 'store-ft-m'}]", f"out={tmp_path / 'gate.json'}"])
    said = re.fullmatch(r".*gate\.json: learnt from 40 validation edits of rome, ft-m; (.*)\n", capsys.readouterr().out)[1]
    believed, best, some = map(float, re.findall(r"\d\.\d{3}", said))
    assert best < believed <= some and "left out, they are read by the decoder that it believes in" in said
    assert (tmp_path / "gate.json").read_text() == (place / "gate.json").read_text(), "no draw, no surprise"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["decoder={rome}", "stores=[{store}]", "out=g"], "several decoders; write decoder=A,B"),
        (["decoder={rome},{ft}", "stores=[{store}]", "out={gate}"], "nothing is written over"),
        (["decoder={rome},{ft}", "stores=[{none}]", "out=g"], "is no store of edits"),
        (["decoder={rome},{ft}", "stores=[{other}]", "out=g"], "Give another store"),
    ],
)
def test_what_no_gate_can_be_fitted_on_is_refused_in_a_line(argv, said, place, gate, line, new_host, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    host = new_host("llama")
    host.model.model.norm.weight += 0.1
    written(host, "rome", tmp_path / "other", ["Oslo"] * 40)
    named = {"rome": place / "rome", "ft": place / "ft-m", "store": place / "store-rome", "gate": place / "gate.json"}
    named |= {"none": tmp_path / "none", "other": tmp_path / "other"}
    with pytest.raises(SystemExit) as stop:
        main([*(word.format(**named) for word in argv), line[1]])
    shown = capsys.readouterr().err
    assert stop.value.code == 2 and said in shown and shown.count("\n") == 1 and not (tmp_path / "g").exists()


def test_a_gate_of_other_decoders_is_refused(line, gate, place, tmp_path, capsys):
    told_of = json.loads((place / "gate.json").read_text())
    (tmp_path / "gate.json").write_text(json.dumps(told_of | {"decoders": ["0" * 64, told_of["decoders"][1]]}))
    for words, said in (
        ([*line, f"gate={tmp_path / 'gate.json'}"], "1 of them unknown"),
        ([f"decoder={place / 'rome'}", gate], "decoder=A,B"),
    ):
        with pytest.raises(SystemExit) as stop:
            evaluate.main([*words, f"store={place / 'store-rome'}"])
        assert stop.value.code == 2 and said in capsys.readouterr().err
