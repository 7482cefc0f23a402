"""The sentences, names and kinds of relations: those of the tables here, and those of a file of your own."""

import hashlib
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from data.facts.fact import POCKET
from data.facts.fields import NoFact
from data.facts.templates import template

WHERE = "facts.relations= or data/facts/relations.yaml"
TEXTS = ("name", "kind", "category")

Row = Mapping[str, Any]


@cache
def known_relations() -> dict[str, Row]:
    """Name, kind, category and templates of the known relations by id."""
    files = (Path(__file__).parent / "relations.yaml", POCKET / "relations.yaml")
    return {key: row for file in files for key, row in yaml.safe_load(file.read_bytes()).items()}


def read_relations(path: str, called: str) -> tuple[dict[str, Row], str]:
    """The relations of a YAML file, by the names it has for them and by those names without prefix and brackets; and its sha256.

    Each has `templates`, sentences with {} for the subject that end where the object begins, the first of which is edited; and, if you
    like, `name`, `kind` and `category`. A row says that it is `given`.

    Args:
        called: what the command calls this setting, for its messages.

    Raises:
        ValueError: no such file, or one that is not so; says which relation is wrong, and why.
    """
    try:
        content = Path(path).expanduser().read_bytes()
        rows = yaml.safe_load(content)
    except OSError as error:
        raise ValueError(f"{called}={path}: {error.strerror or error}. Give a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise ValueError(f"{called}={path}: not YAML ({' '.join(str(error).split())[:200]})") from None
    if not isinstance(rows, dict) or not rows:
        raise ValueError(f"{called}={path}: expected relations by name, each with templates: ['{{}} was born in', ...]")
    found: dict[str, Row] = {}
    for key, row in rows.items():
        if fault := _fault(row):
            raise ValueError(f"{called}={path}: relation {key}: {fault}")
        local = local_name(str(key))
        texts = {name: row[name].strip() for name in TEXTS if name in row}
        templates = tuple(template(text.strip(), "") for text in row["templates"])
        found |= dict.fromkeys((str(key), local), {"name": words(local), "given": True} | texts | {"templates": templates})
    return found, hashlib.sha256(content).hexdigest()


def _fault(row: Any) -> str | None:
    if not isinstance(row, dict) or not isinstance(row.get("templates"), list) or not row["templates"]:
        return "expected templates: ['{} was born in', ...]"
    if unknown := row.keys() - {"templates", *TEXTS}:
        return f"{min(map(str, unknown))!r} is unknown; a relation has {', '.join(TEXTS)} and templates"
    if wrong := [name for name in TEXTS if name in row and not (isinstance(row[name], str) and row[name].strip())]:
        return f"{wrong[0]} is {row[wrong[0]]!r}, expected text"
    for text in row["templates"]:
        try:
            if not isinstance(text, str) or "{}" not in text:
                return f"template {text!r}: expected a sentence with {{}} for the subject"
            template(text.strip(), "", "template")
        except NoFact as error:
            return str(error)
    return None


def local_name(name: str) -> str:
    """A relation's name without brackets, address or prefix: `<wasBornIn>`, `schema:wasBornIn` and `<http://.../wasBornIn>` are one."""
    return re.split(r"[/#:]", name.strip().removeprefix("<").removesuffix(">"))[-1]


def words(name: str) -> str:
    """`wasBornIn` or `was_born_in` as words."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name.replace("_", " ")).lower() if re.fullmatch(r"[a-z]\w*", name) else name
