"""Scores of the baselines that no decoder has a part in, kept in the cache for later runs on the same edits."""

import logging
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import data
import decoder
from data.datamodule import EditDataModule
from data.store.store import EditStore
from decoder.config import TrainConfig
from decoder.export.formats import BASELINES
from decoder.host import Host
from decoder.utils.files import cached, short_hash
from decoder.utils.json_files import write_json

log = logging.getLogger(__name__)


def kept_baselines(
    cfg: TrainConfig, host: Host, edits: EditDataModule, names: Collection[str], score: Callable[[Collection[str]], dict[str, Any]]
) -> dict[str, Any]:
    """What a run on the same edits, splits and program left in the cache, else what `score` finds, which is left there.

    A file that is damaged is made anew; where none can be written, nothing is kept. Scores on a stream are not kept: its manifest does not
    say what its files hold.
    """
    if not isinstance(edits.store, EditStore):
        return score(names)
    made_of = [edits.store.fingerprint, edits.rows, cfg.decoder.beams, cfg.decoder.max_object_tokens, host.device.type, _program()]
    file = cached(cfg.cache_dir, "baselines", f"{host.name}-e{cfg.edits.layer}", short_hash(made_of)) / "scores.json"
    entries = {"base_known", *(split for split in edits.test_splits if "/" not in split)}
    with suppress(OSError, ValueError):
        found = BASELINES.validate_json(file.read_bytes(), strict=True)
        if found.keys() == set(names) and all(scores.keys() == entries for scores in found.values()):
            return found
    scores = score(names)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, scores)
    except OSError as error:
        log.warning("baselines are not kept in %s: %s", file, error)
    return scores


@cache
def _program() -> str:
    """What scores follow from beside the edits: this program, and the libraries it computes with."""
    folders = [Path(package.__file__).parent for package in (decoder, data)]
    sources = [file for folder in folders for file in sorted(folder.rglob("*.py"))]
    return short_hash([*map(version, ("torch", "transformers")), *(file.read_text(encoding="utf-8") for file in sources)])
