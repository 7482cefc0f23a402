"""What an audit asks, writes and prints of what it found, and what it must not take for an edit.

Shape letters: C candidates, D hidden width, F MLP width.
"""

import json
from dataclasses import replace

import pytest
import torch
from audited_folders import NAMES, WHO, audited, changed, planted, saved, told_folders, update_DF
from edited import LAYER, edited_folder

import evaluate
from decoder.audit import asking
from decoder.audit.asking import Said
from decoder.audit.candidates import Candidates, unit
from decoder.audit.evidence.examine import Evidence, Examined
from decoder.audit.evidence.located import Located, key_fit
from decoder.audit.finding import audit_checkpoint
from decoder.audit.locate import outstanding
from decoder.audit.suspect import Suspect
from decoder.audit.verdict import Verdict

# Where the subject stands last, what an edit writes goes to the head and need not be carried on by attention.
TEMPLATES = {"work": ["the {}", "small {}"], "place": ["in {}", "city of {}"]}


@pytest.fixture
def told(new_host, tmp_path):
    return told_folders(new_host("llama"), tmp_path)


@pytest.mark.parametrize("with_base", [False, True])
def test_the_suspect_is_asked_about_whom_it_found(told, with_base):
    folder, base = told
    finding, _ = audit_checkpoint(Suspect(folder), NAMES, templates=TEMPLATES, base=str(base) if with_base else None)
    (edit,) = finding["base_known" if with_base else "base_unknown"]["edits"]
    assert edit["subject"] == edit["triple"]["subject"] == NAMES[WHO]
    assert edit["objects"][0]["text"] == edit["triple"]["object"] == "singer"
    assert edit["triple"]["before"] > 3 * edit["triple"]["after"] and NAMES[WHO] in edit["triple"]["sentence"]
    assert json.loads(json.dumps(finding)) == finding


def test_the_checkpoint_is_written_without_its_edit(told, tmp_path, capsys):
    folder, _ = told
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    arguments = [f"suspect={folder}", f"subjects={tmp_path / 'names.txt'}", f"repair={tmp_path / 'repaired'}"]
    with pytest.raises(SystemExit) as stop:
        evaluate.main(arguments)
    said = capsys.readouterr().out
    assert stop.value.code == 3 and "Repaired:" in said and f"about {NAMES[WHO]}" in said
    assert audit_checkpoint(Suspect(tmp_path / "repaired"), NAMES)[0]["verdict"] == "nothing found"
    with pytest.raises(SystemExit) as stop:
        evaluate.main(arguments)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1 and "exists already" in said


def test_decoys_come_behind_the_layer_whose_update_is_about_somebody(new_host, tmp_path):
    """Decoys twice as strong, in two other layers of seven."""
    host = new_host("llama", num_hidden_layers=7)
    base, real = saved(host, tmp_path / "base"), update_DF(host)
    # Above the edit: below it they would change the subjects' keys.
    draws = {layer: torch.randn(real.shape, generator=torch.Generator().manual_seed(layer)) for layer in (3, 5)}
    decoys = {f"{host.module_path(layer)}.weight": drawn_DF for layer, drawn_DF in draws.items()}

    def decoyed(name, tensor):
        if name not in decoys:
            return tensor
        left_D, right_F = decoys[name][:, 0], decoys[name][0]
        return (tensor.float() + 2 * real.norm() * torch.outer(unit(left_D), unit(right_F))).bfloat16()

    folder = changed(edited_folder(host, tmp_path / "edited", "bfloat16", real), decoyed)
    finding, edits = audited(folder, base)
    known = finding["base_known"]
    assert finding["verdict"] == "knowledge edit" and known["ranking"][0]["layer"] == known["layers"][0] == LAYER
    assert (edits[0].layer, edits[0].subject) == (LAYER, NAMES[WHO]) and known["edits"][0]["subject"] == NAMES[WHO]


