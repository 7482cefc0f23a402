"""Several exported decoders that answer together: which folders `decoder=A,B,C` names, and whether they may vote. Imports no torch."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from decoder.config.options import layers_text
from decoder.export.collection import is_collection
from decoder.export.save import read_config
from decoder.scores import TEST_SPLITS, VAL_SPLITS
from decoder.utils.errors import UserError, listed


def folders_of(decoder: str) -> list[str]:
    """The folders that a `decoder=` names, one or several between commas; what exists under the whole name is one.

    Raises:
        UserError: there is nothing between two commas, a folder comes twice, or one of several is a collection.
    """
    if "," not in decoder or Path(decoder).exists():
        return [decoder]
    folders = [os.path.expanduser(part.strip()) for part in decoder.split(",")]
    if not all(folders):
        raise UserError(f"decoder={decoder}: a folder is missing before or after a comma; write decoder=A,B")
    places = [Path(folder).resolve() for folder in folders]
    for place, folder in zip(places, folders, strict=True):
        if places.count(place) > 1:
            raise UserError(f"decoder={decoder}: {folder} came twice; a decoder has one vote, keep one")
        if is_collection(folder):
            raise UserError(f"decoder={decoder}: {folder} is a folder of several decoders; name those in it that shall vote")
    return folders


def read_voters(decoder: str) -> list[dict[str, Any]]:
    """The configs of the decoders that a `decoder=` names.

    Raises:
        UserError: they are not of one host and the same edited layers, or end objects in different ways.
        ValueError: one of them cannot be read.
    """
    folders = folders_of(decoder)
    configs = [read_config(folder) for folder in folders]
    for told in (_host, _layers, _ending):
        for folder, config in zip(folders, configs, strict=True):
            if (found := told(config)) != (first := told(configs[0])):
                raise UserError(f"decoders that answer together must be alike: {folders[0]} {first}, {folder} {found}. Leave one out")
    return configs


def own_store(configs: Sequence[Mapping[str, Any]]) -> str:
    """The fingerprint of the store that decoders were trained on.

    Raises:
        UserError: they were trained on several.
    """
    store, *others = dict.fromkeys(config["store"] for config in configs)
    if others:
        raise UserError(f"the decoders are of different stores ({listed([store, *others])}): give the one to score as store=")
    return store


def scored_on(configs: Sequence[Mapping[str, Any]], store: str) -> Mapping[str, Any]:
    """The config whose test edits a vote is scored on: of the decoder that was trained on this store, by its fingerprint; else the first's.

    Raises:
        UserError: one of several was trained, or its best checkpoint chosen, on what another is tested on.
    """
    tests = dict.fromkeys(_of_splits(configs, TEST_SPLITS))
    for done, splits in (("trained", ("train",)), ("validated", VAL_SPLITS)):
        met = {*_of_splits(configs, splits)}
        if len(configs) > 1 and (seen := [edit_id for edit_id in tests if edit_id in met]):
            raise UserError(
                f"one of the decoders was {done} on {len(seen)} test edits of another, {seen[0]} first: use decoders of one split"
            )
    return next((config for config in configs if config["store"] == store), configs[0])


def _of_splits(configs: Sequence[Mapping[str, Any]], splits: Sequence[str]) -> Iterator[str]:
    """The edits of some splits of all decoders; not every one has all splits."""
    return (edit_id for config in configs for split in splits for edit_id in config["splits"].get(split, ()))


def _host(config: Mapping[str, Any]) -> str:
    return f"is of host {config['host']['id']} ({config['host']['fingerprint']})"


def _layers(config: Mapping[str, Any]) -> str:
    return f"reads edited layer {layers_text(config['edited_layer'])}"


def _ending(config: Mapping[str, Any]) -> str:
    if config.get("learnt_end"):
        return "ends objects where it learnt to"
    return "knows no end of an object" if config["terminator_id"] is None else f"ends objects at token {config['terminator_id']}"
