"""`python -m data.sequential`: its files, several chains in one command, other settings beside each other, and what a kill leaves."""

import json
import os
import shutil

import pytest
from places import ROOT
from safetensors.torch import load_file

import data.hosts
import data.sequential.chain as chains
import decoder.config.compose
import train
from data.keys.sampled import sampled_texts
from data.produce.perplexity import neutral_texts, perplexity
from data.sequential.__main__ import main
from data.sequential.kept import Kept
from decoder.config.commands import SequentialConfig
from decoder.config.compose import compose
from decoder.config.editors import EDITORS
from decoder.config.grids import read_axes
from decoder.report.editing.chains import by_host, read_collapse

QUICK = ["edits.key_tokens=300", "text_tokens=100", "splits.train_relations=2", "splits.val_relations=1", "splits.ood_relations=1"]


@pytest.fixture(autouse=True)
def on_fact_host(fact_host, monkeypatch):
    monkeypatch.setattr(data.hosts, "open_host", lambda cfg: fact_host)


@pytest.fixture()
def argv(tmp_path):
    return [f"out={tmp_path / 'out'}", f"cache_dir={tmp_path}", "at=[1,2]", *QUICK]


def files(tmp_path, pattern="*.jsonl"):
    return sorted((tmp_path / "out").glob(pattern))


def lines(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_the_command_leaves_lines_and_a_page_and_does_nothing_twice(argv, tmp_path, monkeypatch, capsys):
    argv = ["edits=rome", "edits.layer=[1]", "edits.steps=4", "broken_from=1", *argv]
    main(argv)
    (file,) = files(tmp_path)
    found = lines(file)
    assert file.name.startswith("pocket-rome-e1-s0-") and [line["facts"] for line in found] == [1, 2]
    assert all(line["broken"] == (line["perplexity"] > line["clean_perplexity"]) for line in found)
    assert found[0]["settings"]["edits.steps"] == 4 and found[0]["settings"]["at"] == [1, 2]
    assert "<svg" in (tmp_path / "out" / "collapse.html").read_text(encoding="utf-8")
    monkeypatch.setattr(data.hosts, "open_host", None)
    main(argv)
    assert f"{file} is there already, and nothing is planted" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([f"out={file}"])
    assert "it is a file; give a folder" in capsys.readouterr().err


def test_a_file_is_known_by_what_it_records_whatever_its_hash(argv, tmp_path, monkeypatch, capsys):
    argv = ["edits.steps=4", *argv]
    main(argv)
    (file,) = files(tmp_path)
    found = lines(file)
    for line in found:
        del line["settings"]["edits.clamp"]  # as an earlier version, which had no such setting: it had today's default
    other = file.with_name("pocket-rome-e1-s0-0123456789ab.jsonl")
    other.write_text("".join(json.dumps(line) + "\n" for line in found), encoding="utf-8")
    file.unlink()
    monkeypatch.setattr(data.hosts, "open_host", None)
    main(argv)
    assert f"{other} is there already" in capsys.readouterr().out


def test_what_is_planted_on_top_for_decoders_is_in_no_chain(argv, tmp_path, capsys):
    """A host's file may ask for it, and the chains of before stay that host's."""
    main(["edits.steps=4", *argv])
    (file,) = files(tmp_path)
    main(["edits.steps=4", "splits.spelt_per_relation=5", *argv])
    assert f"{file} is there already" in capsys.readouterr().out and files(tmp_path) == [file]


def test_one_command_is_several_editors_and_seeds(argv, tmp_path):
    main(["experiment=sequential", "-m", "edits=rome,ft", "seed=1", "at=[1]", *argv[:2], *QUICK])
    assert [file.name.rpartition("-")[0] for file in files(tmp_path)] == ["pocket-ft-e1-s1", "pocket-rome-e1-s1"]
    (series,) = by_host(read_collapse(tmp_path / "out")).values()
    assert list(series) == ["ft", "rome"]


@pytest.mark.parametrize("program", [main, train.main])
def test_the_experiment_is_every_editor_and_three_seeds(program, capsys):
    with pytest.raises(SystemExit, match="0"):
        program(["experiment=sequential", "--cfg"])
    assert "text_tokens: 2000" in capsys.readouterr().out
    axes = read_axes(SequentialConfig, "train", ["experiment=sequential", "seed=2"])
    assert [choice["edits"] for choice in axes.choices] == list(EDITORS)


def test_what_an_experiments_file_says_makes_it_chains_whatever_its_name(tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(ROOT / "configs", tmp_path / "configs")
    monkeypatch.setattr(decoder.config.compose, "_folder", lambda: folder)
    (folder / "experiment" / "sequential.yaml").rename(folder / "experiment" / "mine.yaml")
    (folder / "experiment" / "sequential.yaml").write_text("seed: 3\n", encoding="utf-8")
    for name, of_chains in (("mine", True), ("sequential", False)):
        with pytest.raises(SystemExit, match="0"):
            train.main([f"experiment={name}", "--cfg"])
        assert ("text_tokens: 2000" in capsys.readouterr().out) == of_chains


def test_a_host_that_is_given_is_looked_at_with_text_of_its_own(argv, tmp_path, fact_host):
    given = [f"host.path={tmp_path}", "edits.steps=2", *argv]
    main(given)
    (file,) = files(tmp_path)
    texts = neutral_texts(fact_host, sampled_texts(fact_host, 200, 0, 50), [], 100)
    line = lines(file)[0]
    assert line["clean_perplexity"] == pytest.approx(float(perplexity(fact_host, texts)), rel=1e-5)
    before = {**line, "settings": {key: value for key, value in line["settings"].items() if key != "neutral_text"}}
    (series,) = by_host([line, before]).values()
    assert list(series) == ["rome (neutral_text=keys)", "rome (neutral_text=self)"], "chains of before had another text"
    for words in ([], [f"host.path={tmp_path}", "keys.text=prose.txt"]):
        assert "neutral_text" not in Kept(compose(SequentialConfig, "train", words)).settings


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["at=[1,100000]"], "at=100000: the edits that are planned are about"),
        (["at=[1]", "edits=alphaedit", "edits.threshold=0"], "edits.threshold=0 leaves no null space"),
    ],
)
def test_of_a_chain_that_cannot_begin_nothing_stays(words, message, there, tmp_path, capsys):
    out = tmp_path / "new" / "out"
    if there:
        out.mkdir(parents=True)
    with pytest.raises(SystemExit, match="2"):
        main([f"out={out}", f"cache_dir={tmp_path / 'cache'}", *words, *QUICK])
    assert message in capsys.readouterr().err
    assert out.exists() == there == (tmp_path / "new").exists() and not [*tmp_path.glob("new/out/*")]


