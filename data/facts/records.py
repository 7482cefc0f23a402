"""Records of a fact set, from a file, a folder of files, or a Hub data set."""

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from reprlib import Repr
from typing import Any

ENDINGS = (".json", ".jsonl", ".csv", ".tsv")
TRIPLES, PATTERNS = "trex_lms_vocab", "pattern_data/graphs_json"
BLANK = " \t\r\n\ufeff"  # files that were joined have a byte order mark at each seam
_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = 100


@dataclass(frozen=True)
class Record:
    """One record and where it stands; a record that cannot be read has the reason in place of its fields."""

    fields: dict[str, Any] | str
    where: str
    number: int
    stem: str = ""
    templates: tuple[str, ...] = ()  # sentences of its relation, where they lie beside the file
    relations: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)  # what is known of relations, by id


Rows = Iterable[tuple[str, dict[str, Any] | str]]
"""Where each record stands, and its fields or the reason why there are none."""


def open_records(
    path: str,
    split: str,
    is_record: Callable[[dict], bool],
    called: dict[str, str],
    lines: tuple[tuple[str, ...], Callable[[str], Rows]] = ((), lambda text: ()),
) -> tuple[Iterable[Record], str]:
    """The records at a path, and a sha256 over what they are read from.

    Args:
        is_record: whether an object has the fields of a record; one that has not may be what records are wrapped in.
        called: what the command calls its settings `path` and, if it has it, `split`.
        lines: endings of files that are neither JSON nor tables with a header, and what reads their text.

    Raises:
        ValueError: nothing there, a file of another kind, or a Hub data set that cannot be had.
    """
    name = called["path"]
    place = Path(path).expanduser()
    endings = tuple(dict.fromkeys(ENDINGS + lines[0]))
    if place.is_dir():
        files = _files(place, endings)
    elif place.exists():
        files = [place]
    elif path.count("/") == 1 and not path.startswith((".", "~", "/")) and place.suffix not in endings:
        return _hub(path, split, called)
    else:
        raise ValueError(f"{name}={path}: no such file, folder or Hub data set (OWNER/NAME)")
    if wrong := [file for file in files if _ending(file) not in endings]:
        raise ValueError(f"{name}={wrong[0]}: expected one of {', '.join(endings)}")
    if not files:
        raise ValueError(f"{name}={path}: the folder has no {', '.join(endings)} file")
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + file.read_bytes())
    readers = dict.fromkeys(lines[0], lines[1])
    return (record for file in files for record in _records(file, is_record, readers.get(_ending(file)))), digest.hexdigest()


def _ending(file: Path) -> str:
    return file.suffix.lower()


def _files(folder: Path, endings: tuple[str, ...]) -> list[Path]:
    """The files of a folder; of a clone of ParaRel the triples."""
    for inner in (folder / TRIPLES, folder / "data" / TRIPLES):
        if inner.is_dir():
            folder = inner
    return sorted(file for file in folder.iterdir() if _ending(file) in endings)


def _records(file: Path, is_record: Callable[[dict], bool], of_lines: Callable[[str], Rows] | None) -> Iterator[Record]:
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        yield Record(f"not UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8", file.name, 0, file.stem)
        return
    templates = _patterns(file)
    if of_lines:
        rows = of_lines(text)
    else:
        rows = _table(text, _ending(file)) if _ending(file) in (".csv", ".tsv") else _objects(text, _ending(file), is_record)
    for number, (where, fields) in enumerate(rows):
        yield Record(fields, f"{file.name} {where}", number, file.stem, templates)


def _table(text: str, ending: str) -> Iterator[tuple[str, dict[str, str] | str]]:
    """The rows of a CSV or TSV below its header, which tells the separator, each with the line it begins in."""
    separator = "\t" if ending == ".tsv" else max(",;\t", key=re.split("[\r\n]", text, maxsplit=1)[0].count)
    names: list[str] = []
    for line, row in _rows(text, separator):
        if isinstance(row, str):
            yield f"line {line}", row
            if not names:
                return
        elif not any(map(str.strip, row)):
            continue  # spreadsheets end in rows of empty cells
        elif not names:
            names = [name.strip(BLANK) for name in row]
            if twice := [name for name in names if name and names.count(name) > 1]:
                yield f"line {line}", f"two columns are called {twice[0]!r}"
                return
        elif len(row) != len(names):
            yield f"line {line}", f"another number of columns than the header ({len(row)}, not {len(names)})"
        else:
            yield f"line {line}", dict(zip(names, row, strict=True))


