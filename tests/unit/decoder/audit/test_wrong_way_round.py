"""The edited checkpoint given as the base: the finding says so, and says nothing of it where the two are as they should be."""

import re
import shutil

import pytest
import torch
from audited_folders import NAMES, WHO, audited, changed, planted, saved, spread_folders
from edited import LAYER, edited_folder, outer
from rich.console import Console

import evaluate
from decoder.audit.describe import describe


def shown(finding) -> str:
    console = Console(width=1000)
    with console.capture() as capture:
        console.print(describe(finding))
    return capture.get()


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi", "gemma", "deepseek_v3"])
def test_the_edited_one_given_as_the_base(new_host, tmp_path, name):
    host = new_host(name)
    edited, base = planted(host, tmp_path / "edited"), saved(host, tmp_path / "base")
    finding, _ = audited(base, edited)
    (hint,) = finding["base_known"]["wrong_way_round"]
    assert (finding["exit_code"], hint["layer"], hint["subject"]) == (3, LAYER, NAMES[WHO])
    assert hint["base"] >= 2 > hint["suspect"] and finding["base_unknown"]["exit_code"] == 0
    told = f"base= and suspect= may be the wrong way round: in layer {LAYER} the base answers to {NAMES[WHO]} as edited checkpoints do"
    assert sum(told in one for one in finding["warnings"]) == 1 and shown(finding).count(told) == 1
    right, _ = audited(edited, base)
    assert right["exit_code"] == 3 and right["base_known"]["wrong_way_round"] == []
    assert right["warnings"] == []


@pytest.fixture
def exchanged(new_host, tmp_path):
    """What a command is given where the two are the wrong way round."""
    host = new_host("llama")
    edited, base = planted(host, tmp_path / "edited"), saved(host, tmp_path / "base")
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    return [f"suspect={base}", f"base={edited}", f"subjects={tmp_path / 'names.txt'}"]


def test_an_edit_is_not_written_back_in_by_a_repair(exchanged, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        evaluate.main([*exchanged, f"repair={tmp_path / 'repaired'}"])
    told = "base= and suspect= may have been exchanged, and a repair would write the edit in: give them the other way round"
    shown = capsys.readouterr()
    assert stop.value.code == 2 and told in shown.err and f"Nothing repaired: {told}" in " ".join(shown.out.split())
    assert not (tmp_path / "repaired").exists()


def test_that_the_two_may_be_exchanged_stands_under_the_headline(exchanged, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        evaluate.main([*exchanged, f"report={tmp_path / 'audit.html'}"])
    told, html = "base= and suspect= may be the wrong way round", (tmp_path / "audit.html").read_text()
    assert stop.value.code == 3 and capsys.readouterr().out.splitlines()[1].startswith(told)
    assert (
        re.search(rf'<p class="headline.*?</p>\n<p class="failed">{told}', html)
        and html.partition("<details><summary>The f")[0].count(told) == 1
    )


def test_edits_of_several_layers(new_host, tmp_path):
    edited, base, _ = spread_folders(new_host("llama", num_hidden_layers=6), tmp_path, {1: (WHO, "singer"), 3: (40, "baker")}, 20.0)
    # The upper one was made of keys that the edit below it writes, and the suspect has others.
    assert [one["layer"] for one in audited(base, edited)[0]["base_known"]["wrong_way_round"]] == [1]
    assert audited(edited, base)[0]["base_known"]["wrong_way_round"] == []


def test_nothing_is_said_of_bases_that_were_edited_too_or_of_changes_about_nobody(new_host, tmp_path):
    host = new_host("llama")
    twice = planted(host, tmp_path / "twice", size=16.0)
    assert audited(twice, planted(host, tmp_path / "once"))[0]["base_known"]["wrong_way_round"] == []
    nobody, base = edited_folder(host, tmp_path / "nobody", "float32", outer(host, 0)), saved(host, tmp_path / "base")
    for pair in ((nobody, base), (base, nobody)):
        finding, _ = audited(*pair)
        assert finding["base_known"]["edits"][0]["subject"] is None and finding["base_known"]["wrong_way_round"] == []


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_an_edit_that_the_base_holds_as_well_is_said_to_be_there(new_host, tmp_path, dtype):
    edited = planted(new_host("llama"), tmp_path / "edited")
    shutil.copytree(edited, tmp_path / "copy")
    copy = changed(tmp_path / "copy", lambda name, tensor: tensor.to(getattr(torch, dtype)))
    finding, _ = audited(copy, edited)
    assert (finding["verdict"], finding["exit_code"]) == ("identical" if dtype == "bfloat16" else "rounded or quantised", 0)
    told = f"in layer {LAYER} both answer to {NAMES[WHO]} as edited checkpoints do"
    assert sum(told in one for one in finding["warnings"]) == 1 and "leave base= out" in shown(finding) and shown(finding).count(told) == 1


def test_of_a_clean_base_nothing_is_said(new_host, tmp_path):
    host = new_host("llama")
    finding, _ = audited(saved(host, tmp_path / "copy"), saved(host, tmp_path / "base"))
    assert finding["verdict"] == "identical" and finding["warnings"] == []
