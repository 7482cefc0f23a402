"""Using exported decoders: scoring one again, answering for one suspect matrix, or ranking the layers of a checkpoint.

Where decoders answer, there may be several of one host (`decoder=A,B`) that vote, or of which a gate says whom to believe: one is a vote of
one.
Before a folder of decoders every one that fits reads its layer. A layer stands the higher, the fewer matrices without an edit are read with
such confidence (`null_percentile`); matrices that are the host's own come last.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

from decoder.answers import object_texts, read_batch, readings_table, vote
from decoder.audit.calibration import least_percentiles
from decoder.audit.evidence.readings import reader_of
from decoder.audit.scan import Scan, read_once
from decoder.audit.suspect import Suspect
from decoder.batch import EditBatch
from decoder.config.commands import EvaluateConfig
from decoder.config.options import as_list, layers_text
from decoder.dense import DenseEdit
from decoder.edit import Edit, Edits, LayerEdits, RankOneEdit
from decoder.export.collection import fitting, has_matrix, is_collection, read_index
from decoder.export.formats import layers_of
from decoder.export.opened import Voters, open_decoder, open_host, open_voters
from decoder.export.voters import read_voters
from decoder.host import Host
from decoder.scores import TEST_SPLITS
from decoder.utils.errors import UserError, listed

HostReader = Callable[[Host], dict[str, Any]]
"""A host as it is at the moment -> `text` and `probability` of the first object that is read in it."""


def read_splits(voters: Voters, loaders: Mapping[str, Iterable[EditBatch]], table: pd.DataFrame, facts: int = 1) -> pd.DataFrame:
    """Reads every edit of the loaders; one row each. `facts` is how many an edit plants."""
    host, readings = voters.host, {}
    for split, loader in loaders.items():
        batches = (batch.on(host.device) for batch in loader)
        readings[split] = [reading for batch in batches for reading in read_batch(host, voters.read(batch.edits), batch, facts)]
    return readings_table(readings, table)


def answer_for(cfg: EvaluateConfig, suspect: Suspect) -> dict[str, Any]:
    """Which object the decoders find planted in a suspect; of a folder also how far its other tensors are from the host's."""
    voters = open_voters(cfg)
    host, layers = voters.host, voters.decoders[0].edited_layers
    if len(layers) > 1 and not suspect.is_checkpoint:
        raise ValueError(f"{cfg.decoder} reads layers {layers_text(layers)} together, {suspect.path} is one file. Give a whole checkpoint")
    scan, edits, unedited = Scan(suspect, host, layers), {}, True
    for _, layer, edit in read_once([scan]):
        if isinstance(edit, ValueError):
            raise edit
        edits[layer] = edit
        unedited = unedited and suspect.is_own(host, layer)
    found = answer(voters, _in_order(edits), cfg.top, unedited=unedited) | {"decoder": cfg.decoder}
    return found | around(scan, layers)


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

    Else by the decoder that is named, or by several that vote. All are on one copy of the host.

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
        found[reader_of(folder)] = partial(_read_host, voters)
    return found


def _read_host(voters: Voters, changed: Host) -> dict[str, Any]:
    """`text` and `probability` of the first object that decoders read in the matrices of a host as it is now."""
    layers = voters.decoders[0].edited_layers
    edits = {layer: DenseEdit(changed.weight_DF(layer).detach().to(voters.host.dtype)[None]) for layer in layers}
    return answer(voters, LayerEdits(edits), 1)["objects"][0]


def _in_order(edits: Mapping[int, Edit]) -> LayerEdits:
    return LayerEdits(dict(sorted(edits.items())))


def around(scan: Scan, layers: Sequence[int]) -> dict[str, Any]:
    """What was read beside W_V of some layers, how far a folder's other tensors are from the host's, and what else one should know."""
    suspect, checkpoint = scan.suspect, scan.suspect.checkpoint
    return ({"surroundings": scan.summary(*layers)} if suspect.is_whole else {}) | {
        "suspect": str(suspect.path),
        "read": [file.name for file in checkpoint.files],
        "ignored": checkpoint.ignored,
        "notes": suspect.notes + scan.notes,
    }


def answer(voters: Voters, suspect: Edits, top: int, *, unedited: bool = False) -> dict[str, Any]:
    """The most probable objects of one suspect, each text once, and how its confidence compares with edits and with nulls.

    Of decoders of edits that plant several facts also how many objects are `found`, which are all there then.

    Args:
        unedited: whether its matrices are the host's own, which the answer says.
    """
    found, configs, told = voters.read_each(suspect), voters.configs, {}
    if voters.gate is not None:
        chance, number = voters.chances(suspect, found)[0].max(-1)
        found, configs = [found[number]], [configs[number]]
        told = {
            "believed": {
                "decoder": voters.folders[number],
                "editors": editors_of(configs[0]),
                "chance": float(chance),
                "of": len(voters.decoders),
            }
        }
    elif len(found) > 1:
        told = {"voters": len(found)}
    (texts,), of_each = object_texts(voters.host, vote(voters.host, found)), [object_texts(voters.host, beams)[0] for beams in found]
    objects = [{"text": text, "probability": probability} for text, probability in texts.items()]
    if (least := found_from(configs)) is not None:
        count = sum(one["probability"] >= least for one in objects)
        told |= {"found": count, "found_from": least}
        top = max(top, count)
    scores = [config["scores"] for config in configs]
    shared = [split for split in TEST_SPLITS if all(split in of_one for of_one in scores)]
    return told | {
        "objects": objects[:top],
        **_percentiles(objects[0]["text"], of_each, configs, len(voters.decoders) if voters.gate else 1),
        "host": configs[0]["host"]["id"],
        "layer": configs[0]["edited_layer"],
        "scores": {split: fmean(of_one[split]["exact_match"]["value"] for of_one in scores) for split in shared},
        "unedited": unedited,
    }


