"""`python -m data.causal_trace` from facts to its page."""

import json
import re

import pytest
import torch

from data.causal_trace.__main__ import main
from data.causal_trace.effects import GROUPS
from data.causal_trace.page import heat_maps, page
from data.causal_trace.trace import Tracer

SUBJECTS = ("Ada", "Ben", "Carl", "Dora of the north", "Eve", "Finn")


@pytest.fixture(scope="module")
def asked(new_host, tmp_path_factory):
    """A tiny host on disk, six facts half of which it answers rightly, and the settings that name both."""
    host, top = new_host("llama", terminator=None), tmp_path_factory.mktemp("traced")
    rows = []
    for n, subject in enumerate(SUBJECTS):
        ids = host.tokenizer(f"{subject} works as", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            said = host.tokenizer.decode(host.model(input_ids=ids).logits[0, -1].argmax())
        other = next(word for word in ("baker", "singer") if word != said)
        rows.append({"subject": subject, "prompt": "{} works as", "object_true": said if n % 2 == 0 else other, "relation": "job"})
    host.model.save_pretrained(top / "host")
    host.tokenizer.save_pretrained(top / "host")
    (top / "facts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    given = [
        f"host.path={top / 'host'}",
        "host.name=tiny",
        "facts.source=plain",
        f"facts.path={top / 'facts.jsonl'}",
        "draws=2",
        "host.terminator=null",
    ]
    return given, top


@pytest.fixture(scope="module")
def found(asked):
    given, top = asked
    main([*given, "window=2", f"out={top / 'out'}"])
    return json.loads((top / "out" / "causal_trace.json").read_text())


def test_facts_that_the_host_answers_rightly_are_traced(found):
    assert (found["asked"], found["traced"], found["window"], found["configured_layer"]) == (6, 3, 2, 1)
    assert found["facts"][GROUPS[2]] == found["facts"][GROUPS[5]] == 3 and found["facts"][GROUPS[1]] == 0
    assert [len(means) for means in found["effects"]["mlp"].values()] == [3] * 3
    # the last block's output at the last token is what the head reads
    last = found["effects"]["hidden"][GROUPS[5]][2]["value"]
    assert last == pytest.approx(found["total"]["value"], rel=1e-3)


def test_the_same_command_finds_the_same(asked, found):
    given, top = asked
    main([*given, "window=2", f"out={top / 'again'}"])
    again = json.loads((top / "again" / "causal_trace.json").read_text())
    assert again["effects"] == found["effects"]
    main([*given, "window=2", "seed=1", f"out={top / 'other'}"])
    assert json.loads((top / "other" / "causal_trace.json").read_text())["effects"] != found["effects"]


def test_the_page_shows_every_number_and_takes_the_colours_of_the_page(asked, found):
    html = (asked[1] / "out" / "causal_trace.html").read_text()
    assert "3 of 6 facts were answered rightly" in html and html.count("<svg") == 2 and html.count("<details") == 4
    assert all(group in html for group in GROUPS if found["facts"][group]) and GROUPS[1] not in re.sub(
        r"<details>.*", "", html, flags=re.DOTALL
    )
    assert "var(--blue)" in html and "currentColor" in html and "http" not in re.sub(r'(xmlns[:\w]*|xlink:href)="[^"]*"', "", html).lower()
    assert f"layer {found['suggested_layer']}" in html
    same = found | {"configured_layer": found["suggested_layer"]}
    assert "that is the layer that is edited" in page(same) and "that is the layer that is edited" not in page(
        found | {"configured_layer": 1, "suggested_layer": 0}
    )


def test_names_are_escaped(found):
    nasty = "<script>alert(1)</script>"
    assert nasty not in page(found | {"host": found["host"] | {"name": nasty}})


def test_the_heat_map_outlines_the_edited_layer_and_the_suggested(found):
    assert str(heat_maps(found)).count("#d55e01") == 2


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["n=0"], "n=0: expected a number from 1 up"),
        (["draws=0"], "draws=0: expected a number from 1 up"),
        (["noise=0"], "noise=0: without noise nothing is lost that restoring could bring back. Give more than 0, as 3"),
        (["window=4"], "window=4: tiny has 3 layers"),
        (["edits.layer=3"], "edits.layer=3: tiny has layers 0 to 2"),
        (["edits.layer=[3]"], "edits.layer=3: tiny has layers 0 to 2"),
        (["edits=memit", "edits.layer=[0,1]"], "edits.layer=[0,1]: the layer that is suggested is put beside one. Give one"),
        (["n=1", "seed=3"], "n=1: tiny answers none of 1 facts of plain:facts.jsonl rightly"),
        (["out={top}/facts.jsonl"], "it is a file; give a folder"),
        (["host.path={top}/nowhere"], "nowhere"),
        (["facts.path={top}/nowhere"], "no such file"),
    ],
)
def test_bad_input_is_one_line(asked, given, said, capsys, tmp_path):
    fixed, top = asked
    given = [one.format(top=top) for one in given]
    keys = {one.partition("=")[0] for one in given}
    fixed = [one for one in [*fixed, f"out={tmp_path / 'out'}"] if one.partition("=")[0] not in keys]
    with pytest.raises(SystemExit) as stop:
        main([*fixed, *given])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and said in error and error.strip().count("\n") == 0 and not (tmp_path / "out").exists()


def kill_at(monkeypatch, count):
    """Ctrl-C at a fact, counted from 1; returns the names of those that are traced until then."""
    whole, traced = Tracer.trace, []

    def trace(tracer, one):
        if len(traced) == count - 1:
            raise KeyboardInterrupt
        traced.append(one.name)
        return whole(tracer, one)

    monkeypatch.setattr(Tracer, "trace", trace)
    return traced


@pytest.mark.parametrize("torn", [False, True])
def test_a_killed_trace_goes_on_and_finds_what_one_that_was_not_finds(asked, found, tmp_path, monkeypatch, torn):
    given, out = [*asked[0], "window=2", f"out={tmp_path / 'out'}"], tmp_path / "out"
    with monkeypatch.context() as patch:
        before = kill_at(patch, 3)
        with pytest.raises(SystemExit, match="130"):
            main(given)
    (partial,) = out.iterdir()
    assert len(before) == 2 == len(partial.read_text().splitlines())
    if torn:
        partial.write_text(partial.read_text()[:-40])
    with monkeypatch.context() as patch:
        after = kill_at(patch, 9)
        main(given)
    assert len(after) == 2 if torn else len(after) == 1
    again = json.loads((out / "causal_trace.json").read_text())
    assert again | {"seconds": 0} == found | {"seconds": 0} and again["seconds"] > 0
    assert sorted(file.name for file in out.iterdir()) == ["causal_trace.html", "causal_trace.json"]


def test_other_settings_begin_anew_and_leave_what_is_kept(asked, found, tmp_path, monkeypatch):
    given, out = [*asked[0], "window=2", f"out={tmp_path / 'out'}"], tmp_path / "out"
    with monkeypatch.context() as patch:
        kill_at(patch, 3)
        with pytest.raises(SystemExit, match="130"):
            main(given)
    kept = [*out.iterdir()]
    with monkeypatch.context() as patch:
        traced = kill_at(patch, 9)
        main([*given, "seed=1"])
    assert len(traced) == 3 and kept[0].exists()
    main(given)
    assert json.loads((out / "causal_trace.json").read_text())["effects"] == found["effects"] and not kept[0].exists()
