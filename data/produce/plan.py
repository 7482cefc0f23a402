"""What a config asks a store to hold, and what a store must have been made from and with."""

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from data.editors import Editor, load_editor
from data.facts.fact import EditRequest, FactSet
from data.facts.load import load_facts
from data.facts.splits import SplitPlan, check_planned, draw_splits, plan_edits
from data.facts.together import grouped
from data.hosts import is_host_there
from data.keys.cache import KeyStatistics
from data.keys.moments import second_moments
from data.keys.sampled import SELF, context_texts, made_with
from data.keys.text import SENTENCES, key_texts, read_texts, rome_statistics, texts_sha256
from data.store.manifest import IMPORTED, layers_of, read_manifest
from data.store.store import EditStore, made_before
from decoder.config import TrainConfig
from decoder.config.editors import EDITORS, CountedConfig, EditsConfig, FineTuneConfig, own_settings
from decoder.config.identity import editor_as_today, editor_of
from decoder.config.options import one_or_list
from decoder.host import Host
from decoder.utils.files import cache_root, cached, short_hash

log = logging.getLogger(__name__)


def described(cfg: TrainConfig, opened: Callable[[TrainConfig], Host]) -> str:
    """One line: whether the host and its edits are there or to be made. A host or layer that is refused says so here first."""
    edited = ", ".join(map(str, cfg.edits.layers))
    try:
        there = "there" if is_host_there(cfg) else "trained first"
        host = opened(cfg)
        made = "there" if is_produced(cfg, host) else "to be made"
    except (ValueError, OSError, RuntimeError) as error:
        return f"host {cfg.host.name}, layer {edited}: {error}"
    return f"host {host.name}, {host.layers} layers: {there}; {editor_of(cfg)} edits of layer {edited}: {made}"


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
    path = Path(cfg.store or "")
    if not cfg.store or not (path / "manifest.json").exists() or read_manifest(path)["editor"]["name"] != IMPORTED:
        return None
    store = EditStore(path)
    asked = cfg.edits.layers
    layer = {"layer" if len(asked) == 1 else "layers": one_or_list(asked)}
    store.check({"host": store.manifest["host"] | {"fingerprint": host.fingerprint}} | layer)
    return store


def requested(cfg: TrainConfig, host: Host) -> tuple[FactSet, list[list[EditRequest]], dict[str, Any]]:
    """The facts, what to plant in each edited host, and what the manifest of their store says.

    Raises:
        ValueError: the facts fill no host, or a host has no room for so many.
    """
    facts, _, hosts = planned(cfg)
    _check_room(cfg, host)
    return facts, hosts, request_manifest(cfg, host, facts, [request for together in hosts for request in together])


def planned(cfg: TrainConfig) -> tuple[FactSet, SplitPlan, list[list[EditRequest]]]:
    """The facts, the draw of their splits, and what to plant in each edited host.

    Raises:
        ValueError: no edit is asked for, or the facts fill no host.
    """
    facts, count = load_facts(cfg.facts), cfg.edits.facts_per_host
    plan = draw_splits(facts, cfg.splits)
    requests = plan_edits(facts, plan, cfg.splits, cfg.edits.seed, cfg.edits.objects)
    hosts = grouped(requests, plan, count, cfg.edits.seed)
    if not hosts:
        raise ValueError(f"edits.facts_per_host={count}: no split has so many facts of different subjects. Ask for fewer")
    return facts, plan, hosts


def refuse_too_few(cfg: TrainConfig) -> None:
    """Raises ValueError if a training run asks for fewer edits than it takes: before what may take days, and not after it."""
    _, plan, hosts = planned(cfg)
    check_planned(plan, [request for together in hosts for request in together], cfg.splits)


