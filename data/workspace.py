"""What the runs of one process share: the open host, the edits, and the baselines that are the same for every decoder of the edits."""

import json
import logging
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import data
import decoder
from data.datamodule import EditDataModule
from data.hosts import open_host
from data.produce.plan import described
from data.store.store import EditStore
from decoder.baselines.readers import Evidence
from decoder.baselines.score import BASELINES, OF_THE_RUN, score_baselines
from decoder.config import TrainConfig
from decoder.config.compose import to_dict
from decoder.config.identity import OF_THE_EDITS
from decoder.export.formats import SCORES_OF_BASELINES
from decoder.host import Host
from decoder.training.module import untrained_decoder
from decoder.utils.files import cached, short_hash
from decoder.utils.json_files import write_json
from decoder.utils.terminal import quiet

log = logging.getLogger(__name__)


class Workspace:
    """Keeps the last host, edits and baselines, and makes them anew when a run asks for others.

    One of each is kept: runs are ordered so that those on the same edits are neighbours, and a host may fill the memory.
    """

    def __init__(self) -> None:
        self._kept: dict[str, tuple[str, Any]] = {}

    def host(self, cfg: TrainConfig) -> Host:
        return self._keep("host", _key(cfg, "host", "facts", "cache_dir") + cfg.trainer.accelerator, lambda: open_host(cfg))

    def edits(self, cfg: TrainConfig) -> EditDataModule:
        """The edits of a config, made if they are not there, with their splits drawn."""
        host, key = self.host(cfg), self._edits_key(cfg)

        def make() -> EditDataModule:
            edits = EditDataModule(cfg, host)
            edits.prepare_data()
            edits.setup()
            return edits

        edits = self._keep("edits", key, make)
        # The order of batches follows from the run's own seed.
        edits.cfg = cfg
        return edits

    def baselines(self, cfg: TrainConfig) -> dict[str, Any]:
        """Scores of every baseline."""
        edits = self.edits(cfg)
        key = f"{self._edits_key(cfg)} {cfg.decoder.beams} {cfg.decoder.max_object_tokens}"
        score = partial(baselines, cfg, edits)
        shared = self._keep("baselines", key, lambda: kept_baselines(cfg, edits, BASELINES.keys() - OF_THE_RUN, score))
        scores = shared | score(OF_THE_RUN)
        return {name: scores[name] for name in BASELINES}

    def describe(self, cfg: TrainConfig) -> str:
        """`described`, on the host that is kept."""
        return described(cfg, self.host)

    def _edits_key(self, cfg: TrainConfig) -> str:
        return _key(cfg, *OF_THE_EDITS, "data") + cfg.trainer.accelerator

    def _keep(self, name: str, key: str, make: Callable[[], Any]) -> Any:
        found = self._kept.get(name)
        if found is None or found[0] != key:
            # What was made from it goes too, before the new one takes memory.
            names = ("host", "edits", "baselines")
            for later in names[names.index(name) :]:
                self._kept.pop(later, None)
            self._kept[name] = (key, make())
        return self._kept[name][1]


@cache
def own_workspace() -> Workspace:
    """The workspace of this process, where it does several runs."""
    quiet()
    return Workspace()


def _key(cfg: TrainConfig, *names: str) -> str:
    config = to_dict(cfg)
    return json.dumps([config[name] for name in names], sort_keys=True)


def kept_baselines(
    cfg: TrainConfig, edits: EditDataModule, names: Collection[str], score: Callable[[Collection[str]], dict[str, Any]]
) -> dict[str, Any]:
    """What a run on the same edits, splits and program left in the cache, else what `score` finds, which is left there.

    A file that is damaged is made anew; where none can be written, nothing is kept. Scores on a stream are not kept: its manifest does not
    say what its files hold.
    """
    if not isinstance(edits.store, EditStore):
        return score(names)
    host = edits.host
    made_of = [edits.store.fingerprint, edits.rows, cfg.decoder.beams, cfg.decoder.max_object_tokens, host.device.type, _program()]
    file = cached(cfg.cache_dir, "baselines", f"{host.name}-e{'-'.join(map(str, cfg.edits.layers))}", short_hash(made_of)) / "scores.json"
    entries = {"base_known", *(split for split in edits.test_splits if "/" not in split)}
    with suppress(OSError, ValueError):
        found = SCORES_OF_BASELINES.validate_json(file.read_bytes(), strict=True)
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


def baselines(cfg: TrainConfig, edits: EditDataModule, names: Collection[str]) -> dict[str, Any]:
    """Scores of the baselines of these names, on all test splits."""
    evidence = Evidence(
        host=edits.host,
        edited_layer=cfg.edits.layers[-1],
        train=edits.factors("train"),
        validation=edits.factors("val/id"),
        start=untrained_decoder(cfg, edits.host),
        subjects=edits.training_subjects,
        templates=edits.training_templates,
        **cfg.decoder.search,
    )
    return score_baselines(evidence, {split: edits.factors(split) for split in edits.test_splits if "/" not in split}, names)
