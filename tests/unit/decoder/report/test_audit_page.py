"""The page of an audit: from findings that nobody measured, and once from a real audit."""

import json
import re

import pytest
from audit_findings import TRIPLE, column, finding, page, said
from browser import needs_printer, printed
from edited import LAYER, SUBJECTS, edited_folder

import evaluate
from decoder.audit.candidates import Candidates, unit, whitener
from decoder.audit.rows.keys import gathered
from decoder.report.audit_page import MARK, write_audit
from decoder.utils.errors import UserError

NASTY = "<script>alert('x')</script>"


def test_an_edit_is_told_in_words_with_its_evidence(tmp_path):
    html = page(tmp_path, column())
    text = said(html)
    assert "Somebody seems to have written a fact about Ada into layer 5 of this checkpoint." in text
    assert "It now says “Ada works as a singer” with a probability of 0.840; with the edit taken out, below 0.001." in text
    assert "singer and “work” have 91 % of the weight" in text
    assert "Score 7.50; runners-up: Ben 6.50." in text and "Two files were not read." in text and "Confidence: high" in text
    assert "python evaluate.py suspect=it" in text and "torch" in text and "estimated from the checkpoint itself" in text
    for layer, score in ((0, "0.50"), (5, "7.50"), (29, "0.79")):
        assert f"{layer}: {score}" in re.search(r'aria-label="(.*?)"', html)[1]
    assert len(re.findall(r"layer \d+ [\d.]+[,.]", re.search(r"<details>.*?</details>", html, re.S)[0])) == 30
    assert not re.search(r"<script|<link|src=|url\((?!#)|https?://(?!www.w3.org)", html), "a page needs nothing but itself"


def test_the_other_sentences_of_the_relation_stand_beside_the_evidence(tmp_path):
    text = said(page(tmp_path, column()))
    assert "Other sentences of “work”" in text and "Ada earns a living as a singer 0.610 0.020" in text
    alone = column()
    alone["edits"][0]["triple"] = {name: told for name, told in TRIPLE.items() if name != "paraphrases"}
    assert "Other sentences of" not in said(page(tmp_path, alone)) + said(page(tmp_path, column(subject=None)))


def test_a_fact_in_two_layers_is_about_one_subject_also_where_the_upper_key_is_another(tmp_path):
    told = column(layers=(0, 1)) | {"facts": 1}
    told["edits"][1] |= {"subject": None, "resembles": "Ada"}
    assert "Confidence: high" in said(page(tmp_path, told)), "who is named in one layer is known"
    assert "Somebody seems to have written a fact about Ada into layers 0 and 1" in said(page(tmp_path, told))
    told["edits"][1]["resembles"] = "Ben"
    assert "about Ada and somebody who was not asked about into" in said(page(tmp_path, told | {"facts": 2}))


def test_what_agrees_with_a_decoder_is_what_was_said_without_it(tmp_path):
    told = column()
    told["edits"][0] |= {"decoded": [{"text": "baker", "probability": 0.9}], "triple": TRIPLE | {"object": "baker"}}
    told["edits"][0]["objects"] = [{"text": "baker", "rise": 0.1}, {"text": "singer", "rise": 0.4}]
    assert "That is something else than the checkpoint says." in said(page(tmp_path, told))


def test_whom_an_edit_only_resembles_is_said_to(tmp_path):
    told = column()
    told["edits"][0] |= {"subject": None, "resembles": "Ada", "fit": 0.5}
    text = said(page(tmp_path, told))
    like = "about somebody who is not in the list; of the names that were asked about, Ada resembles them most."
    assert f"Somebody seems to have written a fact into layer 5 of this checkpoint, {like}" in text
    assert "Confidence: moderate" in text and "Confidence: high" in said(page(tmp_path, column()))
    known = said(page(tmp_path, column(), column() | {"edits": told["edits"]}))
    assert f"Somebody wrote a fact into layer 5 of this checkpoint, {like}" in known and "Confidence: moderate" in known
    several = column(layers=(5, 7)) | {"edits": [told["edits"][0], told["edits"][0] | {"layer": 7, "resembles": "Ben"}]}
    assert "2 facts into layers 5 and 7 of this checkpoint, about people who are not in the list; of the" in said(page(tmp_path, several))
    assert "asked about, Ada and Ben resemble them most." in said(page(tmp_path, several))
    assert "Whom it is about is not known" in text and "Whom it is about is not known" not in said(page(tmp_path, column()))
    assert "None of the names, somebody like Ada, layer 5" in text and "Ada resembles them, and was asked about." in text
    assert "What 1 edit of 1 planted" not in text and "“Ada works as a singer”" in text


