"""Making edits on Ray: shards of the store are mapped over actors that hold the host and its key statistics.

The shards, and the batches in them, are those that `data/produce/shards.py` makes in one process, and are kept as they are finished: an
actor that dies is started again and has lost the shard it was at.
"""

import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.produce.ray_cluster import Surroundings, get, resources
from decoder.config import TrainConfig
from decoder.utils.progress import progress

if TYPE_CHECKING:
    from data.store.store import EditStore
    from decoder.host import Host


def produce_on_ray(cfg: TrainConfig, here: Surroundings, tell: Callable[[str], None], room: int) -> Path | None:
    """Makes the store a config asks for, unless it is whole; returns its folder, or None where edits are streamed.

    Args:
        cfg: whose launcher says what an actor takes.
        here: what workers take over.
        tell: is given a line on the host and its edits.
        room: actors that work together, at most.

    Raises:
        ValueError: as `produce` does.
    """
    import ray

    def task(function: Callable[..., Any]) -> Any:
        return get(ray.remote(**resources(cfg.launcher))(function).remote(cfg, here))

    told, missing = task(_plan)
    tell(told)
    if missing:
        _map(cfg, here, missing, room)
    return task(_finish)


def produced_on_ray(cfg: TrainConfig) -> "EditStore":
    """The store a config asks for, made on a cluster that is connected for it."""
    from data.produce.ray_cluster import connected
    from data.store.store import EditStore

    with connected(cfg) as room:
        here = Surroundings.here(cfg.launcher, Path(__file__).parent)
        return EditStore(produce_on_ray(cfg, here, lambda line: None, room))


class Actor:
    """Opens the host and its key statistics once, then makes one shard after the other."""

    def __init__(self, cfg: TrainConfig, here: Surroundings) -> None:
        here.enter()
        from data.produce.shards import ShardMaker

        self.maker = ShardMaker(cfg, _host(cfg))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        for index in batch["item"]:
            self.maker.make(int(index))
        return batch


def _map(cfg: TrainConfig, here: Surroundings, missing: list[int], room: int) -> None:
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    actors = ray.data.ActorPoolStrategy(size=min(room, len(missing)), max_tasks_in_flight_per_actor=1)
    # A block a shard: what is mapped at a time, and done again when an actor dies.
    shards = ray.data.from_items(missing, override_num_blocks=len(missing))
    made = shards.map_batches(Actor, fn_constructor_args=(cfg, here), batch_size=1, compute=actors, **resources(cfg.launcher))
    with progress(f"shards of {cfg.edits.editor} edits, layer {', '.join(map(str, cfg.edits.layers))}", len(missing)) as advance:
        try:
            for _ in made.iter_rows():
                advance(1)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None


def _plan(cfg: TrainConfig, here: Surroundings) -> tuple[str, list[int]]:
    """In a worker: a line on host and edits, and the shards that are missing. Builds the host and counts its keys, for all."""
    here.enter()
    from data.produce.plan import described, prepare_editor
    from data.produce.shards import ShardMaker

    host = cache(lambda: _host(cfg))
    told = described(cfg, lambda _: host())
    # A host that could not be opened is opened once more, and says why.
    maker = ShardMaker(cfg, host())
    if cfg.data.streaming or maker.finished():
        return told, []
    prepare_editor(cfg, maker.host, maker.facts)
    return told, maker.missing()


def _finish(cfg: TrainConfig, here: Surroundings) -> Path | None:
    """In a worker: joins the shards. A store that is streamed is made by nobody here."""
    here.enter()
    from data.produce.shards import produce

    return None if cfg.data.streaming else produce(cfg, _host(cfg)).path


def _host(cfg: TrainConfig) -> "Host":
    from data.hosts import open_host
    from decoder.utils.terminal import quiet

    quiet()
    return open_host(cfg)
