"""What a config asks a store to hold, and what a store must have been made from and with."""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data.editors import load_editor
from data.facts.fact import EditRequest, FactSet
from data.facts.load import load_facts
from data.facts.splits import draw_splits, plan_edits
from data.hosts import is_host_there
from data.keys.moments import second_moments
from data.keys.text import SENTENCES, key_texts, read_texts, rome_statistics, texts_sha256
from data.store.manifest import IMPORTED, read_manifest
from data.store.store import EditStore
from decoder.config import TrainConfig
from decoder.config.identity import editor_of
from decoder.host import Host
from decoder.utils.files import cache_root, cached, short_hash

SPEED_ONLY = ("batch_size", "shard_size")


def described(cfg: TrainConfig, opened: Callable[[TrainConfig], Host]) -> str:
    """One line: whether the host and its edits are there or to be made. A host or layer that is refused says so here first."""
    try:
        there = "there" if is_host_there(cfg) else "trained first"
        host = opened(cfg)
        made = "there" if is_produced(cfg, host) else "to be made"
    except (ValueError, OSError, RuntimeError) as error:
        return f"host {cfg.host.name}, layer {cfg.edits.layer}: {error}"
    return f"host {host.name}, {host.layers} layers: {there}; {editor_of(cfg)} edits of layer {cfg.edits.layer}: {made}"


def is_produced(cfg: TrainConfig, host: Host) -> bool:
    """Whether the store a config asks for is there; of a stream that is known when it is opened."""
    return (
        cfg.data.streaming or imported(cfg, host) is not None or (store_path(cfg, host, requested(cfg, host)[2]) / "manifest.json").exists()
    )


def imported(cfg: TrainConfig, host: Host) -> EditStore | None:
    """The store at `store=` if other tools made its edits: they are taken as they are, and nothing is made.

    Raises:
        ValueError: they were made on another host or layer.
    """
    path = Path(cfg.store or "").expanduser()
    if not cfg.store or not (path / "manifest.json").exists() or read_manifest(path)["editor"]["name"] != IMPORTED:
        return None
    store = EditStore(path)
    store.check({"layer": cfg.edits.layer, "host": store.manifest["host"] | {"fingerprint": host.fingerprint}})
    return store


def requested(cfg: TrainConfig, host: Host) -> tuple[FactSet, list[EditRequest], dict[str, Any]]:
    """The facts, the edits to make, and what the manifest of their store says."""
    facts = load_facts(cfg.facts)
    requests = plan_edits(facts, draw_splits(facts, cfg.splits), cfg.edits)
    return facts, requests, request_manifest(cfg, host, facts, requests)


def store_path(cfg: TrainConfig, host: Host, asked: dict[str, Any]) -> Path:
    """Where the store lies or will lie: as named, or in the cache."""
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
    texts, cache = key_texts(cfg, facts), cache_root(cfg.cache_dir)
    given = {"statistics": rome_statistics(cfg.keys.statistics, host.mlp_size(cfg.edits.layer))} if cfg.keys.statistics else {}
    if texts and not given and cfg.edits.ridge != "identity":
        # The editor finds its own layer's in the cache then.
        second_moments(host, [cfg.edits.layer, *cfg.keys.layers], texts, cfg.edits.key_tokens, cache, cfg.keys.memory_budget)
    return load_editor(cfg.edits.editor).prepare(host, cfg.edits, texts, cache, **given)
