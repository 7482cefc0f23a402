"""In which settings a store was made otherwise than it is asked for now."""

from collections.abc import Iterator, Mapping
from typing import Any

from decoder.config.identity import editor_as_today
from decoder.config.options import typed

# What no single setting decides.
FINGERPRINT, TERMINATOR, MODULE, BASE = "host's fingerprint", "token of host.terminator", "module", "sha256 of W_V"
FACTS, SENTENCES = "sha256 of the facts", "version of the sentences about facts"
SPELT = "splits.spelt_per_relation"
PLANNED, COUNT = "edits planned by splits.* and facts.*", "number of edits planned by splits.* and facts.*"
NAMED = {
    "host.id": "host.name",
    "host.fingerprint": FINGERPRINT,
    "module": MODULE,
    "base_sha256": BASE,
    "facts.sha256": FACTS,
    "requests.sha256": PLANNED,
    "requests.count": COUNT,
    "spelt": SPELT,
    "terminator_id": TERMINATOR,
    "keys.tokens": "edits.key_tokens",
    "keys.ridge": "edits.ridge",
    "keys.sentences": SENTENCES,
}
"""Entries of a manifest -> what decides them, where it has another name; of those in no group else a setting of `edits`."""
FOLLOWS = {
    FINGERPRINT: {"host.name", "host.revision", "host.dtype"},
    TERMINATOR: {"host.name"},
    MODULE: {"edits.layer", "host.name"},
    BASE: {"edits.layer", "host.name", "host.revision", "host.dtype", FINGERPRINT},
    FACTS: {"facts.source"},
    SENTENCES: {"keys.text"},
    COUNT: {"facts.source", FACTS, "edits.facts_per_host"},
    PLANNED: {"facts.source", FACTS, "edits.facts_per_host", "edits.seed", "edits.objects", SPELT, COUNT},
    "keys.top_k": {"keys.text"},
    "keys.rows": {"keys.text"},
    "keys.length": {"keys.text"},
    "edits.rank": {"edits.facts_per_host"},
}
"""What says nothing new where one of these differs."""
UNSAID = {"facts_per_host": 1, "objects": "relation", "rank": 1, "spelt": 0}
"""What a manifest without the entry stands for."""


def disagreement(manifest: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """Every setting in which a manifest, of whatever version, is not what is asked, as `edits.seed=0 (here 1)`; empty if it is that."""
    fields = [field for field in asked if _entry(manifest, field) != _entry(asked, field)]
    if "requests" in fields:
        # A store may have been made with what is not asked for.
        fields += [field for field in UNSAID if field not in fields and _entry(manifest, field) != _entry(asked, field)]
    there, here = ({name: value for field in fields for name, value in _settings(record, field)} for record in (manifest, asked))
    names = [name for name in here | there if there.get(name) != here.get(name)]
    if "edits.editor" in names:
        # Each editor has settings of its own.
        own = {name for record in (manifest, asked) for field in ("editor", "keys") for name, _ in _settings(record, field)}
        names = [name for name in names if name == "edits.editor" or name not in own]
    return [
        f"{name}={_shown(there.get(name))} (here {_shown(here.get(name))})" for name in names if not FOLLOWS.get(name, set()) & {*names}
    ]


def _entry(record: Mapping[str, Any], field: str) -> Any:
    value = UNSAID.get(field) if record.get(field) is None else record[field]
    return editor_as_today(value) if field == "editor" and value else value


def _settings(record: Mapping[str, Any], field: str) -> Iterator[tuple[str, Any]]:
    """What an entry of a manifest says, by the names of settings."""
    value = _entry(record, field)
    if field == "editor":
        yield "edits.editor", value and value["name"]
        yield from ((f"edits.{name}", own) for name, own in (value or {}).get("settings", {}).items())
    elif field in ("layer", "layers"):
        yield "edits.layer", record.get("layer", record.get("layers"))
    elif field in ("host", "facts", "requests", "keys"):
        entries = dict(value or {})
        if field == "keys":
            sampled, text = entries.pop("sampled", None), entries.pop("text", None)
            yield "keys.text", "self" if sampled else f"a text of sha256 {_shown(text)}" if text else "the facts told"
            entries |= sampled or {}
        yield from ((NAMED.get(f"{field}.{name}", f"{field}.{name}"), own) for name, own in entries.items())
    else:
        yield NAMED.get(field, f"edits.{field}"), value


def _shown(value: Any) -> str:
    return value[:12] if isinstance(value, str) and len(value) == 64 else typed(value)
