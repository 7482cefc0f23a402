"""Fact sets that Hypothesis makes up: what is stored is what was written, or the record is listed. All that is raised is ValueError."""

import copy
import csv
import io
import json
import unicodedata

import pytest
from fact_records import COUNTERFACT, KNOWEDIT, MQUAKE, RECORDS, load
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.facts.fact import Entry

FORMATS = ["jsonl", "json", "csv", "tsv"]
CHARS = "aAl1_-'’ \"{},;|\t\n\r\x0b\x0c\x1c\x85\u2028\ufeff\u200d\u0301\u00e9\u093e北東김ก\U0001f600"
TEXT = st.text(st.one_of(st.sampled_from(CHARS), st.characters(codec="utf-8")), max_size=12)
WILD = st.one_of(TEXT, st.text(st.characters(min_codepoint=0xD7F0, max_codepoint=0xE010), min_size=1, max_size=3))
ANY = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), WILD),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.one_of(TEXT, st.sampled_from(["str", "prompt"])), inner, max_size=3)
    ),
    max_leaves=6,
)
REWRITE = {"subject": ("subject",), "prompt": ("prompt",), "object": ("target_new", "str"), "object_true": ("target_true", "str")}
AT = {
    "counterfact": {name: ("requested_rewrite", *path) for name, path in REWRITE.items()},
    "mquake": {name: ("requested_rewrite", 0, *path) for name, path in REWRITE.items()},
    "zsre": {"subject": ("subject",), "prompt": ("src",), "object": ("answers",), "object_true": ("pred",)},
    "zsre-alt": {"subject": ("subject",), "prompt": ("src",), "object": ("alt",), "object_true": ("answers",)},
    "knowedit": {"subject": ("subject",), "prompt": ("prompt",), "object": ("target_new",), "object_true": ("ground_truth",)},
    "fever": {"subject": ("input",)},
    "pararel": {"subject": ("sub_label",), "object_true": ("obj_label",)},
    "plain": {name: (name,) for name in ("subject", "prompt", "object", "object_true")},
}
"""Where a record has what a fact is made of."""
LISTS = {
    "counterfact": {"paraphrase_prompts": "paraphrases", "neighborhood_prompts": "neighbours"},
    "zsre": {"rephrase": "paraphrases"},
    "zsre-alt": {"rephrase": "paraphrases"},
    "knowedit": {"rephrase_prompt": "paraphrases"},
    "plain": {"paraphrases": "paraphrases", "neighbours": "neighbours"},
}
WHOLE = RECORDS | {
    "counterfact": COUNTERFACT | {"fact_id": "a"},
    "mquake": MQUAKE | {"requested_rewrite": MQUAKE["requested_rewrite"][:1]},
    "knowedit": KNOWEDIT | {"locality_prompt": "Leo is", "locality_ground_truth": "b"},
}


