"""Edits that other tools made -> store.

What differs between an edited matrix and its base is factored (`factor.py`). Every source becomes a row of the store with all layers that
are edited: an update that a few outer products explain as these factors, any other with its whole matrix beside the rows.

Shape letters: N edits, D hidden width, F MLP width, R rank.
"""

import logging
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.facts.fact import EditRequest, FactSet
from data.facts.load import load_records
from data.facts.together import host_id
from data.import_edits.factor import HIGHEST_RANK, Update, explain, nothing
from data.import_edits.pairing import name_of, pair, pair_several, requests_of
from data.produce.plan import made_of
from data.produce.score import score_hosts
from data.produce.shards import columns
from data.store.manifest import IMPORTED
from data.store.matrices import matrix_name, write_matrices
from data.store.store import EditStore
from data.store.writer import StoreWriter
from decoder.audit.suspect import Suspect
from decoder.checkpoint.folders import is_checkpoint_folder
from decoder.checkpoint.gguf_header import find_gguf, later_parts
from decoder.config import FactsConfig
from decoder.config.commands import ImportConfig
from decoder.config.options import as_list, one_or_list
from decoder.dense import DenseEdit
from decoder.edit import Edit, LayerEdits, LowRankEdit
from decoder.host import Host
from decoder.utils.errors import UserError, listed

ENDINGS = (".safetensors", ".npz", ".gguf")
CALLED = {"source": "schema", "path": "facts", "relations": "relations"}  # what this command calls the settings of a fact set
TOLD = ("rank", "residual", "rounding")
FAULTS = (ValueError, KeyError, OSError, UserError)  # of one source: the others go on

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """One edited host, understood: what was planted, where it lies, and what was added to each layer."""

    requests: list[EditRequest]
    path: Path
    dtypes: list[str]
    updates: dict[int, Update]

    @property
    def edit_id(self) -> str:
        return host_id(self.requests)

    @property
    def note(self) -> dict[str, Any]:
        """Its entry in the manifest; of several layers lists."""
        found = {name: one_or_list([getattr(update, name) for update in self.updates.values()]) for name in TOLD}
        return {"edit_id": self.edit_id, "from": self.path.name, "dtype": one_or_list(self.dtypes)} | found

    @property
    def unexplained(self) -> list[int]:
        """The layers that are to be kept as whole matrices."""
        return [layer for layer, update in self.updates.items() if update.rank is None]


def sources(path: Path) -> list[Path]:
    """The files and checkpoint folders at a path, in natural order of their names.

    Raises:
        ValueError: there is none.
    """
    alone = find_gguf(path) if path.is_dir() else None
    if path.is_file() or (path.is_dir() and is_checkpoint_folder(path)):
        return [alone or path]
    if not path.is_dir():
        raise ValueError(f"edited={path}: no such file or folder")
    entries = {*path.iterdir()} - later_parts(path)
    found = [entry for entry in entries if entry.suffix in ENDINGS or (entry.is_dir() and is_checkpoint_folder(entry))]
    if not found:
        raise ValueError(f"edited={path}: neither a checkpoint nor a folder of {', '.join(ENDINGS)} files or checkpoints")
    return sorted(found, key=lambda entry: [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name_of(entry))])


def changed_layers(edited: Suspect, base: Suspect | None, host: Host) -> list[int]:
    """Layers whose W_V is another one than in the base.

    Raises:
        ValueError: it has W_V of no layer, under no name that is known.
    """
    layers, there = [], False
    for layer in range(host.layers):
        try:
            module = host.module_path(layer)
        except ValueError:  # fused experts carry no edit that could be read
            continue
        if edited.adapter.find(module) or (edited.form == "update" and edited.checkpoint.find_weight(module)):
            layers.append(layer)
        elif edited.checkpoint.find_weight(module):
            base_DF = _base(base, host, layer)
            edited.weight_DF(host, layer, base_DF)  # refuses what is no W' of this base
            if not edited.is_own(host, layer, base_DF):
                layers.append(layer)
        else:
            continue
        there = True
    if not there and edited.adapter.names:
        raise ValueError(
            f"edited={edited.path}: the LoRA adds nothing to any W_V of {host.name}; it touches {listed(edited.adapter.names)}"
        )
    if not there:
        raise ValueError(
            f"edited={edited.path} has no tensor named like W_V ({host.family.blocks}.0.{host.family.down_proj}.weight). "
            "Name it with tensor=, and its layer with layer="
        )
    return layers


def _base(base: Suspect | None, host: Host, edited_layer: int) -> Tensor:
    return host.weight_DF(edited_layer).detach().float().cpu() if base is None else base.weight_DF(host, edited_layer)


def import_edits(cfg: ImportConfig, host: Host) -> EditStore:
    """Reads every source, factors it, scores it on the host and writes the store. What cannot be read is skipped, with its reason."""
    paths, base = sources(Path(cfg.edited).expanduser()), Suspect(cfg.base) if cfg.base else None
    facts = load_records(FactsConfig(source=cfg.schema, path=cfg.facts, relations=cfg.relations), CALLED)
    entries = pair_several(paths, facts) if cfg.several else [[entry] for entry in pair(paths, facts)]
    layers, faults = (as_list(cfg.layer), {}) if cfg.layer is not None else _find_layers(cfg, paths, base, host)
    for layer in layers:
        host.check_layer(layer, "layer")
    bases = {layer: _base(base, host, layer) for layer in layers}
    found, skipped = [], []
    for path, own in zip(paths, entries, strict=True):
        name = name_of(path)
        try:
            requests = requests_of(own)
            name = host_id(requests)
            found.append(_understand(cfg, host, bases, path, requests))
        except FAULTS as error:
            skipped.append((name, f"{path.name}: {faults.get(path, error)}"))
    for name, reason in skipped:
        log.warning("skipped %s: %s", name, reason)
    if not found:
        raise ValueError(f"edited={cfg.edited}: not one edit; {skipped[0][1]}")
    return _write(cfg, host, bases, facts, found, skipped)


