"""Facts × editor -> store, shard by shard; also a command: `python -m data.produce edits.layer=1`.

A killed run goes on at its next shard. A store that is already whole is opened and compared with what is asked.
"""

import dataclasses
import hashlib
import logging
import sys
from pathlib import Path
from typing import Any

from rich.progress import Progress

from data.editors import load_editor
from data.editors.score import score
from data.facts import EditRequest, FactSet, load_facts
from data.hosts import open_host
from data.pocket.text import key_text
from data.splits import draw_splits, plan_edits
from data.store import EditStore, StoreWriter
from data.texts import read_texts, rome_statistics, texts_sha256
from decoder.compose import compose
from decoder.config import TrainConfig
from decoder.edit import RankOneEdit
from decoder.errors import run_command
from decoder.host import Host
from decoder.paths import cache_root, cached, short_hash
from decoder.session import quiet

log = logging.getLogger(__name__)

SENTENCES = 20_000
SPEED_ONLY = ("batch_size", "shard_size")


def produce(cfg: TrainConfig, host: Host) -> EditStore:
    """Opens the store a config asks for, making it first if it is not there.

    Raises:
        ValueError: a store or shards in its place were made for something else; the differing field is named.
    """
    host.check_layer(cfg.edits.layer, "edits.layer")
    facts, requests, asked = _request(cfg, host)
    path = _path(cfg, host, asked)
    if (path / "manifest.json").exists():
        store = EditStore(path)
        store.check(asked)
        return store
    return _make(cfg, host, facts, requests, StoreWriter(path, asked, cfg.edits.shard_size))


def is_produced(cfg: TrainConfig, host: Host) -> bool:
    """Whether the store a config asks for is there."""
    return (_path(cfg, host, _request(cfg, host)[2]) / "manifest.json").exists()


def _request(cfg: TrainConfig, host: Host) -> tuple[FactSet, list[EditRequest], dict[str, Any]]:
    facts = load_facts(cfg.facts)
    requests = plan_edits(facts, draw_splits(facts, cfg.splits), cfg.edits)
    return facts, requests, request_manifest(cfg, host, facts, requests)


def _path(cfg: TrainConfig, host: Host, asked: dict[str, Any]) -> Path:
    if cfg.store:
        return Path(cfg.store).expanduser()
    return cached(cfg.cache_dir, "stores", f"{host.name}-{cfg.edits.editor}-e{cfg.edits.layer}", short_hash(asked))


def request_manifest(cfg: TrainConfig, host: Host, facts: FactSet, requests: list[EditRequest]) -> dict[str, Any]:
    """What a store must have been made from and with: all of its manifest that is known beforehand."""
    settings = {name: value for name, value in dataclasses.asdict(cfg.edits).items() if name not in (*SPEED_ONLY, "editor", "layer")}
    if cfg.edits.precision == "float32":
        del settings["precision"]  # stores made before there was a choice stay valid
    return {
        "host": {
            "id": host.name,
            "revision": host.revision,
            "dtype": str(host.dtype).removeprefix("torch."),
            "fingerprint": host.fingerprint,
        },
        "module": host.module_path(cfg.edits.layer),
        "layer": cfg.edits.layer,
        "base_sha256": host.base_sha256(cfg.edits.layer),
        "editor": {"name": cfg.edits.editor, "settings": settings},
        "keys": {"tokens": cfg.edits.key_tokens, "ridge": cfg.edits.ridge} | _keys_source(cfg),
        "facts": {"source": facts.source, "sha256": facts.sha256},
        "requests": {"count": len(requests), "sha256": short_hash([request.edit_id for request in requests])},
        "terminator_id": host.terminator_id,
        "seed": cfg.edits.seed,
    }


def _keys_source(cfg: TrainConfig) -> dict[str, Any]:
    """What keys were counted on: sentences about the facts, a text, or what somebody else counted."""
    source: dict[str, Any] = {"sentences": SENTENCES}
    if cfg.keys.text:
        source = {"text": texts_sha256(read_texts(cfg.keys, cfg.edits.key_tokens))}
    if cfg.keys.statistics:
        source["statistics"] = hashlib.sha256(Path(cfg.keys.statistics).expanduser().read_bytes()).hexdigest()
    return source


def prepare_editor(cfg: TrainConfig, host: Host, facts: FactSet) -> Any:
    """The editor of a config with its key statistics."""
    texts = read_texts(cfg.keys, cfg.edits.key_tokens) if cfg.keys.text else key_text(facts, cfg.edits.seed, SENTENCES)
    given = {"statistics": rome_statistics(cfg.keys.statistics, host.mlp_size(cfg.edits.layer))} if cfg.keys.statistics else {}
    return load_editor(cfg.edits.editor).prepare(host, cfg.edits, texts, cache_root(cfg.cache_dir), **given)


def _make(cfg: TrainConfig, host: Host, facts: FactSet, requests: list[EditRequest], writer: StoreWriter) -> EditStore:
    editor = prepare_editor(cfg, host, facts)
    size = cfg.edits.shard_size
    shards = [requests[start : start + size] for start in range(0, len(requests), size)]
    with Progress(transient=True) as progress:
        task = progress.add_task(f"{cfg.edits.editor} edits, layer {cfg.edits.layer}", total=len(requests))
        for index, shard in enumerate(shards):
            if writer.has_shard(index):
                progress.update(task, advance=len(shard))
                continue
            made = editor.edit(shard, lambda done: progress.update(task, advance=done))
            kept = [shard[i] for i in made.kept]
            scores = score(host, cfg.edits.layer, kept, made.edits, facts)
            writer.write_shard(index, columns(host, kept, made.edits, scores), made.skipped)
    for edit_id, reason in (skipped := writer.skipped(len(shards))):
        log.warning("skipped %s: %s", edit_id, reason)
    return writer.finish(len(shards), skipped)


def columns(host: Host, requests: list[EditRequest], edits: RankOneEdit, scores: dict[str, Any]) -> dict[str, Any]:
    """What a shard of the store holds of these edits."""
    columns: dict[str, Any] = {"edit_id": [r.edit_id for r in requests], "object": [r.object for r in requests]}
    for name in ("fact_id", "subject", "relation", "relation_name", "kind", "prompt", "object_true"):
        columns[name] = [getattr(r.fact, name) for r in requests]
    columns["object_ids"] = [host.object_ids(r.object) for r in requests]
    return columns | {"key": edits.key_BF, "value": edits.value_BD} | scores


@run_command
def main(argv: list[str] | None = None) -> None:
    cfg = compose(TrainConfig, "train", sys.argv[1:] if argv is None else argv, page="produce")
    quiet()
    store = produce(cfg, open_host(cfg))
    table = store.table()
    means = ", ".join(f"{name} {table[name].mean():.3f}" for name in ("efficacy", "paraphrase", "specificity"))
    print(f"{len(store)} edits, {int(table['success'].sum())} successful ({means})\n{store.path}")


if __name__ == "__main__":
    main()
