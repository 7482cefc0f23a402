"""Which settings make a run what it is: its folder, its edits, and what its results depend on."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from decoder.config import TrainConfig
from decoder.config.compose import to_dict
from decoder.utils.files import short_hash

WITHOUT_EFFECT = {"runs", "cache_dir", "resume", "wandb", "launcher", "grid", "variant"}
"""Settings that change where results go and what is shown, not the results."""
OF_THE_EDITS = ("host", "cache_dir", "store", "facts", "keys", "edits", "splits")
"""Settings that say which edits are made; runs that share them share their edits."""


def run_folder(cfg: TrainConfig) -> Path:
    """Folder of one run: experiment, host, editor (`editor_of`), edited and trained layers, seed, and the variant if there is one."""
    trained = "-".join(str(layer) for layer in trained_layers(cfg))
    leaf = f"{editor_of(cfg)}-e{cfg.edits.layer}-t{trained}-s{cfg.seed}" + (f"-{cfg.variant}" if cfg.variant else "")
    return Path(cfg.runs) / cfg.experiment / cfg.host.name / leaf


def editor_of(cfg: TrainConfig) -> str:
    """Who made the edits: what the manifest of `store=` says if it is there (`imported` of other tools' edits), else who is asked to."""
    if cfg.store:
        # A manifest that is damaged is refused where the store is opened.
        with suppress(OSError, ValueError, KeyError, TypeError):
            manifest = json.loads((Path(cfg.store).expanduser() / "manifest.json").read_text(encoding="utf-8"))
            return Path(manifest["editor"]["name"]).name or cfg.edits.editor
    return cfg.edits.editor


def trained_layers(cfg: TrainConfig) -> list[int]:
    layer = cfg.decoder.layer
    return list(layer) if isinstance(layer, (list, tuple)) else [layer]


def with_effect(config: dict[str, Any]) -> dict[str, Any]:
    """The settings of a resolved config that its results depend on."""
    kept = {key: value for key, value in config.items() if key not in WITHOUT_EFFECT}
    return kept | {"trainer": {key: value for key, value in config.get("trainer", {}).items() if key != "progress"}}


def edits_of(config: TrainConfig) -> str:
    """A key that runs on the same host and the same edits share."""
    return short_hash({key: value for key, value in to_dict(config).items() if key in OF_THE_EDITS})
