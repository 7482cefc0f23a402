"""Exported decoders on their hosts, ready to read: one, or several of one host that answer together.

Shape letters: B edits, K decoders.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from decoder.answers import each_by, vote
from decoder.beam import Beams
from decoder.checkpoint.gguf_header import find_gguf
from decoder.checkpoint.gguf_host import host_folder, whole_of
from decoder.config.commands import EvaluateConfig
from decoder.config.options import layers_text
from decoder.edit import Edits, LayerEdits
from decoder.export.formats import layers_of
from decoder.export.gate import Gate, evidence
from decoder.export.save import WEIGHTS, load_decoder, read_config
from decoder.export.voters import folders_of, read_voters
from decoder.host import Host
from decoder.model import ObjectDecoder
from decoder.parts.apart import read_apart
from decoder.utils.files import cache_root, sha256_of, short_hash


@dataclass(frozen=True)
class Voters:
    """Decoders of one host and the same edited layers, each with its config: they vote, or a gate says which of them to believe."""

    decoders: list[ObjectDecoder]
    configs: list[Mapping[str, Any]]
    gate: Gate | None = None
    folders: Sequence[str] = ()

    @property
    def host(self) -> Host:
        return self.decoders[0].host

    def tell_apart(self) -> None:
        """Has decoders of single facts read several in one host part by part; one that learnt to read their sum goes on to."""
        for decoder, config in zip(self.decoders, self.configs, strict=True):
            decoder.apart = decoder.apart or "several" not in config

    def read_in_place(self) -> None:
        """Has decoders read matrices as they are, in which no W_V but the suspect's has a part.

        Not those of a gate, which was fitted on how they read otherwise.
        """
        for decoder in self.decoders if self.gate is None else ():
            decoder.own_keys = None

    def read_each(self, edits: Edits) -> list[Beams]:
        """What each decoder finds by the search of its calibration: another width could rank other objects first."""
        return [decoder.read(edits, **config["search"]) for decoder, config in zip(self.decoders, self.configs, strict=True)]

    def read(self, edits: Edits) -> Beams:
        """What they find together; of several facts, in each part, if all of them read apart."""
        if all(decoder.apart for decoder in self.decoders):
            return read_apart(self.host, LayerEdits.of(edits, self.decoders[0].edited_layers), self._read_together)
        return self._read_together(edits)

    def _read_together(self, edits: Edits) -> Beams:
        found = self.read_each(edits)
        return vote(self.host, found) if self.gate is None else each_by(found, self.chances(edits, found).argmax(1).tolist())

    def chances(self, edits: Edits, found: list[Beams]) -> Tensor:
        """The gate's chance (B, K) of each decoder that it is the one to believe, of those that `found` their answers in these edits."""
        return self.gate.chances(evidence(self.decoders, edits, found))


def open_voters(cfg: EvaluateConfig, host: Host | None = None) -> Voters:
    """The decoders of a config, all on one host, and its gate; `host` is that host if it is open already.

    Raises:
        ValueError, UserError: as `open_decoder`, `read_voters` and `Gate.load` do; or the gate is of other decoders.
    """
    read_voters(cfg.decoder)
    folders = folders_of(cfg.decoder)
    gate = Gate.load(cfg.gate).of([identity_of(folder) for folder in folders]) if cfg.gate else None
    decoders, configs = [], []
    for folder in folders:
        decoder, config = open_decoder(replace(cfg, decoder=folder), decoders[0].host if decoders else host)
        decoders.append(decoder)
        configs.append(config)
    return Voters(decoders, configs, gate, folders)


def identity_of(folder: str) -> str:
    """By which a gate knows an exported decoder: a hash of what was learnt, and of all else that its answers depend on."""
    config = read_config(folder)
    return short_hash(
        [sha256_of(Path(folder).expanduser() / WEIGHTS), *(config[name] for name in ("search", "scope", "arithmetic", "terminator_id"))]
    )


def open_decoder(cfg: EvaluateConfig, host: Host | None = None) -> tuple[ObjectDecoder, dict[str, Any]]:
    """An exported decoder on its host, and its config; `host` is that host if it is open already.

    Raises:
        ValueError: no decoder there, it reads another layer than is asked for, its host is not to be found, or the host given is
            another one.
    """
    config = read_config(cfg.decoder)
    if cfg.layer is not None and cfg.layer not in layers_of(config):
        raise ValueError(
            f"layer={cfg.layer}: {cfg.decoder} reads edited layer {layers_text(config['edited_layer'])}. "
            "Leave layer= out, or give a decoder of that layer"
        )
    host = host or open_host(cfg, config["host"])
    host.terminator_id = config["terminator_id"]
    return load_decoder(cfg.decoder, host, allow_host_mismatch=cfg.allow_host_mismatch), config


def open_host(cfg: EvaluateConfig, trained_on: Mapping[str, Any]) -> Host:
    """The host of a decoder, by what its config says of it.

    Raises:
        ValueError: it is not to be found, or there is no such device.
    """
    check_device(cfg.device)
    path = cfg.host or _host_path(trained_on, cfg.cache_dir)
    asked = {"name": trained_on["id"], "dtype": trained_on["dtype"], "setting": "host"}
    return Host.load(host_folder(path, **asked, cache_dir=cfg.cache_dir), **asked, revision=trained_on["revision"], device=cfg.device)


def check_device(device: str) -> None:
    """Raises ValueError if there is no such device."""
    try:
        torch.device(device)
    except RuntimeError:
        raise ValueError(f"device={device}: no device of torch; expected cpu, cuda or cuda:1") from None
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device={device}: there is no CUDA device here. Use device=cpu")


def _host_path(trained_on: Mapping[str, Any], cache_dir: str | None) -> str:
    """Where the decoder's host is: in the cache by the name of its folder, or what it was loaded from."""
    if not trained_on["cached_as"]:
        if trained_on["path"] is None:
            raise ValueError(f"the decoder does not say where its host {trained_on['id']} is. Give host=FOLDER")
        return trained_on["path"]
    folder = cache_root(cache_dir) / "hosts" / trained_on["cached_as"]
    if trained_on["path"] is not None:  # of a GGUF file that the folder was made from
        if (there := whole_of(folder)) is not None:
            return str(there)
        if find_gguf(trained_on["path"]):
            return trained_on["path"]
    if not folder.is_dir():
        raise ValueError(
            f"the decoder's host {trained_on['id']} ({trained_on['cached_as']}) is not in {folder.parent}. "
            "Give host=FOLDER, or the cache that has it with cache_dir="
        )
    return str(folder)
