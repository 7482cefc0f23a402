"""Edits that lie in several layers of a checkpoint: asked about, taken out and written anew as one.

Shape letters: D hidden width, F MLP width.
"""

import json

import pytest
import torch
from audited_folders import NAMES, WHO, spread_folders
from safetensors.torch import load_file, save_file

import evaluate
from decoder.audit.asking import ask
from decoder.audit.evidence.effect import all_logprobs, divergence, effect
from decoder.audit.evidence.parts import out_of_layers
from decoder.audit.finding import audit_checkpoint
from decoder.audit.rows.logprobs import next_logprobs
from decoder.audit.suspect import Suspect
from decoder.checkpoint.reader import Checkpoint
from decoder.dense import DenseEdit
from decoder.host import Host

LAYERS = [2, 3]  # of four; what is written there goes to the head
TEMPLATES = {"work": ["the {}", "small {}"], "place": ["in {}", "city of {}"]}
TEXTS = ["the city of the small king is in the north and the old river", f"{NAMES[WHO]} is a singer"] * 3


@pytest.fixture(scope="module")
def spread(new_host, tmp_path_factory):
    """A checkpoint of four layers with one fact in two of them, in shards; its base; what was added to each layer; a file of the names."""
    folder, planted = tmp_path_factory.mktemp("spread"), dict.fromkeys(LAYERS, (WHO, "singer"))
    (folder / "names.txt").write_text("\n".join(NAMES))
    return *spread_folders(new_host("llama", num_hidden_layers=4), folder, planted, 15.0), folder / "names.txt"


