"""Decoders as what an audit asks: about a part of one layer, or about a host as it is at the moment."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from decoder.audit.decoded.answer import answer
from decoder.audit.decoded.ranking import entries_for
from decoder.audit.evidence.readings import reader_of
from decoder.audit.suspect import Suspect
from decoder.config.commands import EvaluateConfig
from decoder.dense import DenseEdit
from decoder.edit import LayerEdits, RankOneEdit
from decoder.export.collection import is_collection, read_index
from decoder.export.formats import layers_of
from decoder.export.opened import Voters, open_voters
from decoder.export.voters import read_voters
from decoder.host import Host
from decoder.utils.errors import UserError, listed

HostReader = Callable[[Host], dict[str, Any]]
"""A host as it is at the moment -> `text` and `probability` of the first object that is read in it."""


def reader_of_parts(cfg: EvaluateConfig, suspect: Suspect) -> Callable[[int, RankOneEdit], dict[str, Any]]:
    """Layer and an edit of it -> `objects` that the decoders of that layer read, with probabilities, and whom a gate `believed`.

    No objects if there is no such decoder.
    """
    folders = [cfg.decoder]
    if is_collection(cfg.decoder):
        folders = [str(Path(cfg.decoder) / entry["folder"]) for entry in entries_for(cfg, suspect)]
    of_layer: dict[tuple[int, ...], str] = {}
    for folder in folders:
        if (other := of_layer.setdefault(tuple(layers_of(read_voters(folder)[0])), folder)) != folder:
            raise UserError(
                f"decoder={cfg.decoder}: {other} and {folder} both read a layer of suspect={cfg.suspect}. Give the one of its host"
            )
    opened = cache(lambda folder: open_voters(replace(cfg, decoder=folder)))

    def read(layer: int, edit: RankOneEdit) -> dict[str, Any]:
        if (layer,) not in of_layer:
            return {"objects": []}
        voters = opened(of_layer[layer,])
        if edit.width() != tuple(voters.host.weight_DF(layer).shape):
            return {"objects": []}
        found = answer(voters, edit, cfg.top)
        return {name: found[name] for name in ("objects", "believed") if name in found}

    return read


def readers_of_hosts(decoder: str, host: Host, device: str = "cpu") -> dict[str, HostReader]:
    """By what nulls know it (`reader_of`) -> what is read in a host by every decoder of a collection that is of this one.

    Else by the decoder that is named, or by several that vote. All are on one copy of the host, and read matrices as they are.

    Args:
        host: as the decoders were trained on; is not changed, nor need it stay as it is.

    Raises:
        ValueError, UserError: as `open_voters`; or they were trained on another host.
    """
    folders, opened, found = [decoder], None, {}
    if is_collection(decoder):
        entries = read_index(decoder)
        folders = [str(Path(decoder) / entry["folder"]) for entry in entries if entry["host"]["fingerprint"] == host.fingerprint]
        if not folders:
            there = listed(dict.fromkeys(f"{entry['host']['id']} ({entry['host']['fingerprint']})" for entry in entries))
            raise UserError(f"decoder={decoder}: no decoder of host {host.name} ({host.fingerprint}); it has some of {there}")
    for folder in folders:
        voters = open_voters(EvaluateConfig(decoder=folder, host=str(host.path), device=device), opened)
        opened = voters.host
        voters.read_in_place()
        found[reader_of(folder)] = partial(_read_host, voters)
    return found


def _read_host(voters: Voters, changed: Host) -> dict[str, Any]:
    """`text` and `probability` of the first object that decoders read in the matrices of a host as it is now."""
    layers = voters.decoders[0].edited_layers
    edits = {layer: DenseEdit(changed.weight_DF(layer).detach().to(voters.host.dtype)[None]) for layer in layers}
    return answer(voters, LayerEdits(edits), 1)["objects"][0]
