"""Facts × editor -> store, shard by shard.

A killed run goes on at its next shard. A store that is already whole is opened and compared with what is asked. Any number of machines
may share the shards.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any

from data.facts.fact import EditRequest
from data.facts.together import host_id
from data.hosts import open_host
from data.keys.text import key_texts
from data.produce.cost import measured
from data.produce.further import further_scores
from data.produce.perplexity import neutral_texts, perplexity, perplexity_made
from data.produce.plan import imported, prepare_editor, requested, store_path
from data.produce.score import score_made
from data.store.store import EditStore, remove_partial, vector_columns
from data.store.writer import StoreWriter, refuse
from decoder.config import TrainConfig
from decoder.edit import LayerEdits, LowRankEdit, RankOneEdit
from decoder.host import Host
from decoder.utils.errors import UserError
from decoder.utils.files import alone
from decoder.utils.progress import progress

LOOKED_AT = 500  # tokens of text that edits are judged by which may break the host
OF_A_FACT = ("fact_id", "subject", "relation", "relation_name", "kind", "prompt", "object_true")

log = logging.getLogger(__name__)


def produce(cfg: TrainConfig, host: Host) -> EditStore:
    """Opens the store a config asks for, making it first if it is not there. Of several processes that ask at once one makes it.

    Raises:
        ValueError: a store or shards in its place were made for something else; the differing settings are named.
    """
    if store := imported(cfg, host):
        return store
    maker = ShardMaker(cfg, host)
    if store := maker.finished():
        return store
    try:
        # Where nothing will be made no lock is: nobody could take one away again that others may wait for.
        refuse(maker.path, maker.asked, cfg.edits.shard_size)
    except (ValueError, UserError):
        # What lies there may be this store, moved there since.
        if store := maker.finished():
            return store
        raise
    with alone(maker.path):
        if store := maker.finished():
            return store
        maker.make_all(maker.missing())
        return maker.join()


class ShardMaker:
    """Makes single shards of the store a config asks for. Any number of processes and machines may share the shards of a store.

    A shard depends on the config and its index alone: whoever makes it, and in whatever order, gets the same edits.

    Args:
        host: is opened if it is not given, so that another process needs the config only.

    Raises:
        ValueError: the host has no such layer.
    """

    def __init__(self, cfg: TrainConfig, host: Host | None = None) -> None:
        self.cfg, self.host = cfg, host or open_host(cfg)
        for layer in cfg.edits.layers:
            self.host.check_layer(layer, "edits.layer")
        self.facts, self.hosts, self.asked = requested(cfg, self.host)
        self.path = store_path(cfg, self.host, self.asked)

    @property
    def shards(self) -> int:
        return -(-len(self.hosts) // self.cfg.edits.shard_size)

    def finished(self) -> EditStore | None:
        """The store, if it is whole; raises ValueError if it was made for something else."""
        if not (self.path / "manifest.json").exists():
            return None
        store = EditStore(self.path)
        store.check(self.asked)
        remove_partial(self.path)
        return store

    def missing(self) -> list[int]:
        """Shards that nobody has made yet."""
        return [index for index in range(self.shards) if not self._writer.has_shard(index)]

    def left(self) -> int:
        """Edits of the shards that nobody has made yet."""
        return 0 if self.finished() else sum(len(self._shard(index)) for index in self.missing())

    def make(self, index: int, advance: Callable[[int], None] = lambda edits: None) -> None:
        """Makes one shard; if another process was first, its shard stays. `advance` is told of facts that are planted."""
        self._prepare()
        self._writer.begin()
        shard, editor = self._shard(index), self._editor
        with measured(self.host.device) as cost:
            if self.cfg.edits.facts_per_host == 1:
                made = editor.edit([request for (request,) in shard], advance)
            else:
                made = editor.edit_together(shard, advance)
        kept = [shard[i] for i in made.kept]
        layers = self.cfg.edits.layers
        scores = score_made(self.host, layers, kept, made, self.facts)
        if asked := self.cfg.edits.scores:
            scores |= further_scores(self.host, layers, kept, made, asked, cost)
        if times := self.cfg.edits.broken_from:
            found_B = perplexity_made(self.host, self._texts, made, layers)
            scores |= {"perplexity": found_B.tolist(), "broken": (found_B > times * perplexity(self.host, self._texts)).tolist()}
        matrices = {host_id(kept[place]): weight_DF for place, weight_DF in made.matrices.items()}
        self._writer.write_shard(index, columns(self.host, layers, kept, made.edits, scores), made.skipped, matrices)

    def make_all(self, indices: Iterable[int]) -> None:
        """Makes these shards showing how far all of the store is."""
        indices = list(indices)
        each = self.cfg.edits.facts_per_host
        done = len(self.hosts) - sum(len(self._shard(index)) for index in indices)
        layers = ", ".join(map(str, self.cfg.edits.layers))
        with progress(f"{self.cfg.edits.editor} edits, layer {layers}", each * len(self.hosts), each * done) as advance:
            for index in indices:
                self.make(index, advance)

    def join(self) -> EditStore:
        """The store, out of its shards.

        Raises:
            ValueError: some are missing; names them, and the part of the store they belong to if it was made in parts.
        """
        if missing := self.missing():
            shown = ", ".join(map(str, missing))
            parts = sorted({index % (of := self._writer.parts) + 1 for index in missing}) if self._writer.parts else []
            cure = " and ".join(f"shard={part}/{of}" for part in parts) or "python -m data.produce without shard="
            raise ValueError(f"store {self.path}: shards {shown} of {self.shards} are missing (counted from 0). Make them with {cure}")
        for edit_id, reason in (skipped := self._writer.skipped(self.shards)):
            log.warning("skipped %s: %s", edit_id, reason)
        return self._writer.finish(self.shards, skipped)

    def make_part(self, part: int, of: int) -> list[int]:
        """Makes what is missing of every `of`-th shard, from the `part`-th on; returns all shards of that part."""
        indices = range(part - 1, self.shards, of)
        if missing := [index for index in self.missing() if index in indices]:
            self._prepare()
        self._writer.note_parts(of)
        self.make_all(missing)
        return list(indices)

    def _shard(self, index: int) -> list[list[EditRequest]]:
        size = self.cfg.edits.shard_size
        return self.hosts[index * size : (index + 1) * size]

    def _prepare(self) -> None:
        """What may be refused goes before what is left on disk, and what takes long before the clock runs."""
        if self.cfg.edits.broken_from:
            _ = self._texts
        _ = self._editor

    @cached_property
    def _writer(self) -> StoreWriter:
        return StoreWriter(self.path, self.asked, self.cfg.edits.shard_size)

    @cached_property
    def _texts(self) -> list[str]:
        return neutral_texts(self.host, key_texts(self.cfg, self.facts, self.host), (), LOOKED_AT)

    @cached_property
    def _editor(self) -> Any:
        return prepare_editor(self.cfg, self.host, self.facts)


def columns(
    host: Host, layers: Sequence[int], hosts: list[list[EditRequest]], edits: RankOneEdit | LowRankEdit | LayerEdits, scores: dict[str, Any]
) -> dict[str, Any]:
    """What a shard of the store holds of these edited hosts: of several facts the first, and all of them in `facts`."""
    firsts = [requests[0] for requests in hosts]
    columns: dict[str, Any] = {"edit_id": [host_id(requests) for requests in hosts], "object": [r.object for r in firsts]}
    for name in OF_A_FACT:
        columns[name] = [getattr(r.fact, name) for r in firsts]
    columns["object_ids"] = [host.object_ids(r.object) for r in firsts]
    for (key, value), own in zip(vector_columns(layers).values(), LayerEdits.of(edits, layers).by_layer.values(), strict=True):
        is_low_rank = isinstance(own, LowRankEdit)
        columns[key], columns[value] = (own.key_BRF.flatten(1), own.value_BRD.flatten(1)) if is_low_rank else (own.key_BF, own.value_BD)
    columns |= scores
    if facts := columns.get("facts"):
        columns["facts"] = [
            [_told(host, request) | found for request, found in zip(*together, strict=True)] for together in zip(hosts, facts, strict=True)
        ]
    return columns


def _told(host: Host, request: EditRequest) -> dict[str, Any]:
    told = {name: getattr(request.fact, name) for name in OF_A_FACT}
    return told | {"edit_id": request.edit_id, "object": request.object, "object_ids": host.object_ids(request.object)}