def _find_layers(cfg: ImportConfig, paths: list[Path], base: Suspect | None, host: Host) -> tuple[list[int], dict[Path, Exception]]:
    """All layers that some source was edited in, and why others tell none: a lone matrix may still be of one of these layers.

    Raises:
        ValueError: none tells any; what is wrong with the first.
    """
    layers: set[int] = set()
    faults: dict[Path, Exception] = {}
    for path in paths:
        try:
            layers |= set(_layers_of(cfg, path, base, host))
        except FAULTS as error:
            faults[path] = error
    if not layers:
        raise ValueError(str(faults[paths[0]]))
    return sorted(layers), faults


def _layers_of(cfg: ImportConfig, path: Path, base: Suspect | None, host: Host) -> list[int]:
    if not (layers := changed_layers(Suspect(path, form=cfg.form), base, host)):
        raise ValueError(f"edited={path}: no layer's W_V differs from the base: nothing was edited there")
    return layers


def _understand(cfg: ImportConfig, host: Host, bases: Mapping[int, Tensor], path: Path, requests: list[EditRequest]) -> Source:
    suspect = Suspect(path, cfg.tensor, cfg.form)
    for note in suspect.notes:
        log.warning("%s: %s", path.name, note)
    dtypes, updates, unchanged = [], {}, []
    for layer, base_DF in bases.items():
        name = suspect.name_of(host, layer)
        dtype, noise = suspect.checkpoint.dtype(name), suspect.checkpoint.noise(name)
        dtypes.append(noise.name if noise else str(dtype).removeprefix("torch."))
        update_DF = suspect.update_DF(host, layer)
        pair = (suspect.weight_DF(host, layer, base_DF), base_DF) if update_DF is None else (update_DF, torch.zeros(()))
        try:
            # MEMIT and its kin leave a term a fact.
            updates[layer] = explain(*pair, dtype, cfg.tolerance, noise, max(HIGHEST_RANK, len(requests)))
        except ValueError as error:
            # Of several layers some may be as they were.
            unchanged.append(error)
            updates[layer] = nothing(base_DF)
    if len(unchanged) == len(bases):
        raise unchanged[0]
    return Source(requests, path, dtypes, updates)


def _manifest(cfg: ImportConfig, host: Host, layers: Sequence[int], facts: FactSet, found: list[Source]) -> dict[str, Any]:
    form = {"form": cfg.form} if cfg.form == "update" else {}
    editor = {"name": IMPORTED, "settings": {"tolerance": cfg.tolerance, "base": bool(cfg.base)} | form}
    return made_of(host, layers, editor, 0, facts, [request for source in found for request in source.requests]) | {
        "keys": None,
        "rank": max(len(update.key_RF) for source in found for update in source.updates.values()),
        "imported": [source.note for source in found],
    }


def _write(cfg: ImportConfig, host: Host, bases: Mapping[int, Tensor], facts: FactSet, found: list[Source], skipped: list) -> EditStore:
    """Rows in the order of the sources; whole matrices are read again, one source at a time, and written as they come."""
    layers = list(bases)
    asked = _manifest(cfg, host, layers, facts, found)
    writer = StoreWriter(Path(cfg.store).expanduser(), asked, len(found))
    if writer.has_shard(0):
        return writer.finish(1, skipped)
    writer.begin()
    hosts = [source.requests for source in found]
    edits = LayerEdits({layer: _padded([source.updates[layer] for source in found], asked["rank"]) for layer in layers})
    scores: dict[str, list] = defaultdict(lambda: [None] * len(found))

    def scored(rows: list[int], edits: Mapping[int, Edit]) -> None:
        for name, column in score_hosts(host, [hosts[n] for n in rows], edits, facts).items():
            for n, value in zip(rows, column, strict=True):
                scores[name][n] = value

    if explained := [n for n, source in enumerate(found) if not source.unexplained]:
        scored(explained, edits[torch.tensor(explained)].by_layer)
    for n, source in enumerate(found):
        if source.unexplained:
            suspect = Suspect(source.path, cfg.tensor, cfg.form)
            whole = {layer: suspect.whole_DF(host, layer, bases[layer]) for layer in source.unexplained}
            named = {matrix_name(source.edit_id, layer, layers): weight_DF for layer, weight_DF in whole.items()}
            write_matrices(writer.partial, n, named)
            scored([n], edits[n].by_layer | {layer: DenseEdit(weight_DF.unsqueeze(0)) for layer, weight_DF in whole.items()})
    if all(len(requests) == 1 for requests in hosts):
        del scores["facts"]
    writer.write_shard(0, columns(host, layers, hosts, edits, scores), skipped)
    return writer.finish(1, skipped)


def _padded(updates: Sequence[Update], rank: int) -> LowRankEdit:
    """The factors of all sources in one layer; those of lower rank end in zeros."""
    key_RFs, value_RDs = zip(*((update.key_RF, update.value_RD) for update in updates), strict=True)
    pad = torch.nn.functional.pad
    return LowRankEdit(*(torch.stack([pad(part, (0, 0, 0, rank - len(part))) for part in parts]) for parts in (key_RFs, value_RDs)))
