"""Triples in lines, as YAGO writes them: TSV with or without fact identifiers, N-Triples, and Turtle with a triple a line."""

import io
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from data.facts.records import shown

ENDINGS = (".nt", ".ttl", ".tsv", ".txt")
TERM = r'<[^>]*>|"(?:[^"\\]|\\.)*"\S*|[^\s<"]\S*'
TRIPLE = re.compile(rf"({TERM})\s+({TERM})\s+({TERM}?)\s*\.?")
LITERAL = re.compile(r'"((?:[^"\\]|\\.)*)"(?:@[\w-]+|\^\^\S+)?')
ESCAPES = {"\\t": "\t", "\\n": "\n", "\\r": "\r", '\\"': '"', "\\'": "'", "\\\\": "\\"}
CLASSES = re.compile(r"wordnet_(.+)_\d+|wikicat(?:egory)?_(.+)")


def triples(text: str) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """The triple of every line, with where it stands, or the reason why there is none; comments and prefixes are left out."""
    for number, line in enumerate(io.StringIO(text, newline=None), 1):
        line = line.strip("\r\n\ufeff ")
        if line.strip() and not line.lower().startswith(("#", "@prefix", "@base", "prefix ", "base ")):
            found = _columns(line) if "\t" in line else _terms(line)
            reason = f"no triple: {shown(line)}. Expected subject, relation and object in a line"
            yield f"line {number}", {"triple": found} if found else reason


def _columns(line: str) -> list[str] | None:
    """Three columns; YAGO 3 has an identifier before them, which may be empty, and a number behind."""
    cells = [cell.strip() for cell in re.sub(r"(?<=[\s>\"])\.$", "", line).split("\t")]
    if len(cells) > 3 and (not cells[0] or cells[0].startswith("<id_")):
        cells = cells[1:]
    return cells[:3] if len(cells) >= 3 and all(cells[:3]) and len(list(filter(None, cells))) <= 4 else None


def _terms(line: str) -> list[str] | None:
    found = TRIPLE.fullmatch(line)
    return [*found.groups()] if found else None


def name_text(term: str) -> str:
    """What a term says: `<Albert_Einstein>`, `yago:Albert_Einstein` and `"Albert Einstein"@en` are Albert Einstein.

    What tells namesakes apart goes: "(film)", a Wikidata number, a language before a slash, WordNet's numbers.
    """
    if literal := LITERAL.fullmatch(term):
        return re.sub(r"\\u([0-9A-Fa-f]{4})|\\U([0-9A-Fa-f]{8})|\\.", _escaped, literal[1])
    name = re.sub(r"\\u([0-9A-Fa-f]{4})|\\U([0-9A-Fa-f]{8})", _escaped, term)
    if name.startswith("<") and name.endswith(">"):
        name = name[1:-1]
        address = re.fullmatch(r"\w+://(?:.*?/resource/|.*[/#])(.+)", name)
        name = address[1] if address else re.sub(r"^[a-z]{2,3}/", "", name)
    else:
        name = re.sub(r"^[a-z][\w-]*:(?=[^\s_])", "", name)
    name = unquote(re.sub(r"_u([0-9A-Fa-f]{4})_", _escaped, name))
    if named := CLASSES.fullmatch(name):
        name = named[1] or named[2]
    name = re.sub(r"_Q\d+$", "", name).replace("_", " ")
    return re.sub(r"(?<=\S)\s*\([^()]*\)\s*$", "", " ".join(name.split()))


def _escaped(found: re.Match) -> str:
    """The character that an escape stands for; one that stands for none is left."""
    code = next((group for group in found.groups() if group), None)
    return (chr(int(code, 16)) if int(code, 16) < 0x110000 else "") if code else ESCAPES.get(found[0], found[0][1:])
