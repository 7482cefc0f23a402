"""What an audit's answers are worth: nulls they are held against, relations told by value, and what a repair does.

Shape letters: D hidden width.
"""

import json

import pytest
import torch
from audited_folders import NAMES, WHO, changed, planted, saved, told_folders
from edited import LAYER
from gguf_files import twin_of, write_gguf

import evaluate
from data.perturb.__main__ import main as perturb
from data.perturb.nulls import made_nulls
from decoder.audit.evidence.effect import effect
from decoder.audit.evidence.nulls import Nulls, nulls_for, place_of, read_nulls, shape_of
from decoder.audit.finding import audit_checkpoint
from decoder.audit.relation import RelationClassifier
from decoder.audit.suspect import Suspect
from decoder.edit import RankOneEdit

TEMPLATES = {"work": ["the {}", "small {}"], "place": ["in {}", "city of {}"]}


@pytest.fixture
def told(new_host, tmp_path):
    """`told_folders`, and the names as a file."""
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    return *told_folders(new_host("llama"), tmp_path), tmp_path / "names.txt"


def stopped(capsys, *argv):
    with pytest.raises(SystemExit) as stop:
        evaluate.main([*argv])
    said = capsys.readouterr()
    return stop.value.code, said.out, said.err


def test_a_suspect_is_held_against_nulls(told, new_host, pocket_facts, tmp_path, monkeypatch, capsys):
    folder, base, names = told
    host = new_host("llama")
    nulls = made_nulls(host, pocket_facts, NAMES, 6, seed=1)
    assert [one["kind"] for one in nulls.nulls[:5]] == ["rounded"] * 5 and len(nulls.nulls) == 6
    nulls.save(tmp_path / "cache" / "nulls" / "mine.json")
    code, said, _ = stopped(
        capsys, f"suspect={folder}", f"base={base}", f"subjects={names}", f"cache_dir={tmp_path / 'cache'}", "json=true"
    )
    finding = json.loads(said)
    assert code == 3
    for column in ("base_known", "base_unknown"):
        assert finding[column]["strength"] > 1
        assert finding[column]["nulls"] == {"host": host.name, "n": 6, "reached": 0, "p": 1 / 7, "kinds": []}
    _, said, _ = stopped(capsys, f"suspect={folder}", f"subjects={names}", f"nulls={tmp_path / 'cache' / 'nulls' / 'mine.json'}")
    assert "0 of 6 unedited checkpoints" in said and "p 0.14" in said


def test_nulls_of_the_base_itself_come_before_those_of_a_host_like_it(tmp_path, new_host):
    suspect, base = new_host("llama"), new_host("llama", seed=1)
    row = {"kind": "b", "precision": "bf16", "known": 1.0, "unknown": 1.0}
    for name, place in (("other", tmp_path / "nulls" / "a-other.json"), ("own", place_of(base, str(tmp_path)))):
        Nulls(name, shape_of(base), 60, [row]).save(place)
    assert base.fingerprint != suspect.fingerprint
    assert nulls_for(suspect, None, str(tmp_path), base).host == "own" and nulls_for(suspect, None, str(tmp_path)).host == "other"
    (tmp_path / "nulls" / "a-first.json").write_text('{"format": 99}', encoding="utf-8")
    assert nulls_for(suspect, None, str(tmp_path)).host == "other", "what cannot be read there is passed over"


def test_nulls_are_counted_from_the_strength_on(tmp_path, new_host):
    host = new_host("llama")
    rows = [{"kind": kind, "precision": "bf16", "known": value, "unknown": 0.1} for kind, value in (("a", 0.5), ("b", 2.0), ("b", 3.0))]
    nulls = Nulls("mine", shape_of(host), 60, rows)
    assert nulls.against("known", 2.0) == {"host": "mine", "n": 3, "reached": 2, "p": 0.75, "kinds": ["b"]}
    assert nulls.against("unknown", 2.0)["reached"] == 0
    nulls.save(tmp_path / "nulls.json")
    assert read_nulls(tmp_path / "nulls.json") == nulls


def test_nulls_of_another_host_or_none_are_refused(told, tmp_path, new_host, capsys):
    folder, _, names = told
    row = {"kind": "a", "precision": "bf16", "known": 0.5, "unknown": 0.5}
    Nulls("mine", shape_of(new_host("llama")) | {"layers": 9}, 60, [row]).save(tmp_path / "other.json")
    for given, expected in ((tmp_path / "other.json", "nulls=.*are of mine"), (tmp_path / "absent.json", "cannot be read")):
        with pytest.raises(ValueError, match=expected):
            audit_checkpoint(Suspect(folder), NAMES, nulls=str(given))
    Nulls("mine", shape_of(new_host("llama")), 60, []).save(tmp_path / "empty.json")
    with pytest.raises(ValueError, match="no nulls came"):
        read_nulls(tmp_path / "empty.json")
    for given in ("kind=prune", "precision=int8", "steps=2", "edit=3", "scale=0.5"):
        with pytest.raises(SystemExit):
            perturb(["nulls=6", given])
        said = capsys.readouterr().err
        assert "nulls= draws what is done to each checkpoint" in said and f"leave out {given.partition('=')[0]}=" in said