def places(value, path=()):
    """Paths to everything inside a record."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in inside:
        yield (*path, name)
        yield from places(inner, (*path, name))


def at(record, path):
    for name in path:
        try:
            record = record[name]
        except (KeyError, IndexError, TypeError):
            return None
    return record


def put(record, path, value):
    holder = at(record, path[:-1])
    if isinstance(holder, dict) or (isinstance(holder, list) and isinstance(path[-1], int) and len(holder) > path[-1]):
        holder[path[-1]] = value


@st.composite
def record_of(draw, source: str, anything: st.SearchStrategy) -> dict:
    """A record with other texts, and up to two values that may be anything."""
    record = copy.deepcopy(WHOLE[source])
    subject = draw(TEXT)
    for name, path in AT[source].items():
        middle = st.sampled_from(["{}", subject, unicodedata.normalize("NFD", subject)])
        prompt = st.builds(lambda *parts: "".join(parts), TEXT, middle, TEXT)
        put(record, path, subject if name == "subject" else draw(prompt if name == "prompt" else TEXT))
    for path in draw(st.lists(st.sampled_from(sorted(places(record), key=str)), max_size=2)):
        put(record, path, draw(anything))
    return record


def said(value) -> str | None:
    """The text that a value of a file is, by a rule of its own."""
    while isinstance(value, list) and value:
        value = value[0]
    if not isinstance(value, str | bool | int | float) or value in (float("inf"), float("-inf")) or value != value:
        return None
    text = value if isinstance(value, str) else json.dumps(value)
    return None if any("\ud800" <= char <= "\udfff" for char in text) else unicodedata.normalize("NFC", text.strip())


def check(source: str, record: dict, entry: Entry) -> None:
    fact = entry.fact
    if fact is None:
        assert entry.reason and "\n" not in entry.reason
        return
    wanted = {name: said(at(record, path)) for name, path in AT[source].items()}
    if source == "zsre" and wanted["object_true"] in (None, "", wanted["object"]):
        wanted["object_true"] = said(record["alt"])
    if source == "fever":
        claim = said(at(record, ("input",))) or said(at(record, ("claim",)))
        wanted = {"subject": claim.removesuffix(".").strip(), "object_true": fact.object_true, "object": fact.object}
        assert {fact.object_true, fact.object} == {"true", "false"}
    assert fact.subject == wanted["subject"] and fact.object_true == wanted["object_true"] != ""
    assert fact.object == (wanted.get("object") or None)
    assert fact.prompt.count("{}") == 1
    if "prompt" in wanted and (source != "plain" or wanted["prompt"]):
        assert fact.prompt.replace("{}", fact.subject) == wanted["prompt"].replace("{}", fact.subject)
    for field, kept in LISTS.get(source, {}).items():
        value = record.get(field)
        parts = [part for part in value.split("|") if part.strip()] if source == "plain" and isinstance(value, str) else value
        given = [] if value is None or value in ([], {}) or (isinstance(value, str) and not value.strip()) else parts
        count = len(given) if isinstance(given, list) else 1
        if source == "plain" and field == "neighbours" and isinstance(value, str):
            count = bool(value.strip())
        assert len(getattr(fact, kept)) + sum(text.startswith(field) for text in entry.left_out) >= count


def check_all(source: str, file, records: list[dict]) -> None:
    if source == "mquake":
        several = [(record, record["requested_rewrite"]) for record in records]
        records = [
            record | {"requested_rewrite": [one]} for record, edits in several for one in (isinstance(edits, list) and edits) or [edits]
        ]
    try:
        facts = load(source, file)
    except ValueError as error:
        assert str(error).startswith("facts.path=") and "\n" not in str(error)
        assert "is no" in str(error) or f"among {len(records)} records" in str(error)
        return
    assert len(facts.entries) == len(records)
    for record, entry in zip(records, facts.entries, strict=True):
        check(source, record, entry)


def whole_files(data, folder, ending: str) -> None:
    """A file as a tool would write it."""
    source = data.draw(st.sampled_from(["plain", "zsre", "zsre-alt", "pararel"] if ending in ("csv", "tsv") else sorted(RECORDS)))
    file = folder / f"P17.{ending}"
    if ending in ("csv", "tsv"):
        names = [name for name in WHOLE[source] if isinstance(WHOLE[source][name], str)] + ["answers"] * source.startswith("zsre")
        records = data.draw(st.lists(record_of(source, TEXT), min_size=1, max_size=3))
        records = [{name: said(record[name]) or "" for name in names} for record in records]
        text = io.StringIO()
        # Told to end lines in \n alone, `csv` leaves a bare \r without quotes.
        end, quotes = data.draw(st.sampled_from([("\n", csv.QUOTE_ALL), ("\r\n", csv.QUOTE_MINIMAL)]))
        writer = csv.DictWriter(text, names, delimiter="," if ending == "csv" else "\t", lineterminator=end, quoting=quotes)
        writer.writeheader()
        writer.writerows(records)
        file.write_bytes(text.getvalue().encode())
        records = [record for record in records if any(record.values())]
    else:
        records = data.draw(st.lists(record_of(source, ANY), min_size=1, max_size=3))
        is_ascii = any("\ud800" <= char <= "\udfff" for char in str(records)) or "\\ud" in repr(records) or data.draw(st.booleans())
        lines = [json.dumps(record, ensure_ascii=is_ascii) for record in records]
        file.write_bytes(("\n".join(lines) if ending == "jsonl" else f"[{', '.join(lines)}]").encode())
    check_all(source, file, records)


def broken_files(data, folder, ending: str) -> None:
    """A good file of which something was cut, doubled or replaced."""
    source = data.draw(st.sampled_from(sorted(RECORDS)))
    file = folder / f"P17.{ending}"
    if ending in ("csv", "tsv"):
        rows = ["subject,prompt,object_true,object", "Ada,{} is a,baker,singer", 'Ben,"{}, of Bonn, is a",singer,baker'] * 2
        whole = "\n".join(rows if ending == "csv" else [row.replace(",", "\t") for row in rows]).encode()
    else:
        lines = [json.dumps(WHOLE[source])] * 2
        whole = ("\n".join(lines) if ending == "jsonl" else json.dumps(list(map(json.loads, lines)), indent=1)).encode()
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(whole)))
        end = data.draw(st.integers(start, min(len(whole), start + 40)))
        noise = st.one_of(
            st.binary(max_size=4), st.sampled_from([b'"', b"\n", b"\x00", b"[", b"{", b"\xef\xbb\xbf", b"NaN", whole[start:end] * 2])
        )
        whole = whole[:start] + data.draw(noise) + whole[end:]
    file.write_bytes(whole)
    try:
        facts = load(source, file)
    except ValueError as error:
        assert str(error).startswith("facts.path=") and "\n" not in str(error)
        return
    for entry in facts.entries:
        assert entry.fact or entry.reason
        assert "Error" not in entry.reason


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def fuzz(folder, ending: str, examples: int, **others) -> None:
    quiet = settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck), **others)

    @quiet
    @given(st.data())
    def whole(data):
        whole_files(data, folder, ending)

    @quiet
    @given(st.data())
    def broken(data):
        broken_files(data, folder, ending)

    whole()
    broken()


@pytest.mark.parametrize("ending", FORMATS)
def test_made_up_fact_sets(folder, ending):
    fuzz(folder, ending, 25, derandomize=True)


@pytest.mark.slow
@pytest.mark.parametrize("ending", FORMATS)
def test_twenty_thousand_made_up_fact_sets(folder, ending):
    fuzz(folder, ending, 2500, derandomize=True)  # the same ones every time; without it looks for more