def test_both_kinds_of_evidence_stand_in_columns_of_their_own(tmp_path):
    html = page(tmp_path, column("nothing found", ()), column(threshold=3.0))
    rows = {
        cells[0]: cells[1:]
        for cells in (re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row) for row in re.findall(r"(?s)<tr>(.*?)</tr>", html))
        if cells
    }
    assert rows["verdict"] == ["<strong>knowledge edit</strong>", "<strong>nothing found</strong>"]
    assert rows["layers"] == ["5", "none"] and rows["tensors"][0].startswith("1 of 272 differ") and rows["tensors"][1] == "–"
    assert html.count("<svg") == 2 and "threshold 3<" in html and "threshold 2.3<" in html
    text = said(html)
    assert "does not name the same layers" in text and "Confidence: moderate" in text and "estimated from" not in text
    html = page(tmp_path, column())
    assert html.count("<svg") == 1 and "nothing: the base was not given" in said(html)


@pytest.mark.parametrize(
    ("text", "agrees"), [(" Singer", "That is what the checkpoint says, too."), ("baker", "That is something else than")]
)
def test_what_a_decoder_reads_of_a_subject_stands_beside_what_is_said(tmp_path, text, agrees):
    read = [{"text": text, "probability": 0.875}]
    told = column() | {"edits": [one | {"decoded": read} for one in column()["edits"]]}
    shown = said(page(tmp_path, told))
    assert f"A decoder reads, in what was written about this name alone: {text.strip()} (0.875). {agrees}" in shown
    assert "A decoder reads" not in said(page(tmp_path, column())) and "is believed" not in shown
    told["edits"][0]["believed"] = {"decoder": "b", "editors": ["rome", "ft"], "chance": 0.75, "of": 3}
    assert "(0.875). Of 3 decoders that of rome and ft is believed (0.750). That" in said(page(tmp_path, told))


@pytest.mark.parametrize(
    ("of", "headline", "sure"),
    [
        (
            [column("nothing found", ())],
            "No edit was found about any of the 890 names that were asked about. About somebody else",
            "only of the names",
        ),
        (
            [column("nothing found", ()), column("identical", ())],
            "is the base, number for number: nothing was written into it since.",
            "certain",
        ),
        ([column("nothing found", ()), column("adapter merged", ())], "No edit was found. An adapter was merged", "moderate"),
        ([column("cannot tell", ())], "Whether somebody wrote a fact into this checkpoint cannot be told: it was so.", "undecided"),
        (
            [column(layers=(5,), subject=None)],
            "Somebody seems to have written a fact about none of the 890 names that were asked about into layer 5",
            "moderate",
        ),
        ([column(layers=(7, 5))], "Somebody seems to have written 2 facts about Ada into layers 5 and 7 of this checkpoint.", "high"),
        ([column(), column()], "Somebody wrote a fact about Ada into layer 5 of this checkpoint.", "high"),
        ([column("edit and further training")], "into layer 5 of this checkpoint. It was further trained as well.", "high"),
        ([column(), column() | {"kind": "whole matrix", "rank": None, "edits": []}], "Somebody changed the matrix of layer 5", "high"),
    ],
)
def test_every_verdict_has_its_sentence(tmp_path, of, headline, sure):
    text = said(page(tmp_path, *of))
    assert headline in text and f"Confidence: {sure}" in text
    assert ("The edit" in text) == bool(of[-1]["edits"])


def test_what_was_not_looked_at_is_told(tmp_path):
    text = said(page(tmp_path, column(layers=(7, 5), count=28)))
    for line in (
        "2 layers of 30 without one down-projection",
        "What 1 edit of 2 planted",
        "Names other than the 890",
        "Which relation was edited",
    ):
        assert line in text


