"""A folder of exported decoders: the best of every host and edited layer, an index, a card; and which of them fits a matrix.

Nothing here imports torch. `fitting` gives every decoder that fits, for readers of more than one matrix; `choose` wants exactly one.
"""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from decoder.checkpoint.names import find_weight
from decoder.config.options import as_list, layers_text
from decoder.export.best import Candidate, best_runs
from decoder.export.card import collection_card
from decoder.export.formats import COLLECTION_INDEX, layers_of
from decoder.export.save import CARD, CONFIG, WEIGHTS
from decoder.report.results import VALIDATION_SCORE, Found
from decoder.utils.errors import UserError, listed
from decoder.utils.files import whole_folder, write_text
from decoder.utils.json_files import read_described, write_json

FORMAT = 1
INDEX = "index.json"
EXPORTED = {CONFIG, WEIGHTS, CARD}
KEPT = ("host", "module", "edited_layer", "trained_layer", "shape", "base_sha256", "editors", "seed")


def export_best(found: Found, to: Path) -> Path:
    """Copies the best decoder of every host and edited layer, by validation, into `to` with index.json; returns that file.

    The folder appears whole or not at all; a collection that lies there, and holds nothing else, is replaced.

    Raises:
        UserError: no run has a decoder to export, or `to` holds something else.
    """
    best = best_runs(found)
    if not best:
        raise UserError(f"none of {len(found.results)} runs is finished and has a decoder; run train.py first")
    given, to = to, to.resolve()
    _check_replaceable(to, given)
    with whole_folder(to) as unfinished:
        entries = [_copy(one, unfinished) for one in best]
        write_json(unfinished / INDEX, {"format": FORMAT, "chosen_by": VALIDATION_SCORE, "decoders": entries})
        write_text(unfinished / CARD, collection_card(entries))
    return given / INDEX


def is_collection(folder: str | Path) -> bool:
    return (Path(folder) / INDEX).is_file()


def read_index(folder: str | Path) -> list[dict[str, Any]]:
    """The entries of a collection.

    Raises:
        ValueError: index.json is not whole, of a format this version does not know, or an entry is missing or of a wrong kind.
    """
    return read_described(Path(folder) / INDEX, FORMAT, COLLECTION_INDEX)["decoders"]


def fitting(
    entries: Iterable[Mapping[str, Any]],
    *,
    host: str | None = None,
    layer: int | None = None,
    tensors: Mapping[str, Sequence[int]] | None = None,
) -> list[Mapping[str, Any]]:
    """The decoders for a host (id, folder or name in the cache), an edited layer and a matrix of the given names and shapes.

    A tensor named like a decoder's module decides, of several such that of its shape; else the shape, in either orientation, rules
    decoders out.
    """
    fits = [entry for entry in entries if (host is None or _is_host(entry, host)) and (layer is None or layer in layers_of(entry))]
    if tensors is None:
        return fits
    named = [entry for entry in fits if all(find_weight(module, tensors) for module in as_list(entry["module"]))]
    return (
        [entry for entry in named if has_matrix(entry, tensors)]
        or named
        or [entry for entry in fits if any(sorted(shape) == sorted(entry["shape"]) for shape in tensors.values())]
    )


def choose(
    folder: str | Path, *, host: str | None = None, layer: int | None = None, tensors: Mapping[str, Sequence[int]] | None = None
) -> tuple[Path, str]:
    """The folder of the one decoder of a collection that fits, and why it was taken.

    Raises:
        UserError: none fits, or several do; says what there is and what would decide.
    """
    entries = read_index(folder)
    fits = fitting(entries, host=host, layer=layer, tensors=tensors)
    if len(fits) != 1:
        there = ", ".join(
            f"{entry['host']['id']} layer {layers_text(entry['edited_layer'])} ({_shape(entry)})" for entry in fits or entries
        )
        asked = [f"host={host}" if host else "", f"layer={layer}" if layer is not None else "", _shapes(tensors)]
        what = " and ".join(filter(None, asked)) or "this"
        if fits:
            raise UserError(f"decoder={folder}: {len(fits)} decoders fit {what}: {there}. Say which with layer=, or host= too")
        raise UserError(f"decoder={folder}: no decoder fits {what}; it has {there}")
    (entry,) = fits
    return Path(folder) / entry["folder"], _reason(entry, len(entries), layer, tensors)