def _rows(text: str, separator: str) -> Iterator[tuple[int, list[str] | str]]:
    """Rows as `csv` splits them. One that it cannot read is the reason why, and ends with its line: a stray quote costs one row."""
    lines, start = io.StringIO(text, newline="").readlines(), 0
    while start < len(lines):
        rest = map(lines.__getitem__, range(start, len(lines)))
        reader, first = csv.reader(rest, delimiter=separator, skipinitialspace=True, strict=True), start
        try:
            for row in reader:
                yield first + 1, row
                first = start + reader.line_num
            return
        except csv.Error as error:
            start = first + 1
            yield start, f"not a row of a table ({error}): a quote that is not closed, or not doubled?"


def _objects(text: str, ending: str, is_record: Callable[[dict], bool]) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """The objects of a JSON list, also one that is wrapped in an object, or of JSON lines, which some tools write as .json."""
    whole = _json(text) if ending == ".json" else None
    if isinstance(whole, dict) and not is_record(whole):
        lists = [value for value in whole.values() if isinstance(value, list) and any(isinstance(one, dict) for one in value)]
        whole = lists[0] if len(lists) == 1 else whole
    if isinstance(whole, dict | list):
        yield from ((f"record {n}", _object(row)) for n, row in enumerate(whole if isinstance(whole, list) else [whole], 1))
        return
    lines = ((number, line.strip(BLANK)) for number, line in enumerate(io.StringIO(text, newline=""), 1))
    rows: Iterable[tuple[str, dict[str, Any] | str]] = ((f"line {number}", _object(_json(line))) for number, line in lines if line)
    if isinstance(whole, _Fault):
        rows = list(rows)
        if rows and not any(isinstance(fields, dict) for _, fields in rows):
            rows = [("as a whole", whole.reason)]
    yield from rows


@dataclass(frozen=True)
class _Fault:
    """What stands in the place of a value that JSON does not give."""

    reason: str

    def __repr__(self) -> str:
        return self.reason


def _json(text: str) -> Any:
    """What a JSON text says, numbers as they are written."""
    try:
        return json.loads(text, parse_float=str, parse_int=str, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        return _Fault(f"not JSON ({error.msg} at {f'line {error.lineno} ' * (error.lineno > 1)}column {error.colno})")
    except RecursionError:
        return _Fault("nested too deep")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any] | _Fault:
    """An object whose fields have a name each; of two with one name, one would be lost."""
    fields = dict(pairs)
    names = [name for name, _ in pairs] if len(fields) < len(pairs) else []
    return next((_Fault(f"an object with two fields {name!r}") for name in names if names.count(name) > 1), fields)


def _object(value: Any) -> dict[str, Any] | str:
    if isinstance(value, _Fault):
        return value.reason
    return value if isinstance(value, dict) else f"expected an object with fields, got {shown(value)}"


def shown(value: Any) -> str:
    """A value on one line, a long one cut."""
    return "null" if value is None else _SHORT.repr(value)


def _patterns(file: Path) -> tuple[str, ...]:
    """ParaRel's sentences of a relation that end where the object begins, with {} for the subject."""
    beside = file.parent.parent / PATTERNS / file.name
    if file.parent.name != TRIPLES or not beside.is_file():
        return ()
    sentences = []
    for where, row in _objects(beside.read_bytes().decode("utf-8-sig"), ".jsonl", lambda row: True):
        if not isinstance(row, dict) or not isinstance(row.get("pattern"), str):
            raise ValueError(f"{beside} {where}: {row if isinstance(row, str) else 'no pattern'}")
        sentences.append(row["pattern"].strip(" ."))
    return tuple(
        sentence.removesuffix("[Y]").strip().replace("[X]", "{}")
        for sentence in sentences
        if sentence.endswith("[Y]") and sentence.count("[X]") == 1 and sentence.count("[Y]") == 1
    )


def _hub(path: str, split: str, called: dict[str, str]) -> tuple[Iterable[Record], str]:
    import datasets

    try:
        rows = datasets.load_dataset(path, split=split)
    except Exception as error:  # the library raises a dozen kinds: absent, gated, offline, no such split
        reason = " ".join(str(error).split())[:200]
        other = f", or {called['split']}=" if "split" in called else ""
        raise ValueError(
            f"{called['path']}={path}: no such file, and the Hub data set cannot be had (split {split}: {reason}). "
            f"Give a local file{other}; private sets need HF_TOKEN"
        ) from None
    records = (Record(dict(row), f"{path} row {n}", n, path.rpartition("/")[2]) for n, row in enumerate(rows))
    return records, hashlib.sha256(rows._fingerprint.encode()).hexdigest()
