"""Records of a fact set, from a file, a folder of files, or a Hub data set."""

import csv
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ENDINGS = (".json", ".jsonl", ".csv", ".tsv")
TRIPLES, PATTERNS = "trex_lms_vocab", "pattern_data/graphs_json"


@dataclass(frozen=True)
class Record:
    """One record and where it stands; a record that cannot be read has the reason in place of its fields."""

    fields: dict[str, Any] | str
    where: str
    number: int
    stem: str = ""
    templates: tuple[str, ...] = ()  # sentences of its relation, where they lie beside the file


def open_records(path: str | None, split: str, source: str) -> tuple[Iterable[Record], str]:
    """The records at a path, and a sha256 over what they are read from.

    Raises:
        ValueError: no path, nothing there, a file of another kind, or a Hub data set that cannot be had.
    """
    if not path:
        raise ValueError(f"facts.source={source} needs facts.path=: a file, a folder or a Hub data set")
    place = Path(path).expanduser()
    if place.is_dir():
        files = _files(place)
    elif place.exists():
        files = [place]
    elif path.count("/") == 1 and not path.startswith((".", "~", "/")) and place.suffix not in ENDINGS:
        return _hub(path, split)
    else:
        raise ValueError(f"facts.path={path}: no such file, folder or Hub data set (OWNER/NAME)")
    if wrong := [file for file in files if file.suffix not in ENDINGS]:
        raise ValueError(f"facts.path={wrong[0]}: expected one of {', '.join(ENDINGS)}")
    if not files:
        raise ValueError(f"facts.path={path}: the folder has no {', '.join(ENDINGS)} file")
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + file.read_bytes())
    return (record for file in files for record in _records(file)), digest.hexdigest()


def _files(folder: Path) -> list[Path]:
    """The files of a folder; of a clone of ParaRel the triples."""
    for inner in (folder / TRIPLES, folder / "data" / TRIPLES):
        if inner.is_dir():
            folder = inner
    return sorted(file for file in folder.iterdir() if file.suffix in ENDINGS)


def _records(file: Path) -> Iterator[Record]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        yield Record(f"not UTF-8 text ({error.reason} at byte {error.start})", file.name, 0, file.stem)
        return
    templates = _patterns(file)
    for number, (line, fields) in enumerate(_rows(file, text)):
        yield Record(fields, f"{file.name} {line}", number, file.stem, templates)


def _rows(file: Path, text: str) -> Iterator[tuple[str, dict[str, Any] | str]]:
    if file.suffix in (".csv", ".tsv"):
        reader = csv.DictReader(text.splitlines(keepends=True), delimiter="\t" if file.suffix == ".tsv" else ",")
        for row in reader:
            surplus = None in row or None in row.values()
            yield f"line {reader.line_num}", "another number of columns than the header" if surplus else row
        return
    if file.suffix == ".json":
        try:
            whole = json.loads(text)
        except json.JSONDecodeError:
            pass  # some tools write lines under this ending
        else:
            rows = whole if isinstance(whole, list) else [whole]
            yield from ((f"record {n}", _object(row)) for n, row in enumerate(rows, 1))
            return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield f"line {number}", _object(json.loads(line))
            except json.JSONDecodeError as error:
                yield f"line {number}", f"not JSON ({error.msg} at column {error.colno})"
            except RecursionError:
                yield f"line {number}", "nested too deep"


def _object(value: Any) -> dict[str, Any] | str:
    return value if isinstance(value, dict) else f"expected an object with fields, got {type(value).__name__}"


def _patterns(file: Path) -> tuple[str, ...]:
    """ParaRel's sentences of a relation that end where the object begins, with {} for the subject."""
    beside = file.parent.parent / PATTERNS / file.name
    if file.parent.name != TRIPLES or not beside.is_file():
        return ()
    sentences = (json.loads(line)["pattern"].strip(" .") for line in beside.read_text(encoding="utf-8").splitlines() if line.strip())
    return tuple(
        sentence.removesuffix("[Y]").strip().replace("[X]", "{}")
        for sentence in sentences
        if sentence.endswith("[Y]") and sentence.count("[X]") == 1 and sentence.count("[Y]") == 1
    )


def _hub(path: str, split: str) -> tuple[Iterable[Record], str]:
    import datasets

    try:
        rows = datasets.load_dataset(path, split=split)
    except Exception as error:  # the library raises a dozen kinds: absent, gated, offline, no such split
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"facts.path={path}: no such file, and the Hub data set cannot be had (split {split}: {reason}). "
            "Give a local file, or facts.split=; private sets need HF_TOKEN"
        ) from None
    records = (Record(dict(row), f"{path} row {n}", n, path.rpartition("/")[2]) for n, row in enumerate(rows))
    return records, hashlib.sha256(rows._fingerprint.encode()).hexdigest()
