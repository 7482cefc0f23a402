"""What tells the runs of a grid apart that no other part of a run folder's path shows."""

import re
from dataclasses import replace
from functools import reduce
from itertools import product
from typing import Any

from decoder.config import TrainConfig
from decoder.config.compose import TRAIN_KEYS
from decoder.config.identity import run_folder
from decoder.config.options import typed
from decoder.config.schema import RENAMED
from decoder.utils.files import short_hash

IN_THE_FOLDER = {"decoder.layer", "edits.layer", "edits.editor", "seed", "host", "host.name", "experiment", "runs", "variant"}
LONGEST = 60


def variant_of(choice: dict[str, str], config: TrainConfig, own: TrainConfig) -> str | None:
    """The chosen settings that the folder's path does not show, where they are not the config's own.

    A folder that is there keeps its name: a setting may have been called otherwise, or have been the only one that ended as it does.
    """
    named = {
        key: _value(config, key, text)
        for key, text in choice.items()
        if key not in IN_THE_FOLDER and _setting(config, key) != _setting(own, key)
    }
    former = {key: [old.rpartition(".")[2] for old, new in RENAMED.items() if new == key] for key in named}
    names = [dict.fromkeys((_short_key(key), key.rpartition(".")[2], key, *former[key])) for key in named]
    variants = [_as_name([f"{name}={value}" for name, value in zip(chosen, named.values(), strict=True)]) for chosen in product(*names)]
    return next((variant for variant in variants if run_folder(replace(config, variant=variant)).is_dir()), variants[0]) or None


def _setting(config: TrainConfig, key: str) -> Any:
    """Its value; None of another editor's setting."""
    return reduce(lambda group, name: getattr(group, name, None), key.split("."), config)


def _as_name(named: list[str]) -> str:
    text = re.sub(r"[^A-Za-z0-9.=_+-]+", "_", "-".join(named))
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}-{short_hash(named)[:6]}"


def _short_key(key: str) -> str:
    """The last part of a key, if no other setting ends in it."""
    last = key.rpartition(".")[2]
    return last if sum(known.rpartition(".")[2] == last for known in TRAIN_KEYS) == 1 else key


def _value(config: TrainConfig, key: str, text: str) -> str:
    """A setting as it is always written, however it was typed; of a group, the file that was chosen."""
    if key not in TRAIN_KEYS:
        return text
    value = _setting(config, key)
    return typed(int(value) if isinstance(value, float) and value.is_integer() else value)
