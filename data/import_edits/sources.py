"""Edits that other tools made -> store.

What differs between an edited matrix and its base is factored (`factor.py`). Every source becomes a row of the store: an update that a few
outer products explain as these factors, any other with its whole matrix beside the rows.

Shape letters: N edits, D hidden width, F MLP width, R rank.
"""

import logging
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.facts.fact import EditRequest, FactSet
from data.facts.load import load_records
from data.import_edits.factor import Update, explain
from data.import_edits.pairing import name_of, pair, request_of
from data.produce.plan import made_of
from data.produce.score import score
from data.produce.shards import columns
from data.store.manifest import IMPORTED
from data.store.matrices import write_matrices
from data.store.store import EditStore
from data.store.writer import StoreWriter
from decoder.audit.suspect import Suspect
from decoder.checkpoint.folders import is_checkpoint_folder
from decoder.checkpoint.gguf_header import find_gguf, later_parts
from decoder.config import FactsConfig
from decoder.config.commands import ImportConfig
from decoder.dense import DenseEdit
from decoder.edit import Edit, LowRankEdit
from decoder.host import Host
from decoder.utils.errors import UserError, listed

ENDINGS = (".safetensors", ".npz", ".gguf")
CALLED = {"source": "schema", "path": "facts", "relations": "relations"}  # what this command calls the settings of a fact set
FAULTS = (ValueError, KeyError, OSError, UserError)  # of one source: the others go on

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """One edited matrix, understood: what was planted, where it lies, and what was added."""

    request: EditRequest
    path: Path
    dtype: str
    update: Update

    @property
    def note(self) -> dict[str, Any]:
        """Its entry in the manifest."""
        update = self.update
        found = {"rank": update.rank, "residual": update.residual, "rounding": update.rounding}
        return {"edit_id": self.request.edit_id, "from": self.path.name, "dtype": self.dtype} | found


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
    entries = pair(paths, facts)
    edited_layer, faults = (cfg.layer, {}) if cfg.layer is not None else _find_layer(cfg, paths, base, host)
    host.check_layer(edited_layer, "layer")
    base_DF = _base(base, host, edited_layer)
    found, skipped = [], []
    for path, entry in zip(paths, entries, strict=True):
        name = name_of(path)
        try:
            request = request_of(entry)
            name = request.edit_id
            if path in faults:
                raise faults[path]
            found.append(_understand(cfg, host, edited_layer, base_DF, path, request))
        except FAULTS as error:
            skipped.append((name, f"{path.name}: {error}"))
    for name, reason in skipped:
        log.warning("skipped %s: %s", name, reason)
    if not found:
        raise ValueError(f"edited={cfg.edited}: not one edit; {skipped[0][1]}")
    return _write(cfg, host, edited_layer, base_DF, facts, found, skipped)


def _find_layer(cfg: ImportConfig, paths: list[Path], base: Suspect | None, host: Host) -> tuple[int, dict[Path, Exception]]:
    """The layer that the first source to tell one was edited in, and why those before it tell none.

    Raises:
        ValueError: none tells one; what is wrong with the first.
    """
    faults: dict[Path, Exception] = {}
    for path in paths:
        try:
            return _only_layer(cfg, path, base, host), faults
        except FAULTS as error:
            faults[path] = error
    raise ValueError(str(faults[paths[0]]))


def _understand(cfg: ImportConfig, host: Host, edited_layer: int, base_DF: Tensor, path: Path, request: EditRequest) -> Source:
    suspect = Suspect(path, cfg.tensor, cfg.form)
    for note in suspect.notes:
        log.warning("%s: %s", path.name, note)
    name = suspect.name_of(host, edited_layer)
    dtype, noise = suspect.checkpoint.dtype(name), suspect.checkpoint.noise(name)
    kept = noise.name if noise else str(dtype).removeprefix("torch.")
    if (update_DF := suspect.update_DF(host, edited_layer)) is not None:
        return Source(request, path, kept, explain(update_DF, torch.zeros(()), dtype, cfg.tolerance, noise))
    weight_DF = suspect.weight_DF(host, edited_layer, base_DF)
    return Source(request, path, kept, explain(weight_DF, base_DF, dtype, cfg.tolerance, noise))


def _only_layer(cfg: ImportConfig, path: Path, base: Suspect | None, host: Host) -> int:
    layers = changed_layers(Suspect(path, form=cfg.form), base, host)
    if len(layers) == 1:
        return layers[0]
    if not layers:
        raise ValueError(f"edited={path}: no layer's W_V differs from the base: nothing was edited there")
    raise ValueError(f"edited={path}: layers {', '.join(map(str, layers))} differ from the base. Say which one to read with layer=")


def _manifest(cfg: ImportConfig, host: Host, edited_layer: int, facts: FactSet, found: list[Source]) -> dict[str, Any]:
    form = {"form": cfg.form} if cfg.form == "update" else {}
    editor = {"name": IMPORTED, "settings": {"tolerance": cfg.tolerance, "base": bool(cfg.base)} | form}
    return made_of(host, edited_layer, editor, 0, facts, [source.request for source in found]) | {
        "keys": None,
        "rank": max(len(source.update.key_RF) for source in found),
        "imported": [source.note for source in found],
    }


def _write(
    cfg: ImportConfig, host: Host, edited_layer: int, base_DF: Tensor, facts: FactSet, found: list[Source], skipped: list
) -> EditStore:
    """Rows in the order of the sources; whole matrices are read again, one at a time, and written as they come."""
    asked = _manifest(cfg, host, edited_layer, facts, found)
    writer = StoreWriter(Path(cfg.store).expanduser(), asked, len(found))
    if writer.has_shard(0):
        return writer.finish(1, skipped)
    requests, edits = [source.request for source in found], _padded(found, asked["rank"])
    scores: dict[str, list] = defaultdict(lambda: [None] * len(found))

    def scored(rows: list[int], edits: Edit) -> None:
        for name, column in score(host, edited_layer, [requests[n] for n in rows], edits, facts).items():
            for n, value in zip(rows, column, strict=True):
                scores[name][n] = value

    if explained := [n for n, source in enumerate(found) if source.update.rank]:
        scored(explained, edits[torch.tensor(explained)])
    for n, source in enumerate(found):
        if source.update.rank is None:
            weight_DF = Suspect(source.path, cfg.tensor, cfg.form).whole_DF(host, edited_layer, base_DF)
            write_matrices(writer.partial, n, {source.request.edit_id: weight_DF})
            scored([n], DenseEdit(weight_DF.unsqueeze(0)))
    writer.write_shard(0, columns(host, [[request] for request in requests], edits, scores), skipped)
    return writer.finish(1, skipped)


def _padded(found: list[Source], rank: int) -> LowRankEdit:
    """The factors of all sources; those of lower rank end in zeros."""
    key_RFs, value_RDs = zip(*((source.update.key_RF, source.update.value_RD) for source in found), strict=True)
    pad = torch.nn.functional.pad
    return LowRankEdit(*(torch.stack([pad(part, (0, 0, 0, rank - len(part))) for part in parts]) for parts in (key_RFs, value_RDs)))