def test_what_decoders_read_is_held_against_asking(tmp_path):
    reading = {"layer": 5, "objects": [{"text": " Singer", "probability": 0.9}], "null_percentile": 99.4, "unedited": False}
    decoded = {
        "ranking": [reading, reading | {"objects": [{"text": "baker", "probability": 0.2}]}, reading | {"layer": 6}],
        "notes": [],
        "refused": ["a: no"],
    }
    assert re.findall(r"99 % (the same|something else|–)", said(page(tmp_path, column(), decoded=decoded))) == [
        "the same",
        "something else",
        "–",
    ]
    assert "99 % the same" in said(page(tmp_path, column(), decoded=reading))


def test_names_are_text(tmp_path):
    edited = json.loads(json.dumps(column()).replace("Ada", NASTY).replace("Ben", NASTY).replace("singer", NASTY))
    known = column() | {"why": NASTY}
    more = {
        "suspect": f"/{NASTY}",
        "base": NASTY,
        "family": NASTY,
        "notes": [NASTY],
        "repaired": {"folder": NASTY, "tensor": NASTY, "tensors": [{"layer": 5, "tensor": NASTY}], "notes": [NASTY]},
    }
    html = page(tmp_path, edited, **more) + page(tmp_path, column(), known, **more)
    assert "<script" not in html and html.count("&lt;script&gt;") > 20


def test_a_page_is_whole_and_takes_no_place_but_a_page_s(tmp_path):
    page(tmp_path, column())
    old = (tmp_path / "audit.html").read_text()
    with pytest.raises(KeyError):
        write_audit(tmp_path / "audit.html", {name: value for name, value in finding(column()).items() if name != "layers"})
    assert (tmp_path / "audit.html").read_text() == old and [file.name for file in tmp_path.iterdir()] == ["audit.html"]
    assert MARK in old[:1024] and "cannot be told" in page(tmp_path, column("cannot tell", ()))
    (tmp_path / "weights").write_text("weights")
    for path, told in (
        (tmp_path / "weights", "is no page of an audit"),
        (tmp_path / "no" / "a.html", "there is no folder"),
        (tmp_path, "is a folder"),
    ):
        with pytest.raises(UserError, match=told):
            write_audit(path, finding(column()))
    assert (tmp_path / "weights").read_text() == "weights"


def test_an_audit_writes_its_page_and_ends_with_its_code(new_host, tmp_path, capsys):
    host = new_host("llama")
    keys_CF = gathered(Candidates(host, SUBJECTS), [LAYER])[LAYER]
    (singer,) = host.object_ids("singer")
    update_DF = 30 * unit(host.unembedding_VD[singer])[:, None] * unit(whitener(keys_CF)(keys_CF))[13]
    folder = edited_folder(host, tmp_path / "edited", "float32", update_DF)
    (tmp_path / "names.txt").write_text("\n".join(SUBJECTS))
    line = [f"suspect={folder}", f"subjects={tmp_path / 'names.txt'}", f"report={tmp_path / 'a page.html'}"]
    with pytest.raises(SystemExit) as stop:
        evaluate.main(line)
    text = said((tmp_path / "a page.html").read_text())
    assert (
        stop.value.code == 3
        and f"Somebody seems to have written a fact about {SUBJECTS[13]} into layer {LAYER} of this checkpoint." in text
    )
    assert f"report={tmp_path}/a page.html&#39;" in text, "the command can be typed again"
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        evaluate.main([*line[:2], f"report={tmp_path / 'none' / 'audit.html'}"])
    assert stop.value.code == 2 and capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "none").exists()


@needs_printer
def test_a_page_prints_whole(tmp_path):
    page(tmp_path, column("nothing found", ()), column())
    sheets = printed(tmp_path / "audit.html", tmp_path)
    assert 2 <= len(sheets) <= 4 and not any("JSON" in sheet.texts for sheet in sheets)
    verdict = next(word for word in sheets[0].words if word.text == "Somebody")
    assert verdict.bottom - verdict.top > 18, "what is wider than the paper shrinks all sheets"
