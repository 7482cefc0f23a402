"""`python -m data.tracing` from a store to its page."""

import json
import re
import shutil
from types import SimpleNamespace

import pytest

from data.tracing import relations
from data.tracing.__main__ import main
from data.tracing.measure import _described
from decoder.report.__main__ import main as report


@pytest.fixture(scope="module")
def given(store_path, fact_host, tmp_path_factory):
    """A store of drawn edits, its host on disk, and the settings that name both."""
    top = tmp_path_factory.mktemp("traced")
    fact_host.model.save_pretrained(top / "host")
    fact_host.tokenizer.save_pretrained(top / "host")
    (top / "text.txt").write_text("".join(f"The {n} of us did research in physics and worked in the city of Paris\n" for n in range(9)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(relations, "CLASSES", (2, 3))
        yield [
            f"store={store_path}",
            f"host.path={top / 'host'}",
            "host.name=tiny",
            "n=6",
            "repeats=2",
            "texts=3",
            f"keys.text={top / 'text.txt'}",
        ]


@pytest.fixture(scope="module")
def folder(given, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    main([*given, f"out={out}"])
    return out


def read(folder):
    (file,) = folder.glob("tracing-tiny-e1-*.json")
    return json.loads(file.read_text())


def test_everything_is_measured_with_its_n(folder, fact_host):
    found = read(folder)
    assert found["n"] == found["reversal"]["n"] == found["directions"]["n"] == found["pcs"]["change"]["n"] == 6
    assert len(found["pcs"]["layers"]) == fact_host.layers and len(found["reversal"]["by_k"]) == 16
    assert [row["classes"] for row in found["relations"]["by_classes"]] == [2, 3] and found["relations"]["repeats"] == 2
    assert found["texts"]["n"] == found["texts"]["edited"]["n"] == 3 and len(found["similarity"]["keys"]) == 15
    assert found["reversal"]["by_k"][0]["edited"]["value"] == 1


def test_the_same_command_measures_the_same(given, folder, tmp_path):
    main([*given, f"out={tmp_path}"])
    kept = {"seconds"}
    assert {k: v for k, v in read(tmp_path).items() if k not in kept} == {k: v for k, v in read(folder).items() if k not in kept}
    main([*(one for one in given if one != "texts=3"), "seed=1", "texts=0", f"out={tmp_path}"])
    other = read(tmp_path)
    assert other["texts"] is None and other["directions"] != read(folder)["directions"]


def test_the_page_has_ours_above_the_published_and_the_colours_of_the_page(folder, capsys, tmp_path):
    report([f"tracing={folder}", f"to={tmp_path}"])
    markdown, html = capsys.readouterr().out, (tmp_path / "tracing.html").read_text()
    assert html == (folder / "tracing.html").read_text()
    assert html.count("<svg") == 3 and "var(--blue)" in html and "currentColor" in html
    assert "http" not in re.sub(r'(xmlns[:\w]*|xlink:href)="[^"]*"', "", html).lower()
    for table in ("Directions of rows", "Rows that became alike (pcs)", "Reversal", "Different continuations"):
        assert f"**{table}**" in markdown and f"<h2>{table}</h2>" in html
    assert html.index("tiny, layer 1: traced, without labels") < html.index(">Qwen2.5<") and "0.945" in markdown
    for block in markdown.split("\n\n"):
        if block.startswith("|"):
            assert len({line.replace(r"\|", "").count("|") for line in block.splitlines()}) == 1, block


def test_the_page_says_what_was_planted_on_top_for_decoders(folder, tmp_path, capsys):
    store = SimpleNamespace(fingerprint="0" * 12, manifest={"editor": {"name": "rome"}, "spelt": 60})
    found = read(folder)
    found["store"]["spelt"] = _described(store, ["a"], ["b"])["spelt"]
    (tmp_path / "tracing-tiny-e1-s0.json").write_text(json.dumps(found), encoding="utf-8")
    report([f"tracing={tmp_path}"])
    assert "60 names of several tokens" in (tmp_path / "tracing.html").read_text()
    assert "several tokens" not in (folder / "tracing.html").read_text()


@pytest.mark.parametrize(
    ("given_too", "said"),
    [
        (["store=null"], "store= is missing"),
        (["store={top}"], "is no store of edits"),
        (["n=1"], "n=1: expected a number from 2 up"),
        (["texts=30000"], "texts=30000: "),
        (["host.path={top}/nowhere"], "nowhere"),
        (["out={top}/file"], "it is a file; give a folder"),
        (["host.path={top}/other"], "host's fingerprint="),
    ],
)
def test_bad_input_is_one_line(given, given_too, said, capsys, tmp_path, new_host):
    (tmp_path / "file").write_text("")
    if "other" in given_too[0]:
        other = new_host("llama")
        other.model.save_pretrained(tmp_path / "other")
        other.tokenizer.save_pretrained(tmp_path / "other")
    given_too = [one.format(top=tmp_path) for one in given_too]
    keys = {one.partition("=")[0] for one in given_too}
    fixed = [one for one in [*given, f"out={tmp_path / 'out'}", "host.terminator=null"] if one.partition("=")[0] not in keys]
    with pytest.raises(SystemExit) as stop:
        main([*fixed, *given_too])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and said in error and error.strip().count("\n") == 0 and not (tmp_path / "out").exists()


def test_what_was_damaged_or_is_not_there_is_one_line(folder, tmp_path, capsys):
    with pytest.raises(SystemExit):
        report([f"tracing={tmp_path}"])
    assert "nothing measured there" in capsys.readouterr().err
    (file,) = shutil.copytree(folder, tmp_path / "copy").glob("*.json")
    file.write_text(json.dumps({name: value for name, value in json.loads(file.read_text()).items() if name != "pcs"}))
    with pytest.raises(SystemExit) as stop:
        report([f"tracing={tmp_path / 'copy'}"])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "it lacks pcs" in error and error.strip().count("\n") == 0