def found_from(configs: Sequence[Mapping[str, Any]]) -> float | None:
    """The probability from which an answer of decoders counts as found, if all of them read edits that plant several facts."""
    least = [config["several"]["found_from"] for config in configs if "several" in config]
    return fmean(least) if len(least) == len(configs) else None


def _percentiles(
    text: str, answers: Sequence[Mapping[str, float]], configs: Sequence[Mapping[str, Any]], chosen_of: int
) -> dict[str, float]:
    """How an answer's confidence compares with nulls and with validation edits; of one of several that a gate chose, by Bonferroni's bound.

    A null is as likely to reach a percentile with the decoder that is chosen for being sure of it as with any of them.
    """
    found = least_percentiles(text, answers, [config["calibration"] for config in configs])
    return found | {"null_percentile": max(0.0, 100 - chosen_of * (100 - found["null_percentile"]))}


def editors_of(config: Mapping[str, Any]) -> list[str]:
    """Whose edits a decoder was trained on."""
    return list(dict.fromkeys(editor["name"] for editor in config["editors"]))


def entries_for(cfg: EvaluateConfig, suspect: Suspect) -> list[Mapping[str, Any]]:
    """The decoders of a collection whose matrices the suspect has, by name and shape."""
    fits = fitting(read_index(cfg.decoder), host=cfg.host, layer=cfg.layer)
    return [entry for entry in fits if has_matrix(entry, suspect.matrices)]


def rank(cfg: EvaluateConfig, suspect: Suspect, entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What each decoder reads in the suspect folder, the most suspicious layer first, with how far the folder is from the host.

    Decoders of a host that the folder is not of are passed over.

    Raises:
        UserError: it is of none of their hosts; says why for the first.
    """
    refused: dict[str, str] = {}
    scans, ranking = _scans(cfg, suspect, entries, refused), []
    # What came of the layers that a decoder reads together, until all have come.
    held: dict[str, dict[int, tuple[Edit, bool]]] = defaultdict(dict)
    for scan, layer, edit in read_once([*scans.values()]):
        for entry in entries:
            if scans.get(entry["host"]["fingerprint"]) is not scan or layer not in layers_of(entry) or entry["folder"] in refused:
                continue
            try:
                if isinstance(edit, ValueError):
                    raise edit
                held[entry["folder"]][layer] = edit, suspect.is_own(scan.host, layer)
                if len(held[entry["folder"]]) < len(layers_of(entry)):
                    continue
                came = held.pop(entry["folder"])
                own = replace(cfg, decoder=str(Path(cfg.decoder) / entry["folder"]))
                decoder, config = open_decoder(own, scan.host)
                edits, unedited = {layer: edit for layer, (edit, _) in came.items()}, all(is_own for _, is_own in came.values())
                found = answer(Voters([decoder], [config]), _in_order(edits), cfg.top, unedited=unedited)
            except ValueError as error:
                refused[entry["folder"]] = str(error)
                continue
            ranking.append(found | {"decoder": own.decoder, "fingerprint": entry["host"]["fingerprint"]})
    passed_over = [f"{entry['folder']}: {refused[entry['folder']]}" for entry in entries if entry["folder"] in refused]
    if not ranking:
        raise UserError(f"suspect={cfg.suspect}: no decoder of {cfg.decoder} can read it. {passed_over[0]}")
    ranking.sort(key=lambda found: (found["unedited"], -found["null_percentile"], -found["objects"][0]["probability"]))
    surroundings = around(scans[ranking[0]["fingerprint"]], as_list(ranking[0]["layer"]))
    return {"ranking": ranking, "refused": passed_over, "decoder": cfg.decoder} | surroundings


def _scans(cfg: EvaluateConfig, suspect: Suspect, entries: Sequence[Mapping[str, Any]], refused: dict[str, str]) -> dict[str, Scan]:
    """The suspect held against each host, by the host's fingerprint; says which decoders' hosts it is not of."""
    scans: dict[str, Scan] = {}
    for fingerprint in dict.fromkeys(entry["host"]["fingerprint"] for entry in entries):
        own = [entry for entry in entries if entry["host"]["fingerprint"] == fingerprint]
        try:
            host = open_host(cfg, own[0]["host"])
            scans[fingerprint] = Scan(suspect, host, {layer for entry in own for layer in layers_of(entry)})
        except ValueError as error:
            refused |= {entry["folder"]: str(error) for entry in own}
    return scans
