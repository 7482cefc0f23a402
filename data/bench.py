"""What the runs of one process share: the open host, the edits, and the baselines that are the same for every decoder of the edits."""

import json
from collections.abc import Callable
from functools import cache, partial
from typing import Any

from data.baseline_cache import kept_baselines
from data.datamodule import EditDataModule
from data.hosts import is_host_there, open_host
from data.produce.plan import is_produced
from decoder.baselines.score import BASELINES, OF_THE_RUN
from decoder.config import TrainConfig
from decoder.config.compose import to_dict
from decoder.config.identity import OF_THE_EDITS, editor_of
from decoder.host import Host
from decoder.model import ObjectDecoder
from decoder.utils.terminal import quiet
from launcher.summary import baselines


class Bench:
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

    def baselines(self, cfg: TrainConfig, start: ObjectDecoder) -> dict[str, Any]:
        """Scores of every baseline; `start` is the decoder before training."""
        host, edits = self.host(cfg), self.edits(cfg)
        key = f"{self._edits_key(cfg)} {cfg.decoder.beams} {cfg.decoder.max_object_tokens}"
        score = partial(baselines, cfg, host, edits, start)
        shared = self._keep("baselines", key, lambda: kept_baselines(cfg, host, edits, BASELINES.keys() - OF_THE_RUN, score))
        scores = shared | score(OF_THE_RUN)
        return {name: scores[name] for name in BASELINES}

    def describe(self, cfg: TrainConfig) -> str:
        """One line: whether the host and its edits are there or to be made. A host or layer that is refused says so here first."""
        try:
            there = "there" if is_host_there(cfg) else "trained first"
            host = self.host(cfg)
            made = "there" if is_produced(cfg, host) else "to be made"
        except (ValueError, OSError, RuntimeError) as error:
            return f"host {cfg.host.name}, layer {cfg.edits.layer}: {error}"
        return f"host {host.name}, {host.layers} layers: {there}; {editor_of(cfg)} edits of layer {cfg.edits.layer}: {made}"

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
def own_bench() -> Bench:
    """The bench of this process, where it does several runs."""
    quiet()
    return Bench()


def _key(cfg: TrainConfig, *names: str) -> str:
    config = to_dict(cfg)
    return json.dumps([config[name] for name in names], sort_keys=True)
