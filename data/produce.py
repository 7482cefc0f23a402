"""Facts × editor -> store, shard by shard; also a command: `python -m data.produce edits.layer=1`.

A killed run goes on at its next shard. A store that is already whole is opened and compared with what is asked. Several machines share
the shards with `shard=1/4` to `shard=4/4`; `shard=merge` then joins what they made.
"""

import logging
import re
import sys
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.progress import Progress

from data.editors import load_editor
from data.editors.score import score
from data.facts import EditRequest, FactSet
from data.hosts import open_host
from data.keys import second_moments
from data.pocket.text import key_text
from data.requests import SENTENCES, imported, requested, store_path
from data.store import EditStore, partial_folder, remove_partial
from data.store_writer import StoreWriter
from data.stream import EditStream, write_parquet
from data.texts import read_texts, rome_statistics
from decoder.commands import ProduceConfig
from decoder.compose import compose
from decoder.config import TrainConfig
from decoder.edit import RankOneEdit
from decoder.errors import UserError, run_command
from decoder.host import Host
from decoder.paths import alone, cache_root
from decoder.session import quiet

log = logging.getLogger(__name__)

MERGE = "merge"


def produce(cfg: TrainConfig, host: Host) -> EditStore:
    """Opens the store a config asks for, making it first if it is not there. Of several processes that ask at once one makes it.

    Raises:
        ValueError: a store or shards in its place were made for something else; the differing field is named.
    """
    host.check_layer(cfg.edits.layer, "edits.layer")
    if store := imported(cfg, host):
        return store
    maker = ShardMaker(cfg, host)
    if store := maker.finished():
        return store
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
        self.host.check_layer(cfg.edits.layer, "edits.layer")
        self.facts, self.requests, self.asked = requested(cfg, self.host)
        self.path = store_path(cfg, self.host, self.asked)

    @property
    def shards(self) -> int:
        return -(-len(self.requests) // self.cfg.edits.shard_size)

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

    def make(self, index: int, advance: Callable[[int], None] = lambda edits: None) -> None:
        """Makes one shard; if another process was first, its shard stays. `advance` is told of finished edits."""
        size = self.cfg.edits.shard_size
        shard = self.requests[index * size : (index + 1) * size]
        made = self._editor.edit(shard, advance)
        kept = [shard[i] for i in made.kept]
        scores = score(self.host, self.cfg.edits.layer, kept, made.edits, self.facts)
        self._writer.write_shard(index, columns(self.host, kept, made.edits, scores), made.skipped)

    def make_all(self, indices: Iterable[int]) -> None:
        """Makes these shards with a progress bar over all of the store."""
        size, indices = self.cfg.edits.shard_size, list(indices)
        with Progress(transient=True) as progress:
            done = len(self.requests) - sum(len(self.requests[i * size : (i + 1) * size]) for i in indices)
            label = f"{self.cfg.edits.editor} edits, layer {self.cfg.edits.layer}"
            task = progress.add_task(label, total=len(self.requests), completed=done)
            for index in indices:
                self.make(index, lambda edits: progress.update(task, advance=edits))

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
        self._writer.note_parts(of)
        indices = range(part - 1, self.shards, of)
        self.make_all(index for index in self.missing() if index in indices)
        return list(indices)

    @cached_property
    def _writer(self) -> StoreWriter:
        return StoreWriter(self.path, self.asked, self.cfg.edits.shard_size)

    @cached_property
    def _editor(self) -> Any:
        return prepare_editor(self.cfg, self.host, self.facts)


def read_part(text: str) -> tuple[int, int]:
    """Part and count of `3/16`.

    Raises:
        UserError: it is neither that nor in range.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    part, of = map(int, found.groups()) if found else (0, 0)
    if not 1 <= part <= of:
        raise UserError(f"shard={text}: expected PART/PARTS from 1/1 up, as 3/16, or `merge` to join the parts")
    return part, of


def open_stream(cfg: TrainConfig, host: Host) -> EditStream:
    """The Parquet store that `store` names, checked against what a config asks for.

    Raises:
        ValueError: none is named or there, or it was made for something else.
    """
    if not cfg.store:
        raise ValueError(
            "data.streaming=true: store= is missing. Give a folder of Parquet files (python -m data.produce parquet=FOLDER "
            "writes one), or a data set on the Hub as USER/NAME"
        )
    stream = EditStream(cfg.store)
    stream.check(requested(cfg, host)[2])
    return stream


def prepare_editor(cfg: TrainConfig, host: Host, facts: FactSet) -> Any:
    """The editor of a config with its key statistics."""
    texts, cache = key_texts(cfg, facts), cache_root(cfg.cache_dir)
    given = {"statistics": rome_statistics(cfg.keys.statistics, host.mlp_size(cfg.edits.layer))} if cfg.keys.statistics else {}
    if texts and not given and cfg.edits.ridge != "identity":
        # The editor finds its own layer's in the cache then.
        second_moments(host, [cfg.edits.layer, *cfg.keys.layers], texts, cfg.edits.key_tokens, cache, cfg.keys.memory_budget)
    return load_editor(cfg.edits.editor).prepare(host, cfg.edits, texts, cache, **given)


def key_texts(cfg: TrainConfig, facts: FactSet) -> list[str]:
    """The text for key statistics and contexts: the one that is given, or the facts told."""
    return read_texts(cfg.keys, cfg.edits.key_tokens) if cfg.keys.text else key_text(facts, cfg.edits.seed, SENTENCES)


def columns(host: Host, requests: list[EditRequest], edits: RankOneEdit, scores: dict[str, Any]) -> dict[str, Any]:
    """What a shard of the store holds of these edits."""
    columns: dict[str, Any] = {"edit_id": [r.edit_id for r in requests], "object": [r.object for r in requests]}
    for name in ("fact_id", "subject", "relation", "relation_name", "kind", "prompt", "object_true"):
        columns[name] = [getattr(r.fact, name) for r in requests]
    columns["object_ids"] = [host.object_ids(r.object) for r in requests]
    return columns | {"key": edits.key_BF, "value": edits.value_BD} | scores


@run_command
def main(argv: list[str] | None = None) -> None:
    cfg = compose(ProduceConfig, "train", sys.argv[1:] if argv is None else argv, page="produce")
    part = read_part(cfg.shard) if cfg.shard not in (None, MERGE) else None
    if part and cfg.launcher.name == "ray":
        raise UserError(f"shard={cfg.shard} launcher=ray: Ray shares the shards itself; give one of the two")
    if part and cfg.parquet:
        raise UserError(f"shard={cfg.shard} parquet={cfg.parquet}: a part is no store yet; give parquet= with shard=merge")
    quiet()
    if part:
        _make_part(ShardMaker(cfg), *part)
        return
    if cfg.shard == MERGE:
        maker = ShardMaker(cfg)
        store = maker.finished() or maker.join()
    elif cfg.launcher.name == "ray":
        from data.produce_on_ray import produced_on_ray

        store = produced_on_ray(cfg)
    else:
        store = produce(cfg, open_host(cfg))
    if cfg.parquet:
        write_parquet(store, Path(cfg.parquet).expanduser())
    table = store.table()
    means = ", ".join(f"{name} {table[name].mean():.3f}" for name in ("efficacy", "paraphrase", "specificity"))
    print(f"{len(store)} edits, {int(table['success'].sum())} successful ({means})\n{store.path}")


def _make_part(maker: ShardMaker, part: int, of: int) -> None:
    if maker.finished():
        print(f"the store is whole already\n{maker.path}")
        return
    made, left = maker.make_part(part, of), maker.missing()
    print(f"part {part}/{of}: {len(made)} of {maker.shards} shards are there\n{partial_folder(maker.path)}")
    print(f"{len(left)} shards of other parts are missing" if left else "no shard is missing: join them with shard=merge")


if __name__ == "__main__":
    main()
