"""Which record belongs to which source."""

from pathlib import Path

import pytest
from fact_records import PLAIN, load, written

from data.import_edits.pairing import pair
from data.import_edits.sources import sources


def paths(*names: str) -> list[Path]:
    return [Path(f"{name}.safetensors") for name in names]


def facts(folder, *records):
    return load("plain", written(folder, *records, name="facts.jsonl"))


def record(subject: str | None, fact_id: str | None = None) -> dict:
    return PLAIN | {"subject": subject} | ({"fact_id": fact_id} if fact_id else {})


def subjects(paired) -> list[str | None]:
    return [entry and (entry.fact.subject if entry.fact else "no fact") for entry in paired]


def test_by_name_then_by_order(tmp_path):
    for name in ("case_2", "case_10", "case_3"):
        (tmp_path / f"{name}.safetensors").touch()
    found = sources(tmp_path)
    assert [path.stem for path in found] == ["case_2", "case_3", "case_10"]
    three = facts(tmp_path, record("s10", "P1-10"), record("s2", "P1-2"), record("s3", "P1-3"))
    assert subjects(pair(found, three)) == ["s2", "s3", "s10"]
    assert subjects(pair(paths("P1-3", "P1-10"), three)) == ["s3", "s10"], "fewer sources than facts, all named"
    assert subjects(pair(paths("a", "b", "c"), three)) == ["s10", "s2", "s3"]


def test_a_record_without_a_fact_keeps_its_source(tmp_path):
    bad = facts(tmp_path, record("A", "e0"), record(None, "e1"), record("C", "e2"))
    assert subjects(pair(paths("e0", "e1", "e2"), bad)) == ["A", "no fact", "C"]
    unread = facts(tmp_path, record("A", "e0"), "{broken", record("C", "e2"))
    assert subjects(pair(paths("e0", "e1", "e2"), unread)) == ["A", None, "C"]


@pytest.mark.parametrize("bad", ["{broken", "7", record(None), record("Ada") | {"object": float("nan")}])
@pytest.mark.parametrize("names", ["ab", "abc"])
def test_order_alone_is_no_pairing_once_something_was_dropped(tmp_path, bad, names):
    dropped = facts(tmp_path, record("A"), bad, record("C"))
    with pytest.raises(ValueError, match="1 of 3 records are no facts .*line 2.*order alone.*fact_id .*without ending .a."):
        pair(paths(*names), dropped)


@pytest.mark.parametrize(
    ("ids", "names", "why"),
    [
        ((None, None, None), "ab", "3 records for 2 edited sources"),
        ((None, None), "abc", "2 records for 3 edited sources"),
        (("e0", "e1", "e2"), ("e1", "e2", "e3"), "e1.safetensors is named like a record that stands in another place"),
        (("e0", "e0", "e1"), ("e0", "e1", "e2"), "e1.safetensors is named like"),
        (("e0", "e1"), ("e0", "e1", "e2"), "2 records for 3"),
        ((None, None, None), ("plain-00001", "00001"), "3 records for 2"),
    ],
)
def test_names_that_do_not_tell(tmp_path, ids, names, why):
    written_so = facts(tmp_path, *(record(f"s{n}", fact_id) for n, fact_id in enumerate(ids)))
    with pytest.raises(ValueError, match=why) as refused:
        pair(paths(*names), written_so)
    assert "\n" not in str(refused.value)


def test_names_of_folders_and_repeated_facts(tmp_path):
    (tmp_path / "m-1.5").mkdir()
    named = facts(tmp_path, record("A", "m-1.5"), record("B", "m-1"), record("A", "m-2"))
    assert subjects(pair([tmp_path / "m-1.5", *paths("m-1", "m-2")], named)) == ["A", "B", "A"]
    assert len(named) == 2 and len(named.entries) == 3
    assert subjects(pair(paths("x", "y"), facts(tmp_path, record("A"), record("A")))) == ["A", "A"]
