"""`python -m data.perturb`, and the text that its fine-tunes read."""

import json
from pathlib import Path

import pytest

from data.perturb.__main__ import main
from data.perturb.kinds import KINDS
from data.perturb.recipe import RECIPE
from data.perturb.text import fact_text, read_text
from data.store.store import EditStore
from decoder.config.commands import PerturbConfig
from decoder.config.options import settings
from decoder.host import Host

LINES = ["Ada works in Paris .", "Ben lives in Oslo .", "Carl is a baker ."]


def test_text(tmp_path, pocket_facts):
    texts = fact_text(pocket_facts, 0)
    assert texts == fact_text(pocket_facts, 0) != fact_text(pocket_facts, 1)
    told = {f"{template.replace('{}', fact.subject)} {fact.object_true} ." for fact in pocket_facts.facts for template in fact.templates}
    assert set(texts) <= told
    (tmp_path / "lines.txt").write_text("one\n\n two \n")
    assert read_text(tmp_path / "lines.txt") == ["one", "two"]
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00A")
    with pytest.raises(ValueError, match="not text in UTF-8"):
        read_text(tmp_path / "binary")
    (tmp_path / "none.txt").write_text("\n")
    with pytest.raises(ValueError, match="no text there"):
        read_text(tmp_path / "none.txt")


def test_the_settings_are_the_kinds():
    kinds = dict(settings(PerturbConfig))["kind"].type.__args__
    assert set(kinds) == KINDS.keys()


def test_command(tmp_path, capsys, store_path, fact_host):
    folder = tmp_path / "host"
    fact_host.model.save_pretrained(folder)
    fact_host.tokenizer.save_pretrained(folder)
    (tmp_path / "text.txt").write_text("\n".join(LINES))
    given = [f"host.path={folder}", "host.name=tiny", f"store={store_path}", "edit=7", "kind=lora", "rank=2", "steps=2"]
    main([*given, f"text={tmp_path / 'text.txt'}", f"out={tmp_path / 'out'}"])
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "out")
    told = json.loads((tmp_path / "out" / RECIPE).read_text())
    assert told["kind"] == "lora" and told["precision"] == "bf16" and told["edit"]["edit_id"] == EditStore(store_path).table()["edit_id"][7]
    assert told["settings"] == {"rank": 2, "modules": "all", "lr": 1e-3, "steps": 2, "batch_size": 8, "optimizer": "adamw"}
    assert Host.load(tmp_path / "out", name="copy").layers == fact_host.layers


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "out= is missing"),
        (["out={there}"], "nothing is written over"),
        (["out={new}", "edit=1"], "store= and edit= go together"),
        (["out={new}", "kind=prune", "rank=2"], "kind=prune takes no rank=; it takes share"),
        (["out={new}", "kind=merge"], "kind"),
        (["out={new}", "kind=prune", "share=2"], "expected a number from 0 to 1"),
        (["out={new}", "kind=lora", "text={new}"], "no such file"),
        (["out={new}", "kind=noise", "text={new}"], "is not trained on text"),
        (["out={there}/config.json/x"], "config.json is a file; give a folder"),
        (["out={new}", "scale=2"], "scale=2 is how much of an edit is planted: give store= and edit="),
        (["out={new}", "kind=noise", "seed=99999999999999999999"], "expected a number from 0 to 9223372036854775807"),
        (["out={new}", "host.path={there}", "kind=noise", "size=1e39"], "NaN or infinity among the weights. Give smaller settings"),
        (["out={there}/x", "decoder=D"], "decoder=D is about nulls: give nulls=120"),
        (["out={new}", "kind=noise", "device=cuda"], "device=cuda is about nulls: give nulls=120"),
        (["out={new}", "kind=noise", "subjects={there}"], "is about nulls: give nulls=120"),
        (["out={there}", "nulls=5"], "it is a folder; give a file in it"),
        (["out={there}/config.json/x", "nulls=5"], "config.json: it is a file; give a folder"),
        (["out={new}", "host.path={there}", "store={store}", "edit=absent"], "no such edit_id"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, argv, said, store_path, fact_host):
    places = {"there": tmp_path / "there", "new": tmp_path / "new", "store": store_path}
    fact_host.model.save_pretrained(places["there"])
    fact_host.tokenizer.save_pretrained(places["there"])
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([word.format(**places) for word in argv])
    told = capsys.readouterr().err
    assert stop.value.code == 2 and said in told and told.count("\n") == 1 and not Path(places["new"]).exists()


def test_a_damaged_folder_of_decoders_is_refused_before_a_host_is_made(tmp_path, capsys, monkeypatch):
    (tmp_path / "index.json").write_text('{"format": 1', encoding="utf-8")
    monkeypatch.setattr("data.hosts.open_host", lambda cfg: pytest.fail("a host was opened"))
    with pytest.raises(SystemExit) as stop:
        main([f"cache_dir={tmp_path / 'cache'}", "nulls=5", f"decoder={tmp_path}"])
    assert stop.value.code == 2 and "index.json is not whole JSON" in capsys.readouterr().err
