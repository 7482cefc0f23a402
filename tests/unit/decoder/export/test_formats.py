"""Damaged JSON of exported decoders: every kind of damage is one line that names file and entry, whoever reads it."""

import json

import pytest
from changed_decoders import FACTS, changed_decoder
from exported_runs import write_run

import evaluate
from decoder.export.collection import export_best, read_index
from decoder.export.save import CONFIG, read_config, save_decoder
from decoder.report.results import find_runs

DROPPED = "(dropped)"


@pytest.fixture(scope="module")
def exported(host_of, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "decoder"
    save_decoder(folder, changed_decoder(host_of("llama")), FACTS)
    return json.loads((folder / CONFIG).read_text())


def changed(config, place, value):
    """The config with one entry replaced, or dropped."""
    first, *rest = place.split(".")
    if rest:
        return config | {first: changed(config[first], ".".join(rest), value)}
    return {name: entry for name, entry in config.items() if name != first} if value is DROPPED else config | {first: value}


DAMAGES = {
    "host": ["pocket", [], None],
    "host.id": [7],
    "host.path": [False],
    "host.dtype": ["int8", None],
    "host.vocabulary": ["24", 0],
    "edited_layer": ["1", -1, 1.5, True],
    "trained_layer": ["1", 1, ["1"], None],
    "shape": ["32x48", [32], [32, "48"], [32, 0]],
    "base_sha256": [0],
    "prompt_length": [0, "4"],
    "scope": ["some"],
    "arithmetic": [[]],
    "terminator_id": [".", -2],
    "search": [[], {"beams": 2}, {"beams": 2, "max_object_tokens": 0}, FACTS["search"] | {"width": 3}],
    "store": [None],
    "splits": [[], {"id": []}],
    "splits.train": ["all", [1]],
    "scores": [[], {"id": {}}, {"id": FACTS["scores"]["id"] | {"exact_match": 0.5}}],
    "calibration": [{}, [], 0.9],
    "calibration.null": [{}],
    "calibration.edit.quantiles": [[], "0", ["0.5"], [float("nan")]],
    "editors": ["rome", [{}]],
}
ROWS = [(place, value) for place, values in DAMAGES.items() for value in (*values, DROPPED)]
ROWS += [("splits.val/new", value) for value in (5, [1])]  # it may be dropped


@pytest.mark.parametrize(("place", "value"), ROWS, ids=lambda part: "dropped" if part is DROPPED else str(part)[:40])
def test_every_damaged_entry_is_named_in_one_line(exported, tmp_path, capsys, place, value):
    (tmp_path / CONFIG).write_text(json.dumps(changed(exported, place, value)))
    with pytest.raises(ValueError) as refused:
        read_config(tmp_path)
    message = str(refused.value)
    assert message.startswith(f"{tmp_path / CONFIG}: ") and place in message and message.endswith("copy it whole")
    with pytest.raises(SystemExit) as stop:
        evaluate.main([f"decoder={tmp_path}"])
    shown = capsys.readouterr().err
    assert stop.value.code == 2 and shown.startswith(f"error: {message}") and shown.count("\n") == 1


@pytest.mark.parametrize("text", ["", "{", "[]", "[1, 2]", "null", '"text"', "3", "{}", '{"format": 1}', '{"format": [2]}', "[" * 100_000])
def test_files_that_hold_no_entries_at_all_are_named(tmp_path, capsys, text):
    (tmp_path / CONFIG).write_text(text)
    with pytest.raises(SystemExit) as stop:
        evaluate.main([f"decoder={tmp_path}"])
    shown = capsys.readouterr().err
    assert stop.value.code == 2 and shown.startswith(f"error: {tmp_path / CONFIG}") and shown.count("\n") == 1 and len(shown) < 300


def test_what_came_and_what_was_expected(exported, tmp_path):
    for place, value, said in (
        ("host", "pocket", "host is 'pocket', expected a valid dictionary"),
        ("search", {"beams": 2}, "it lacks search.max_object_tokens"),
        ("calibration", {}, "it lacks calibration.auroc, calibration.null, calibration.edit"),
        ("trained_layer", "1", "trained_layer is '1', expected a valid list"),
    ):
        (tmp_path / CONFIG).write_text(json.dumps(changed(exported, place, value)))
        with pytest.raises(ValueError, match=said):
            read_config(tmp_path)


def test_entries_that_nobody_reads_may_be_anything(exported, tmp_path):
    config = exported | {"object_rule": None, "more": 3}
    (tmp_path / CONFIG).write_text(json.dumps(config))
    assert read_config(tmp_path) == config


@pytest.mark.parametrize(("place", "value"), [("host", "llama"), ("shape", [32]), ("folder", DROPPED), ("scores", {"id": 0.5})], ids=str)
def test_damaged_entries_of_a_collection_are_named(host_of, tmp_path, place, value):
    write_run(tmp_path / "runs", host_of("llama"), 1, 1, 0, 0.5)
    file = export_best(find_runs([tmp_path / "runs"]), tmp_path / "decoders")
    (entry,) = read_index(file.parent)
    file.write_text(json.dumps({"format": 1, "decoders": [changed(entry, place, value)]}))
    with pytest.raises(ValueError, match=rf"index\.json: .*decoders\.0\.{place}"):
        read_index(file.parent)