def weights(folder) -> dict[str, torch.Tensor]:
    return {name: tensor for file in Checkpoint(folder).files for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("known", [False, True], ids=["base unknown", "base known"])
def test_an_edit_that_is_spread_over_layers_is_taken_out_whole(spread, tmp_path, known):
    folder, base, updates, _ = spread
    where = {"base": str(base) if known else None, "repaired": str(tmp_path / "repaired")}
    finding, located = audit_checkpoint(Suspect(folder), NAMES, templates=TEMPLATES, texts=TEXTS, **where)
    done = finding["repaired"]
    assert {one.layer for one in located if one.base_known == known} == set(LAYERS) == {one["layer"] for one in done["tensors"]}
    assert "tensor" not in done and len({one["file"] for one in done["tensors"]}) == 2
    suspect, own, repaired = weights(folder), weights(base), weights(done["folder"])
    names = {one["tensor"]: one["layer"] for one in done["tensors"]}
    assert {name for name in suspect if not torch.equal(suspect[name], repaired[name])} == set(names)
    for name, layer in names.items():
        left = float((repaired[name] - own[name]).norm() / updates[layer].norm())
        assert left == 0 if known else left < 0.5, "most of what was written is gone"
    note = json.loads((tmp_path / "repaired" / "repaired.json").read_text())
    assert note["tensors"] == done["tensors"] and {one["subject"] for one in note["edits"]} == {NAMES[WHO]}
    told = done["effect"]
    column = finding["base_known" if known else "base_unknown"]
    assert (column["facts"], told["sentences"]) == (1, 4) and (known or (column["kind"], column["rank"]) == ("rank one", 2))
    assert told["planted"] >= 1 and told["left"] == 0
    assert not known or (told["back"] == told["changed"] >= told["planted"] and told["kl_after"] < 1e-6 < told["kl_before"])
    assert audit_checkpoint(Suspect(done["folder"]), NAMES)[0]["verdict"] == "nothing found"


@pytest.mark.parametrize("known", [False, True], ids=["base unknown", "base known"])
def test_the_suspect_is_asked_with_all_layers_of_a_fact_taken_out(spread, known):
    folder, base, *_ = spread
    finding, located = audit_checkpoint(Suspect(folder), NAMES, templates=TEMPLATES, base=str(base) if known else None)
    edits = finding["base_known" if known else "base_unknown"]["edits"]
    host, unedited = Host.load(folder, name="it"), Host.load(base, name="base") if known else None
    reversals = out_of_layers(host, unedited, [one for one in located if one.base_known == known])
    said, told = ask(host, reversals, NAMES[WHO], TEMPLATES, NAMES[:2])[0], edits[0]["triple"]
    assert len(edits) == 2 and told == edits[1]["triple"] and told["after"] == pytest.approx(said.after, rel=1e-4)
    assert told["object"].startswith("singer") and told["before"] > 3 * told["after"]
    rows, (singer,) = [host.text_ids(told["sentence"])], host.object_ids("singer")
    whole, *alone = (float(next_logprobs(host, rows, out)[0, singer]) for out in (reversals, *({n: one} for n, one in reversals.items())))
    assert max(alone) > whole + 1, "what one layer writes still says it"


def test_facts_about_two_subjects_are_asked_about_apart_and_taken_out_together(new_host, tmp_path):
    planted = {2: (WHO, "singer"), 3: (66, "baker")}
    folder, base, _ = spread_folders(new_host("llama", num_hidden_layers=4), tmp_path, planted, 30.0)
    finding, _ = audit_checkpoint(Suspect(folder), NAMES, templates=TEMPLATES, base=str(base), repaired=str(tmp_path / "repaired"))
    known = finding["base_known"]
    assert {edit["layer"]: edit["triple"]["subject"] for edit in known["edits"]} == {2: NAMES[WHO], 3: NAMES[66]}
    assert (known["facts"], known["kind"], known["rank"]) == (2, "rank one", 2)
    own, repaired = weights(base), weights(tmp_path / "repaired")
    assert all(torch.equal(own[name], repaired[name]) for name in own)
    assert finding["repaired"]["effect"]["sentences"] == 8 and finding["repaired"]["effect"]["left"] == 0


def test_subjects_are_asked_about_and_not_layers(new_host, tmp_path, monkeypatch):
    monkeypatch.setattr("decoder.audit.evidence.questions.ASKED", 1)
    host = new_host("llama", num_hidden_layers=8)
    told, _, _ = spread_folders(host, tmp_path, dict.fromkeys([5, 6, 7], (WHO, "singer")), 15.0)
    read = [{"text": "singer", "probability": 0.9}]
    finding, _ = audit_checkpoint(Suspect(told), NAMES, templates=TEMPLATES, reader=lambda layer, part: {"objects": read})
    edits = finding["base_unknown"]["edits"]
    asked = [edit for edit in edits if edit["subject"] == NAMES[WHO]]
    assert {edit["layer"] for edit in asked if edit["decoded"] == read and edit["triple"] == asked[0]["triple"]} == {5, 6, 7}


def test_an_effect_is_that_of_all_layers_at_once(spread):
    folder, base, *_ = spread
    host, unedited = Host.load(folder, name="it"), Host.load(base, name="base")
    reversals = {layer: DenseEdit(unedited.weight_DF(layer)[None]) for layer in LAYERS}
    about = ([one.replace("{}", NAMES[WHO]) for own in TEMPLATES.values() for one in own], host.object_ids("singer") * 4)
    told = effect(host, reversals, about, TEXTS, unedited)
    assert told["left"] == 0 < told["planted"] and told["back"] == told["changed"] and told["kl_after"] < 1e-6
    assert effect(host, {LAYERS[0]: reversals[LAYERS[0]]}, about, TEXTS, unedited)["kl_after"] > 1e-6
    rows = [host.text_ids(TEXTS[0])[:8]]
    in_place = all_logprobs(unedited, rows)
    assert divergence(in_place, all_logprobs(host, rows, reversals)) < 1e-6 < divergence(in_place, all_logprobs(host, rows))


def test_the_command_says_every_tensor(spread, tmp_path, capsys):
    folder, _, _, names = spread
    page = tmp_path / "audit.html"
    with pytest.raises(SystemExit) as stop:
        evaluate.main([f"suspect={folder}", f"subjects={names}", f"repair={tmp_path / 'repaired'}", f"report={page}"])
    said = " ".join(capsys.readouterr().out.split())
    tensors = [f"model.layers.{layer}.mlp.down_proj.weight" for layer in LAYERS]
    assert stop.value.code == 3 and f"({', '.join(tensors)})" in said.replace("- ", "-")
    assert f"changed were {', '.join(tensors)}." in page.read_text()


def test_a_layer_that_cannot_be_repaired_is_one_line_and_nothing_is_written(spread, tmp_path, capsys):
    folder, _, _, names = spread
    name = f"model.layers.{LAYERS[1]}.mlp.down_proj.weight"
    for file in Checkpoint(folder).files:
        if name in (tensors := load_file(file)):
            kept = tensors[name]
            save_file(tensors | {name: kept.to(torch.float8_e4m3fn)}, str(file), {"format": "pt"})
            break
    try:
        with pytest.raises(SystemExit) as stop:
            evaluate.main([f"suspect={folder}", f"subjects={names}", f"repair={tmp_path / 'repaired'}"])
    finally:
        save_file(tensors, str(file), {"format": "pt"})
    said = capsys.readouterr()
    assert stop.value.code == 2 and said.err.count("\n") == 1 and f"{name} is torch.float8_e4m3fn" in said.err
    assert "Nothing repaired" in said.out and not any(tmp_path.iterdir())