def _check_room(cfg: TrainConfig, host: Host) -> None:
    """Raises ValueError if no edit can hold as many facts as each host is to have."""
    count, layers = cfg.edits.facts_per_host, cfg.edits.layers
    if count > (width := min(map(host.mlp_size, layers))):
        raise ValueError(
            f"edits.facts_per_host={count}: W_V of {host.name} takes {width} inputs, so keys of more facts than that depend on each other. "
            "Ask for fewer"
        )
    taken = count * sum(host.mlp_size(layer) + host.hidden_size for layer in layers) * torch.float32.itemsize
    if taken > host.memory_budget:
        raise ValueError(
            f"edits.facts_per_host={count}: one such host takes {taken / 2**30:.1f} GiB, swap.memory_budget is "
            f"{host.memory_budget / 2**30:.1f}. Ask for fewer, or raise it"
        )


def store_path(cfg: TrainConfig, host: Host, asked: dict[str, Any]) -> Path:
    """Where the store lies or will lie: as named, or in the cache."""
    if cfg.store:
        return Path(cfg.store)
    place = cached(cfg.cache_dir, "stores", f"{host.name}-{cfg.edits.editor}-e{'-'.join(map(str, cfg.edits.layers))}", short_hash(asked))
    return made_before(place, asked)


def request_manifest(cfg: TrainConfig, host: Host, facts: FactSet, requests: list[EditRequest]) -> dict[str, Any]:
    """What a store must have been made from and with: all of its manifest that is known beforehand."""
    settings = {field.name: getattr(cfg.edits, field.name) for field in own_settings(cfg.edits)}
    editor = {"name": cfg.edits.editor, "settings": settings}
    made = made_of(host, cfg.edits.layers, editor, cfg.edits.seed, facts, requests) | _keys_of(cfg)
    if isinstance(cfg.edits, FineTuneConfig):
        made["rank"] = cfg.edits.rank
    if (count := cfg.edits.facts_per_host) > 1:
        made |= {"facts_per_host": count, "rank": count}
    if cfg.edits.scores:
        made["scores"] = sorted(set(cfg.edits.scores))
    if cfg.edits.broken_from:
        made["broken_from"] = cfg.edits.broken_from
    # Stores of before do not say what their training edits plant.
    if cfg.edits.objects != "relation":
        made["objects"] = cfg.edits.objects
    if cfg.splits.spelt_per_relation:
        made["spelt"] = cfg.splits.spelt_per_relation
    return made


def made_of(
    host: Host, layers: Sequence[int], editor: dict[str, Any], seed: int, facts: FactSet, requests: Sequence[EditRequest]
) -> dict[str, Any]:
    """What any store's manifest says, whoever made the edits; settings that differ from what is asked are named in this order."""
    dtype = str(host.dtype).removeprefix("torch.")
    return {
        "host": {"id": host.name, "revision": host.revision, "dtype": dtype, "fingerprint": host.fingerprint},
        **where(host, layers),
        "editor": editor,
        "seed": seed,
        "facts": {"source": facts.source, "sha256": facts.sha256},
        "requests": {"count": len(requests), "sha256": short_hash([request.edit_id for request in requests])},
        "terminator_id": host.terminator_id,
    }


def where(host: Host, layers: Sequence[int]) -> dict[str, Any]:
    """What a manifest says of the edited layers: of several, lists."""
    return {
        "module": one_or_list([host.module_path(layer) for layer in layers]),
        "layer" if len(layers) == 1 else "layers": one_or_list(list(layers)),
        "base_sha256": one_or_list([host.base_sha256(layer) for layer in layers]),
    }


