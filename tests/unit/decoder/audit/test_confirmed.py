"""Names that nearly stand out, and what the suspect says of them."""

from dataclasses import replace

import pytest
import torch
from audited_folders import NAMES, saved, update_DF
from edited import LAYER

from decoder.audit.candidates import TEMPLATE, Candidates, unit, whitener
from decoder.audit.evidence import notes
from decoder.audit.evidence.confirmed import FEW, MANY, RISE, SILENT, _outside, confirm
from decoder.audit.evidence.examine import examine
from decoder.audit.finding import audit_checkpoint
from decoder.audit.locate import NEARLY, STANDS_OUT, scan
from decoder.audit.reversal import reverse
from decoder.audit.rows.keys import gathered
from decoder.audit.suspect import Suspect
from decoder.audit.verdict import Compared, Verdict

TEMPLATES = {"name": [TEMPLATE]}
"""The key of a name in a host of random weights is that of its own sentence alone."""
WHO = 54
BESIDE = [place for place in range(len(NAMES)) if place != WHO][:MANY][:: MANY // FEW]
"""Names that the first is held against."""
SIZE = 2.0  # of an edit that nearly stands out
LOUD = 2.0  # a word's row of the unembedding: what little an edit of that size adds in a tiny host is heard


@pytest.fixture
def suspect(new_host):
    """A host with a small edit that says `singer` of one name."""
    host = new_host("llama")
    plant(host, WHO)
    return host


def plant(host, *places: int) -> None:
    """Small edits of names that say a loud word; without them no sentence that is asked leans to it or away."""
    (singer,) = host.object_ids("singer")
    rows = [torch.tensor([host.prompt_ids(own[0], NAMES[place])[0]]) for own in TEMPLATES.values() for place in (WHO, *BESIDE)]
    with torch.no_grad():
        hidden_ND = torch.cat([host.model.model(input_ids=row).last_hidden_state[:, -1] for row in rows])
    basis_DN = torch.linalg.qr(hidden_ND.T).Q
    value_D = unit(host.unembedding_VD[singer] - basis_DN @ (basis_DN.T @ host.unembedding_VD[singer]))
    host.unembedding_VD[singer] = LOUD * value_D
    host.weight_DF(LAYER).add_(sum(update_DF(host, SIZE, who, value_D) for who in places))


def told(host, templates=TEMPLATES):
    return examine(host, Candidates(host, NAMES), templates=templates).unknown


def test_an_edit_kept_small_shows_by_what_is_said_of_its_subject(suspect):
    silent, heard = told(suspect, None), told(suspect)
    assert NEARLY <= silent.scores[LAYER] < 0.9 * STANDS_OUT and silent.verdict.what == "nothing found" and not silent.located
    assert (heard.verdict.what, heard.verdict.exit_code, heard.verdict.layers) == ("knowledge edit", 3, (LAYER,))
    assert [(one.layer, one.subject) for one in heard.located] == [(LAYER, NAMES[WHO])] and heard.facts == 1
    assert heard.strength >= 1 > silent.strength and not heard.stands_out
    assert f"asked about “{NAMES[WHO]}” it goes on with “singer”" in heard.verdict.why and heard.verdict.why.count("layer") == 1


def test_the_less_a_name_stands_out_the_more_must_be_said(suspect, monkeypatch):
    monkeypatch.setattr("decoder.audit.evidence.confirmed.SPREADS", -99.0)
    (found,) = told(suspect).confirmed
    assert found.score < STANDS_OUT and found.least == pytest.approx(RISE * (STANDS_OUT / found.score) ** 2)


def test_a_name_that_nobody_edited_says_nothing(new_host):
    host = new_host("llama")
    # As conspicuous, and says a little of everything.
    host.weight_DF(LAYER).add_(update_DF(host, SIZE))
    found = told(host)
    assert found.scores[LAYER] >= NEARLY and found.confirmed and max(one.strength for one in found.confirmed) < 0.9
    assert found.verdict.exit_code == 0 and found.strength == found.scores[LAYER] / found.threshold


def test_what_is_said_of_other_names_as_well_is_no_sign(suspect, new_host):
    """A host may know every name for one thing: then none is edited."""
    (alone,) = confirm(suspect, Candidates(suspect, NAMES), scan(suspect, Candidates(suspect, NAMES)), STANDS_OUT, TEMPLATES)
    host = new_host("llama")
    plant(host, WHO, *BESIDE)
    scans = scan(host, Candidates(host, NAMES))
    (beside,) = [one for one in confirm(host, Candidates(host, NAMES), scans, STANDS_OUT, TEMPLATES) if one.layer == LAYER]
    assert beside.text == alone.text == "singer" and beside.least > 2 * alone.least and beside.strength < 1 <= alone.strength
    assert told(host).verdict.exit_code == 0


def test_the_rise_is_what_the_whole_model_says_with_the_answer_and_without(suspect):
    """The slow twin: every sentence alone, the answer taken out of the matrix itself."""
    candidates = Candidates(suspect, NAMES)
    scans = scan(suspect, candidates)
    (found,) = confirm(suspect, candidates, scans, STANDS_OUT, TEMPLATES)
    one = scans[LAYER]
    rows = [torch.tensor([suspect.prompt_ids(own[0], found.name)[0]]) for own in TEMPLATES.values()]
    weight_DF = suspect.weight_DF(LAYER)
    own_DF = weight_DF.clone()

    def said() -> torch.Tensor:
        return torch.cat([suspect.model(input_ids=row).logits[:, -1] for row in rows]).log_softmax(1)

    with torch.no_grad():
        before_NV = said()
        weight_DF.add_(reverse(own_DF, one.first_F, one.usual_LF).delta()[0])
        after_NV = said()
    rise_V = (before_NV.exp() * (before_NV - after_NV)).mean(0)
    assert found.text == suspect.tokenizer.decode([int(rise_V.argmax())]).strip() == "singer"
    assert found.rise == pytest.approx(float(rise_V.max()), rel=1e-4)


def test_what_the_survey_keeps_is_what_the_list_has(suspect):
    """Keys of names that nearly stand out are kept as they go by, those of all are never at hand."""
    candidates = Candidates(suspect, NAMES)
    (one,) = [each for each in scan(suspect, candidates) if each.first_F is not None]
    keys_CF = gathered(candidates, [LAYER])[LAYER]
    whole_CF = unit(whitener(keys_CF)(keys_CF))
    torch.testing.assert_close(one.first_F, whole_CF[WHO], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(one.usual_LF, whole_CF[[*one.usual]], rtol=1e-4, atol=1e-5)


def test_a_finding_tells_what_was_asked_and_is_no_more_than_moderate(suspect, tmp_path):
    from decoder.report.audit_page import how_sure

    finding, _ = audit_checkpoint(Suspect(saved(suspect, tmp_path / "told")), NAMES, templates=TEMPLATES)
    (nearly,) = finding["base_unknown"]["nearly"]
    assert finding["exit_code"] == 3 and (nearly["name"], nearly["text"], nearly["layer"]) == (NAMES[WHO], "singer", LAYER)
    (edit,) = finding["base_unknown"]["edits"]
    assert edit["subject"] == NAMES[WHO] and edit["triple"]["object"].startswith("singer")
    sure, reasons = how_sure(finding)
    assert sure == "Moderate" and any("nearly stands out" in reason for reason in reasons)


def test_a_base_that_shows_no_edit_has_the_last_word(suspect, tmp_path):
    """What sentences alone show is a note beside it."""
    folder = saved(suspect, tmp_path / "told")
    compared = Compared([], {f"{suspect.module_path(layer)}.weight": layer for layer in range(suspect.layers)}, False)
    found = examine(suspect, Candidates(suspect, NAMES), compared, templates=TEMPLATES)
    assert found.unknown.verdict.exit_code == 3 and found.known.verdict.what == "identical" and not found.by_scan
    assert not notes.unconfirmed(found), "a base that is the suspect bears nothing out"
    trained = found._replace(known=replace(found.known, verdict=Verdict("further trained")))
    assert not trained.by_scan and not notes.in_base_too(trained)
    (note,) = notes.unconfirmed(trained)
    assert "goes on with “singer”" in note and "does not bear it out" in note
    finding, _ = audit_checkpoint(Suspect(folder), NAMES, base=str(saved(suspect, tmp_path / "same")), templates=TEMPLATES)
    assert (finding["verdict"], finding["used"], finding["exit_code"]) == ("identical", "base known", 0)
    assert [f"both answer to {NAMES[WHO]}" in warning for warning in finding["warnings"]] == [True]


def test_what_is_outside_the_spread_of_others_hangs_on_no_single_one():
    """One loud name among eight moves the bar, and does not set it."""
    quiet = [0.03, 0.07, 0.15, 0.15, 0.2, 0.43, 0.77]
    assert _outside([*quiet, 2.0]) > _outside([*quiet, 0.4]) > 2.0 > max(quiet)
    assert _outside([0.001] * 8) == pytest.approx(SILENT) and _outside([]) == 0.0


def test_a_layer_that_stands_out_less_than_the_suspects_own_is_asked_about(suspect):
    """A stronger edit must not be asked less than a weaker one."""
    candidates = Candidates(suspect, NAMES)
    scans = scan(suspect, candidates)
    raised = [replace(one, score=2.1, hits=((WHO, 2.1),)) if one.layer == LAYER else one for one in scans]
    (found,) = confirm(suspect, candidates, raised, 2.2, TEMPLATES)
    assert (found.name, found.text) == (NAMES[WHO], "singer") and found.strength >= 1
    assert not confirm(suspect, candidates, raised, 2.0, TEMPLATES)
