"""Which decoders may vote together: every list that may not is one line."""

import json

import pytest
from changed_decoders import CONFIG, FACTS, changed_decoder

import evaluate
from decoder.export.save import read_config, save_decoder
from decoder.export.voters import folders_of, own_store, read_voters, scored_on
from decoder.utils.errors import UserError


@pytest.fixture
def folders(host_of, tmp_path):
    for name in ("a", "b"):
        save_decoder(tmp_path / name, changed_decoder(host_of("llama")), FACTS)
    (tmp_path / "a" / "all").mkdir()
    (tmp_path / "a" / "all" / "index.json").write_text("{}")
    return tmp_path


def change(folder, **entries):
    (folder / CONFIG).write_text(json.dumps(read_config(folder) | entries))


def refused(capsys, *argv):
    with pytest.raises(SystemExit) as stop:
        evaluate.main([*argv])
    shown = capsys.readouterr().err
    assert stop.value.code == 2 and shown.startswith("error: ") and shown.count("\n") == 1
    return shown


def test_a_name_with_a_comma_that_exists_is_one_decoder(folders, monkeypatch):
    monkeypatch.setenv("HOME", str(folders))
    assert folders_of("~/a, ~/b") == [str(folders / "a"), str(folders / "b")]
    both = f"{folders / 'a'},{folders / 'b'}"
    assert [config["store"] for config in read_voters(both)] == [FACTS["store"]] * 2
    (folders / "a").rename(folders / "a,b")
    assert folders_of(str(folders / "a,b")) == [str(folders / "a,b")] and len(read_voters(str(folders / "a,b"))) == 1


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("{top}/a,", "a folder is missing before or after a comma; write decoder=A,B"),
        (",{top}/a", "a folder is missing"),
        ("{top}/a,{top}/b,{top}/b/../a", "{top}/a came twice; a decoder has one vote, keep one"),
        ("{top}/a,{top}/a/all", "{top}/a/all is a folder of several decoders; name those in it that shall vote"),
        ("{top}/a,{top}/none", "decoder={top}/none: no decoder_config.json there"),
    ],
)
def test_lists_that_are_none(folders, capsys, names, said):
    assert said.format(top=folders) in refused(capsys, f"decoder={names.format(top=folders)}", f"suspect={folders / 'w.safetensors'}")


HOSTS = "is of host llama (000000000000)"


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"host": {"fingerprint": "000000000000"}}, HOSTS),
        ({"edited_layer": 2}, "reads edited layer 2"),
        ({"terminator_id": None}, "knows no end of an object"),
        ({"terminator_id": None, "learnt_end": True}, "ends objects where it learnt to"),
    ],
    ids=["host", "layer", "end", "learnt end"],
)
def test_decoders_that_are_not_alike(folders, capsys, entries, said):
    own = read_config(folders / "b")
    change(folders / "b", **{name: own[name] | value if isinstance(value, dict) else value for name, value in entries.items()})
    shown = refused(capsys, f"decoder={folders / 'a'},{folders / 'b'}", "allow_host_mismatch=true")
    assert (
        shown.startswith(f"error: decoders that answer together must be alike: {folders / 'a'} ")
        and f"{folders / 'b'} {said}. Leave" in shown
    )


def test_what_a_vote_is_tested_on():
    first = {"store": "s1", "splits": {"train": ["t1"], "id": ["i1"], "ood": [], "unseen_object": []}}
    second = first | {"store": "s2"}
    assert scored_on([first], "s1") is first and scored_on([first, first | {"seed": 1}], "s1") is first
    assert scored_on([first, second], "s2") is second and scored_on([first, second], "s3") is first
    assert own_store([first, first]) == "s1"
    with pytest.raises(UserError, match="of different stores .s1, s2.: give the one to score as store="):
        own_store([first, second, first])
    told = first | {"splits": first["splits"] | {"train": ["t2", "i1"]}}
    assert scored_on([told], "s1") is told, "a decoder alone is what it was"
    with pytest.raises(UserError, match="trained on 1 test edits of another, i1 first: use decoders of one split"):
        scored_on([told, first], "s1")
    for split in ("val/id", "val/new"):
        chosen = first | {"splits": first["splits"] | {split: ["v1", "i1"]}}
        assert scored_on([chosen], "s1") is chosen
        with pytest.raises(UserError, match="validated on 1 test edits of another, i1 first: use decoders of one split"):
            scored_on([first, chosen], "s1")