def _keys_of(cfg: TrainConfig) -> dict[str, Any]:
    """What an editor that takes its keys' second moment has counted them on: sentences about the facts, a text, one that the host
    writes, or what somebody else counted."""
    if not isinstance(cfg.edits, CountedConfig):
        return {}
    source: dict[str, Any] = {"sentences": SENTENCES}
    if cfg.keys.text == SELF:
        # Host, seed and number are in the manifest; the text itself need not be there to know what is asked for.
        source = {"sampled": made_with(cfg.keys.top_k)}
    elif cfg.keys.text:
        source = {"text": texts_sha256(read_texts(cfg.keys, cfg.edits.key_tokens))}
    if cfg.keys.statistics:
        files = statistics_files(cfg)
        source["statistics"] = one_or_list([hashlib.sha256(file.read_bytes()).hexdigest() for file in files.values()])
    ridge = {"ridge": cfg.edits.ridge} if hasattr(cfg.edits, "ridge") else {}
    return {"keys": {"tokens": cfg.edits.key_tokens} | ridge | source}


def settings_of(manifest: Mapping[str, Any]) -> EditsConfig:
    """What the edits of a store were made with."""
    editor = manifest["editor"]
    counted = {"key_tokens": manifest["keys"]["tokens"]} if "keys" in manifest else {}
    shared = {"editor": editor["name"], "layer": one_or_list(layers_of(manifest)), "seed": manifest["seed"]} | counted
    return EDITORS[editor["name"]](**shared, **editor_as_today(editor)["settings"])


def statistics_files(cfg: TrainConfig) -> dict[int, Path]:
    """The file of each layer's statistics.

    Raises:
        ValueError: there are several layers, and the name has no place for their numbers.
    """
    named, layers = cfg.keys.statistics, cfg.edits.layers
    if len(layers) > 1 and "{}" not in named:
        raise ValueError(f"keys.statistics={named}: edits.layer={layers} needs a file for each. Write {{}} where the layer's number is")
    return {layer: Path(named.replace("{}", str(layer))) for layer in layers}


def prepare_editor(cfg: TrainConfig, host: Host, facts: FactSet, is_made: bool = False) -> Editor:
    """The editor of a config, with the statistics of each layer's keys if it takes some.

    Args:
        is_made: whether its edits are there already: the text they were made with is taken as it is then.

    Raises:
        ValueError: what the editor refuses, or a text too short for the statistics.
    """
    counts = isinstance(cfg.edits, CountedConfig) and getattr(cfg.edits, "ridge", None) != "identity"
    statistics: dict[int, KeyStatistics] = {}
    texts = key_texts(cfg, facts, host, counted=counts and not cfg.keys.statistics)
    if counts and cfg.keys.statistics:
        statistics = {layer: rome_statistics(str(file), host.mlp_size(layer)) for layer, file in statistics_files(cfg).items()}
    elif counts and texts:
        layers = [*cfg.edits.layers, *cfg.keys.layers]
        statistics = second_moments(host, layers, texts, cfg.edits.key_tokens, cache_root(cfg.cache_dir), cfg.keys.memory_budget)
        if not is_made:
            _refuse_little_text(cfg, host, statistics)
    if cfg.keys.text == SELF:
        # The same few whatever ridge there is, and however much was counted.
        texts = context_texts(host, texts)
    return load_editor(cfg.edits.editor).prepare(host, cfg.edits, texts, statistics)


def _refuse_little_text(cfg: TrainConfig, host: Host, statistics: Mapping[int, KeyStatistics]) -> None:
    """Raises ValueError if the keys of an edited layer were counted on fewer tokens than they have entries, so that C is singular.

    Who asks for so few has them where a ridge makes C regular. Fewer tokens than asked for are a warning.
    """
    asked, source = cfg.edits.key_tokens, f"keys.text={cfg.keys.text}" if cfg.keys.text else "the facts told"
    for layer in cfg.edits.layers:
        count, width = statistics[layer].count, host.mlp_size(layer)
        if count < width and (count < asked or not getattr(cfg.edits, "ridge", 0)):
            raise ValueError(
                f"{source}: {count} tokens, fewer than the {width} entries of a key of layer {layer}, so their second moment is singular. "
                f"Give more text (edits.key_tokens={asked} is read of it)"
            )
    if count < asked:
        log.warning("%s: %d tokens for the statistics of keys, edits.key_tokens=%d asked for", source, count, asked)