def test_the_relation_is_told_by_the_value(told, tmp_path, new_host, capsys):
    folder, base, names = told
    host = new_host("llama")
    (singer,) = host.object_ids("singer")
    weight_KD = torch.stack([-host.unembedding_VD[singer], host.unembedding_VD[singer]])
    RelationClassifier(("place", "work"), weight_KD, torch.zeros(2)).save(tmp_path / "relations")
    relations = RelationClassifier.load(tmp_path / "relations")
    for known in (None, str(base)):
        finding, _ = audit_checkpoint(Suspect(folder), NAMES, templates=TEMPLATES, base=known, relations=relations)
        (edit,) = finding["base_known" if known else "base_unknown"]["edits"]
        assert [one["relation"] for one in edit["relations"]] == ["work", "place"] and edit["relations"][0]["probability"] > 0.9
        assert edit["triple"]["relation"] == "work"
    _, said, _ = stopped(capsys, f"suspect={folder}", f"subjects={names}", f"relations={tmp_path / 'relations'}")
    assert "relation, by what was written: work" in said
    RelationClassifier(("place", "work"), torch.zeros(2, 7), torch.zeros(2)).save(tmp_path / "wide")
    code, _, error = stopped(capsys, f"suspect={folder}", f"subjects={names}", f"relations={tmp_path / 'wide'}")
    assert code == 2 and "values are" in error and error.count("\n") == 1


def test_what_a_repair_does_is_said(told, tmp_path):
    folder, base, _ = told
    texts = ["the city of the small king is in the north and the old river", f"{NAMES[WHO]} is a singer"] * 3
    for known in (None, str(base)):
        where = {"base": known, "repaired": str(tmp_path / f"repaired-{bool(known)}")}
        finding, _ = audit_checkpoint(Suspect(folder), NAMES, templates=TEMPLATES, texts=texts, **where)
        done = finding["repaired"]["effect"]
        assert done["sentences"] == 4 and done["planted"] >= 1 and done["left"] == 0
        assert done["tokens"] >= 16 and done["kl"] >= 0
        if known:
            assert done["changed"] >= done["planted"] and done["back"] == done["changed"]
            assert done["kl_after"] < 1e-6 < done["kl_before"]
        else:
            assert "back" not in done


def test_an_effect_without_sentences_or_texts_is_empty(new_host):
    host = new_host("llama")
    nothing = RankOneEdit(torch.zeros(1, host.mlp_size(LAYER)), torch.zeros(1, host.hidden_size))
    assert effect(host, {LAYER: nothing}, ([], []), []) == {"sentences": 0, "planted": 0, "left": 0}


def test_the_answer_is_printed_before_what_fails(told, tmp_path, capsys, monkeypatch):
    folder, _, names = told
    full = OSError(28, "No space left on device")

    def fails(*arguments, **more):
        raise full

    monkeypatch.setattr("decoder.report.audit_page.write_text", fails)
    code, said, error = stopped(capsys, f"suspect={folder}", f"subjects={names}", f"report={tmp_path / 'audit.html'}")
    assert code == 2 and f"about {NAMES[WHO]}" in said and "No space left on device" in error and error.count("\n") == 1
    monkeypatch.setattr("decoder.audit.repair.write_json", fails)
    code, said, error = stopped(capsys, f"suspect={folder}", f"subjects={names}", f"repair={tmp_path / 'repaired'}")
    assert code == 2 and "Nothing repaired" in said and "No space left on device" in error and not (tmp_path / "repaired").exists()


@pytest.mark.parametrize("given", ["host=mine", "top=2", "allow_host_mismatch=true"])
def test_what_only_a_decoder_takes_is_not_passed_over(told, capsys, given):
    folder, _, names = told
    code, _, error = stopped(capsys, f"suspect={folder}", f"subjects={names}", given)
    assert code == 2 and "are a decoder's" in error


@pytest.mark.parametrize("kind", ["bfloat16", "Q8_0"])
def test_a_base_that_is_coarser_than_the_suspect(tmp_path, kind):
    """The suspect is what the base was rounded from: nothing was done to it; and an edit of it still is one."""
    host = twin_of("llama")
    fine = saved(host, tmp_path / "fine")
    base = write_gguf(tmp_path / "base.gguf", host, kind) if kind == "Q8_0" else saved(host, tmp_path / "base", kind)
    cache = {"base": str(base), "cache_dir": str(tmp_path / "cache")}
    finding, _ = audit_checkpoint(Suspect(fine), NAMES, **cache)
    assert finding["base_known"]["verdict"] == "rounded or quantised" and finding["base_known"]["changed"] == 0
    edited = planted(host, tmp_path / "edited", dtype="float32")
    finding, _ = audit_checkpoint(Suspect(edited), NAMES, **cache)
    assert finding["verdict"] == "knowledge edit" and finding["base_known"]["layers"] == [LAYER]
    trained = changed(saved(host, tmp_path / "trained"), lambda name, tensor: tensor * 1.3)
    finding, _ = audit_checkpoint(Suspect(trained), NAMES, **cache)
    assert finding["base_known"]["changed"] > 0