def test_the_lock_of_a_chain_that_breaks_stays_for_those_who_wait(argv, tmp_path, monkeypatch):
    """Who held a file that is gone and who made it anew would both go on."""
    waiting = []

    def breaks(*_):
        waiting.extend(file.open(encoding="utf-8") for file in files(tmp_path, ".*.lock"))
        raise ValueError("the editor broke")

    monkeypatch.setattr(chains, "chain", breaks)
    with pytest.raises(SystemExit, match="2"):
        main(argv)
    (lock,) = files(tmp_path, ".*.lock")
    with waiting[0] as file:
        assert os.path.samestat(os.fstat(file.fileno()), lock.stat())


def test_other_settings_are_another_file_and_a_line_of_their_own(argv, tmp_path):
    for steps in (3, 4):
        main([f"edits.steps={steps}", *argv])
    files_now = files(tmp_path)
    (series,) = by_host(read_collapse(tmp_path / "out")).values()
    assert len(files_now) == 2 and list(series) == ["rome (steps=3)", "rome (steps=4)"]
    early = [{name: value for name, value in line.items() if name != "settings"} for line in lines(files_now[0])]
    (tmp_path / "out" / "pocket-rome-e1-s0.jsonl").write_text("".join(json.dumps(line) + "\n" for line in early), encoding="utf-8")
    (series,) = by_host(read_collapse(tmp_path / "out")).values()
    assert list(series) == ["rome (settings not recorded)", "rome (steps=3)", "rome (steps=4)"]
    files_now[1].unlink()
    (series,) = by_host(read_collapse(tmp_path / "out")).values()
    assert list(series) == ["rome", "rome (settings not recorded)"] and all(len(points[1]) == 1 for points in series.values())