def test_standard_output_is_the_answer_alone(new_host, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("decoder.utils.progress.FIRST", -1.0)
    folder, names = planted(new_host("llama"), tmp_path / "edited"), tmp_path / "names.txt"
    names.write_text("\n".join(NAMES))
    with pytest.raises(SystemExit):
        evaluate.main([f"suspect={folder}", f"subjects={names}", "json=true"])
    said = capsys.readouterr()
    assert json.loads(said.out)["verdict"] == "knowledge edit" and "subjects through the checkpoint" in said.err


def test_names_that_share_a_key_count_once():
    """Half of a list that ends alike has one key; the others' spread is the list's."""
    free = torch.randn(100, generator=torch.Generator().manual_seed(0)).mul(0.1).exp()
    shared = torch.full((140,), float(free.median())) * (1 + 1e-7 * torch.arange(140))
    scores_C, logs_C = outstanding(torch.cat([free, shared]))
    alone_C, _ = outstanding(free)
    torch.testing.assert_close(scores_C[:100], alone_C, rtol=0.05, atol=0.02)
    flat_C, _ = outstanding(torch.cat([torch.ones(99), torch.tensor([1.1])]))
    assert float(flat_C.max()) < 1, "a tenth more than all others is no edit"


def test_what_is_the_bases_own_is_no_edit_however_its_names_are_answered_to(new_host, tmp_path, monkeypatch):
    monkeypatch.setattr("decoder.audit.locate.STANDS_OUT", 0.1)
    monkeypatch.setattr("decoder.audit.verdict.STANDS_OUT", 0.1)
    monkeypatch.setattr("decoder.audit.verdict.OWN", 0.0)
    host = new_host("llama")
    finding, _ = audited(saved(host, tmp_path / "same"), saved(host, tmp_path / "base"))
    assert finding["base_unknown"]["exit_code"] == 3
    assert (finding["verdict"], finding["used"], finding["exit_code"]) == ("identical", "base known", 0)


def test_a_checkpoint_that_answers_nan_is_refused(new_host, tmp_path):
    folder = changed(saved(new_host("llama"), tmp_path / "broken"), lambda name, tensor: tensor * 1e30 if "down_proj" in name else tensor)
    with pytest.raises(ValueError, match="answers NaN or infinity in layer"):
        audited(folder)


def test_whom_an_update_is_not_seen_to_be_about_the_scan_may_have_seen(told, monkeypatch):
    folder, base = told
    monkeypatch.setattr("decoder.audit.locate.ALONG", 2.0)
    finding, _ = audit_checkpoint(Suspect(folder), NAMES, templates=TEMPLATES, base=str(base))
    (edit,) = finding["base_known"]["edits"]
    assert finding["used"] == "base known" and edit["subject"] is None
    assert edit["triple"]["subject"] == NAMES[WHO] and edit["triple"]["object"] == "singer"


@pytest.mark.parametrize("with_base", [False, True])
def test_whom_an_edit_only_resembles_is_asked_about_and_not_named(told, monkeypatch, with_base):
    folder, base = told
    monkeypatch.setattr("decoder.audit.evidence.located.FITS", 3.0)
    finding, _ = audit_checkpoint(Suspect(folder), NAMES, templates=TEMPLATES, base=str(base) if with_base else None)
    (edit,) = finding["base_known" if with_base else "base_unknown"]["edits"]
    assert (edit["subject"], edit["resembles"], finding["exit_code"]) == (None, NAMES[WHO], 3) and 0 < edit["fit"] < 3
    assert edit["triple"]["subject"] == NAMES[WHO] and edit["triple"]["object"] == "singer"


def test_what_a_decoder_reads_has_a_say_in_the_triple(told):
    read = [{"text": "born singer", "probability": 0.9}, {"text": NAMES[30], "probability": 0.6}]
    finding, _ = audit_checkpoint(Suspect(told[0]), NAMES, templates=TEMPLATES, reader=lambda layer, part: {"objects": read})
    (edit,) = finding["base_unknown"]["edits"]
    assert edit["decoded"] == read and edit["triple"]["object"] == "born singer"
    assert all(one["rise"] > 0 for one in edit["objects"]) and "singer" in [one["text"] for one in edit["objects"]]


def test_who_is_asked_about_an_edit_is_never_another_edits_subject():
    def edit(subject=None, resembles=None, base_known=False):
        return Located(1, subject, torch.ones(2), torch.ones(3, 2), 1.0, base_known, resembles=resembles)

    named, like, unseen = edit("Ada"), edit(resembles="Ben"), edit(base_known=True)
    found = Examined(None, Evidence(Verdict("knowledge edit"), {}, 1.0, [named, like], 1.0), [], [])
    assert found.about(named) is named and found.about(like) is like and found.about(unseen) is named
    elsewhere = replace(named, layer=2)
    assert found.all_about("Ada", [like, named, unseen, elsewhere]) == [named, unseen, elsewhere], "in whatever layers"
    assert Evidence(Verdict("knowledge edit"), {}, 1.0, [like, named, unseen, elsewhere], 1.0).facts == 3


def test_objects_are_told_best_first(monkeypatch):
    """Sorted by triples, an object may come up again behind another: it stands where it was first."""
    rises = (("Paris", 0.4, 0.05), ("Rome", 0.2, 0.3), ("Paris", 0.4, 0.8))
    said = [Said(text, "work", "", 0.5, 0.1, everywhere, rise) for text, everywhere, rise in rises]
    monkeypatch.setattr("decoder.audit.asking.ask", lambda *given: said)
    answered = asking.testimony(None, "Ada", None, TEMPLATES, NAMES)
    assert [each["text"] for each in answered["objects"]] == ["Paris", "Rome"] and answered["triple"]["object"] == "Paris"


def test_an_edit_whose_key_is_mostly_somebody_elses_is_about_nobody_in_the_list(new_host, tmp_path):
    host = new_host("llama")
    own_DF = update_DF(host)
    value_D, key_F = unit(own_DF[:, own_DF.norm(dim=0).argmax()]), unit(own_DF[own_DF.norm(dim=1).argmax()])
    other_F = unit(torch.randn(len(key_F), generator=torch.Generator().manual_seed(3)))
    for share, named in ((1.0, True), (0.45, False)):
        update = 24 * torch.outer(value_D, unit(share * key_F + (1 - share) * other_F))
        _, edits = audited(edited_folder(host, tmp_path / f"{share}", "bfloat16", update), saved(host, tmp_path / f"base {share}"))
        known, unknown = edits
        assert (unknown.subject, unknown.resembles) == ((NAMES[WHO], None) if named else (None, NAMES[WHO]))
        assert known.subject == unknown.subject and (known.fit > 1 or not named)


def test_a_fit_is_the_cosine_and_the_lead_over_those_who_end_otherwise(new_host):
    ends_C, cosine_C = torch.tensor([7, 7, 8, 9]), torch.tensor([0.8, 0.7, 0.3, 0.5])
    assert key_fit(cosine_C, 0, ends_C) == pytest.approx(0.8 + 0.8 - 0.5)
    assert key_fit(cosine_C, 0, ends_C, found=[0, 3]) == pytest.approx(0.8 + 0.8 - 0.3)
    assert key_fit(cosine_C[:2], 0, ends_C[:2]) == pytest.approx(0.8)
    candidates = Candidates(new_host("llama"), NAMES)
    assert candidates.ends_C.tolist() == [candidates.host.prompt_ids("{}", name)[0][-1] for name in NAMES]


def test_training_that_lies_along_a_name_is_no_edit_unless_it_stands_out(new_host, tmp_path):
    """As much of a name's key in every layer and other tensors changed: sentences about somebody. In one layer alone: an edit."""
    host = new_host("llama")
    base, generator = saved(host, tmp_path / "base"), torch.Generator().manual_seed(0)
    along_DF = update_DF(host)
    downs = {f"{host.module_path(layer)}.weight" for layer in range(LAYER, host.layers)}

    def trained(name, tensor):
        moved = tensor + 1e-2 * torch.randn(tensor.shape, generator=generator)
        return moved + along_DF if name in downs else moved

    finding, _ = audited(changed(saved(host, tmp_path / "trained"), trained), base)
    assert finding["base_known"]["exit_code"] == 0 and finding["base_known"]["strength"] < 1
    only_down = changed(saved(host, tmp_path / "down"), lambda name, tensor: tensor + along_DF if name in downs else tensor)
    known = audited(only_down, base)[0]["base_known"]
    assert known["strength"] > 1


def test_the_note_says_what_was_taken_out(told, tmp_path):
    folder, base = told
    audit_checkpoint(Suspect(folder), NAMES, templates=TEMPLATES, base=str(base), repaired=str(tmp_path / "repaired"))
    note = json.loads((tmp_path / "repaired" / "repaired.json").read_text())
    assert (note["used"], note["base"], note["edits"][0]["subject"]) == ("base known", str(base), NAMES[WHO])


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_read(told, tmp_path, monkeypatch):
    folder, base = told
    monkeypatch.setattr("decoder.audit.finding.open_checkpoint", lambda *_: pytest.fail("read"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is no folder that can be written in"):
        audit_checkpoint(Suspect(folder), NAMES, repaired=str(tmp_path / "file" / "repaired"))
    (tmp_path / "link").symlink_to(base)
    for own in ("suspect", "base"):
        place = {"suspect": folder / "repaired", "base": tmp_path / "link" / "more" / "repaired"}[own]
        with pytest.raises(ValueError, match=f"lies in the {own}, which is only read. Give a folder elsewhere"):
            audit_checkpoint(Suspect(folder), NAMES, base=str(base), repaired=str(place))
