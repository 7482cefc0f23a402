"""Which settings make a run what it is: its folder, its edits, and what its results depend on.

`as_today` is the one rule by which results of every version stay valid: a setting that was renamed counts under its new name, one that
is absent had today's default or what `BEFORE` has of it, and one that is gone counts for nothing. Runs, comparisons, exports, checkpoints
and stores go by it.
"""

import json
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import Field
from operator import attrgetter
from pathlib import Path
from typing import Any

from decoder.config import TrainConfig
from decoder.config.compose import to_dict
from decoder.config.editors import EDITORS, EditsConfig, own_settings
from decoder.config.options import expanded, leaves, sections, settings
from decoder.config.schema import RENAMED, with_editor
from decoder.utils.files import short_hash

WITHOUT_EFFECT = {"runs", "cache_dir", "resume", "wandb", "launcher", "grid", "variant", "trainer.progress"}
"""Settings and groups that change where results go and what is shown, not the results."""
BEFORE = {"decoder.rekeyed": False}
"""Settings whose default is another than what was done before there were such settings."""
OF_THE_EDITS = ("host", "cache_dir", "store", "facts", "keys", "edits", "splits")
"""Settings that say which edits are made; runs that share them share their edits."""


def run_folder(cfg: TrainConfig) -> Path:
    """Folder of one run: experiment, host, editor (`editor_of`), edited and trained layers, seed, and the variant if there is one."""
    edited, trained = ("-".join(map(str, layers)) for layers in (cfg.edits.layers, cfg.decoder.layers))
    leaf = f"{editor_of(cfg)}-e{edited}-t{trained}-s{cfg.seed}" + (f"-{cfg.variant}" if cfg.variant else "")
    return Path(cfg.runs) / cfg.experiment / cfg.host.name / leaf


def editor_of(cfg: TrainConfig) -> str:
    """Who made the edits: what the manifest of `store=` says if it is there (`imported` of other tools' edits), else who is asked to; then
    those of the stores beside it, as `rome+memit`."""
    names = [_named(cfg.store) or cfg.edits.editor, *map(_named, cfg.data.also)]
    return "+".join(filter(None, names))


def _named(store: str | None) -> str | None:
    """The editor of a store; one whose manifest is damaged is refused where it is opened."""
    if store:
        with suppress(OSError, ValueError, KeyError, TypeError):
            manifest = json.loads((Path(store) / "manifest.json").read_text(encoding="utf-8"))
            return Path(manifest["editor"]["name"]).name
    return None


def as_today(record: Mapping[str, Any]) -> dict[str, Any]:
    """The recorded settings of a run, by dotted name, as this version would have recorded them; last, those it does not know."""
    groups = sections(key for key, _ in settings(TrainConfig))
    found = {RENAMED.get(key, key): value for key, value in leaves(record, groups) if key not in groups}
    config = with_editor(TrainConfig, str(found.get("edits.editor", EditsConfig.editor)))
    known = {key: _recorded(field, found, key, BEFORE.get(key, attrgetter(key)(config))) for key, field in settings(config)}
    return known | {key: value for key, value in found.items() if key not in known}


def editor_as_today(editor: Mapping[str, Any]) -> dict[str, Any]:
    """The editor of a store's manifest with the settings its edits depend on; one that is not known as it is."""
    if not (kind := EDITORS.get(editor["name"])):
        return dict(editor)
    found = editor.get("settings", {})
    defaults = kind()
    own = {field.name: _recorded(field, found, field.name, getattr(defaults, field.name)) for field in own_settings(kind)}
    return {"name": editor["name"], "settings": own}


def _recorded(field: Field, found: Mapping[str, Any], key: str, default: Any) -> Any:
    value = found.get(key, default)
    if field.metadata["path"] and isinstance(value, str):
        return expanded(value)
    # A default may be written 1 where a composed config has 1.0.
    return float(value) if field.type in (float, float | None) and type(value) is int else value


def with_effect(record: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run that its results depend on, by dotted name."""
    return {key: value for key, value in as_today(record).items() if not {key, key.partition(".")[0]} & WITHOUT_EFFECT}


def differing(records: Collection[Mapping[str, Any]]) -> list[str]:
    """The settings, as of `as_today`, in which records differ. What some do not have is gone, and counts for nothing with them."""
    names = dict.fromkeys(name for record in records for name in record)
    values = {name: [record[name] for record in records if name in record] for name in names}
    return [name for name, found in values.items() if any(value != found[0] for value in found)]


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, str] | None:
    """The first setting in which two records differ, as text of each."""
    return next(((f"{name}: {before[name]!r}", f"{name}: {now[name]!r}") for name in differing([before, now])), None)


def edits_of(config: TrainConfig) -> str:
    """A key that runs on the same host and the same edits share."""
    return short_hash({key: value for key, value in to_dict(config).items() if key in OF_THE_EDITS})