def kill_at(monkeypatch, count):
    whole = chains.looked_at

    def killed(host, layer, requests, *more):
        if len(requests) == count:
            raise KeyboardInterrupt
        return whole(host, layer, requests, *more)

    monkeypatch.setattr(chains, "looked_at", killed)


def test_steps_of_several_facts_are_a_line_of_their_own_and_go_on_after_a_kill(argv, tmp_path, monkeypatch, capsys):
    argv = ["edits=alphaedit", "edits.threshold=1", "edits.steps=4", *argv[:2], "at=[2,4]", *QUICK]
    main(argv)
    main(["edits.facts_per_host=2", *argv])
    whole = {file: lines(file) for file in files(tmp_path)}
    (series,) = by_host(read_collapse(tmp_path / "out")).values()
    assert list(series) == ["alphaedit (facts_per_host=1)", "alphaedit (facts_per_host=2)"]
    (together,) = [file for file, found in whole.items() if "edits.facts_per_host" in found[0]["settings"]]
    together.unlink()
    with monkeypatch.context() as patch:
        kill_at(patch, 4)
        with pytest.raises(SystemExit, match="130"):
            main(["edits.facts_per_host=2", *argv])
    main(["edits.facts_per_host=2", *argv])
    assert "goes on from 2 facts" in capsys.readouterr().out
    assert [line | {"seconds": 0} for line in lines(together)] == [line | {"seconds": 0} for line in whole[together]]


@pytest.mark.parametrize("name", ["rome", "alphaedit", "ft"])
def test_a_killed_chain_goes_on_and_ends_as_one_that_was_not(name, argv, tmp_path, monkeypatch, capsys):
    argv = [f"edits={name}", "edits.steps=6", *(["edits.threshold=1"] if name == "alphaedit" else []), *argv[:2], "at=[1,2,3]", *QUICK]
    main(argv)
    (file,) = files(tmp_path)
    whole = lines(file)
    file.unlink()
    with monkeypatch.context() as patch:
        kill_at(patch, 3)
        with pytest.raises(SystemExit, match="130"):
            main(argv)
    (partial,), (state,) = files(tmp_path, "*.jsonl.partial"), files(tmp_path, "*.safetensors")
    assert [line["facts"] for line in lines(partial)] == [1, 2] and not files(tmp_path)
    assert set(load_file(state)) == {"weight_DF"} | ({"kept_NF"} if name == "alphaedit" else set())
    planted = chains.planted
    asked = []
    monkeypatch.setattr(chains, "planted", lambda editor, request, weight: asked.append(request) or planted(editor, request, weight))
    main(argv)
    assert "goes on from 2 facts" in capsys.readouterr().out and len(asked) == 1
    assert [line | {"seconds": 0} for line in lines(file)] == [line | {"seconds": 0} for line in whole]
    assert not files(tmp_path, "*.partial") and not files(tmp_path, "*.safetensors")


def test_what_does_not_belong_together_is_not_gone_on_from(argv, tmp_path, monkeypatch):
    argv = ["edits.steps=4", *argv]
    with monkeypatch.context() as patch:
        kill_at(patch, 2)
        with pytest.raises(SystemExit, match="130"):
            main(argv)
    (partial,) = files(tmp_path, "*.jsonl.partial")
    one = partial.read_text(encoding="utf-8")
    # A kill between the two files leaves a line more than the host has facts: it is looked at again.
    partial.write_text(one + one.replace('"facts": 1', '"facts": 2').replace('"broken"', '"wrong": 1, "broken"'), encoding="utf-8")
    main(argv)
    (file,) = files(tmp_path)
    assert [line["facts"] for line in lines(file)] == [1, 2] and "wrong" not in file.read_text(encoding="utf-8")


@pytest.mark.parametrize("what", ["state", "lines"])
def test_of_a_damaged_chain_nothing_is_kept(what, argv, tmp_path, monkeypatch, capsys):
    argv = ["edits.steps=4", *argv]
    with monkeypatch.context() as patch:
        kill_at(patch, 2)
        with pytest.raises(SystemExit, match="130"):
            main(argv)
    (damaged,) = files(tmp_path, "*.safetensors" if what == "state" else "*.jsonl.partial")
    damaged.write_bytes(damaged.read_bytes()[:40])
    capsys.readouterr()
    main(argv)
    assert "goes on" not in capsys.readouterr().out and [line["facts"] for line in lines(*files(tmp_path))] == [1, 2]