def has_matrix(entry: Mapping[str, Any], tensors: Mapping[str, Sequence[int]]) -> bool:
    """Whether the matrix that a decoder reads is there, or all of them, by name and shape."""
    several = isinstance(entry["module"], list)
    names = [find_weight(module, tensors) for module in as_list(entry["module"])]
    shapes = entry["shape"] if several else [entry["shape"]]
    return all(name is not None and sorted(tensors[name]) == sorted(shape) for name, shape in zip(names, shapes, strict=True))


def _check_replaceable(to: Path, given: Path) -> None:
    """Refuses a folder unless all that it holds was written by an export."""
    if Path.cwd().is_relative_to(to):
        raise UserError(f"to={given}: it is the folder you are in, or one above it; give a folder of its own, as to=decoders")
    if to.exists() and not to.is_dir():
        raise UserError(f"to={given}: it is a file; give a folder")
    if not to.exists() or not any(to.iterdir()):
        return
    try:
        names = {entry["folder"] for entry in read_index(to)}
    except (ValueError, OSError):
        raise UserError(f"to={given}: the folder is not empty and no collection of decoders; give another one") from None
    foreign = [path for path in to.iterdir() if path.name not in {INDEX, CARD, *names} or (path.name in names) != _is_folder(path)]
    foreign += [file for name in names if _is_folder(to / name) for file in (to / name).iterdir() if file.name not in EXPORTED]
    if foreign:
        found = listed(sorted(str(path.relative_to(to)) for path in foreign))
        raise UserError(f"to={given}: beside its decoders it holds {found}, which no export wrote; move that away, or give another folder")


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _copy(one: Candidate, to: Path) -> dict[str, Any]:
    config = one.config
    name = f"{config['host']['id']}-e{'-'.join(map(str, layers_of(config)))}".replace("/", "--")
    if (to / name).exists():
        name += f"-{config['host']['fingerprint']}"
    # What else somebody keeps there is not sent around, and would stand in the way of replacing the collection.
    shutil.copytree(one.decoder, to / name, ignore=lambda _, names: set(names) - EXPORTED)
    scores = {split: {"n": score["n"], "exact_match": score["exact_match"]["value"]} for split, score in config["scores"].items()}
    kept = {key: config[key] for key in KEPT} | {"base_model": config.get("base_model")}
    return {"folder": name} | kept | {"validation": one.validation, "scores": scores, "run": one.run.name}


def _is_host(entry: Mapping[str, Any], host: str) -> bool:
    known = entry["host"]
    return host in (known["id"], known["path"], known["cached_as"]) or Path(host).name == (known["cached_as"] or known["id"])


def _reason(entry: Mapping[str, Any], count: int, layer: int | None, tensors: Mapping[str, Sequence[int]] | None) -> str:
    if layer is not None:
        why = "as asked"
    elif tensors and find_weight(as_list(entry["module"])[0], tensors):
        why = f"its matrix is {' and '.join(as_list(entry['module']))}"
    else:
        why = f"the only one of {_shape(entry)}" if tensors else "the only one"
    return f"{entry['folder']} of {count} decoders: host {entry['host']['id']}, edited layer {layers_text(entry['edited_layer'])}, {why}"


def _shape(entry: Mapping[str, Any]) -> str:
    shapes = entry["shape"] if isinstance(entry["module"], list) else [entry["shape"]]
    return ", ".join(dict.fromkeys("×".join(map(str, shape)) for shape in shapes))


def _shapes(tensors: Mapping[str, Sequence[int]] | None) -> str:
    return listed(f"{name} ({'×'.join(map(str, shape))})" for name, shape in (tensors or {}).items())
