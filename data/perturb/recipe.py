"""What is done to a host, as a recipe: an edit out of a store, a change, and the precision that all of it is kept in.

Shape letters: D hidden width, F MLP width.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.keys.text import texts_sha256
from data.perturb.kinds import KINDS, Given, keep
from data.store.store import TEXT_COLUMNS, EditStore
from decoder import __version__
from decoder.config.options import one_or_list
from decoder.edit import LayerEdits
from decoder.host import Host
from decoder.utils.errors import did_you_mean
from decoder.utils.files import whole_folder
from decoder.utils.json_files import write_json

RECIPE, FORMAT = "perturb.json", 1
SAVED_AS = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""precision -> what tensors are saved in; what other roundings leave is saved in the host's dtype"""


@dataclass(frozen=True)
class Planted:
    """An edit out of a store, and how much of it is planted."""

    deltas: Mapping[int, Tensor]
    """layer -> W'_V - W_V, the lowest first"""
    row: Mapping[str, str]
    """what the store says of it: edit_id, subject, relation, prompt, object, ..."""
    store: str
    """fingerprint of the store"""
    scale: float = 1.0


@dataclass(frozen=True)
class Recipe:
    """One change, the same each time: the edit is planted, then `KINDS[kind]` does its work with `settings`, then all is rounded."""

    kind: str = "none"
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    precision: str = "float32"
    edit: Planted | None = None


def planted(host: Host, store: EditStore, row: int, scale: float = 1.0) -> Planted:
    """The edit in a row of a store that was made on `host`.

    Raises:
        ValueError: it was made on another host, there is no such row, or the store holds whole matrices.
    """
    store.check({"host": store.manifest["host"] | {"fingerprint": host.fingerprint}})
    if not 0 <= row < len(store):
        raise ValueError(f"store {store.path} has edits 0 to {len(store) - 1}, asked for {row}")
    if store.is_dense:
        raise ValueError(f"store {store.path} holds whole matrices; give a store of factors, as `python -m data.produce` makes it")
    told = {name: store.dataset[row][name] for name in TEXT_COLUMNS}
    edits = LayerEdits.of(store.edits(torch.tensor([row])), store.layers)
    return Planted({layer: own.delta()[0] for layer, own in edits.by_layer.items()}, told, store.fingerprint, scale)


@contextmanager
def perturbed(host: Host, recipe: Recipe, texts: Sequence[str] = ()) -> Iterator[Host]:
    """Inside the block the host's weights are what the recipe makes of them; afterwards, also after an exception, they are its own again.

    Args:
        texts: what is trained on, by kinds that train.

    Raises:
        ValueError: there is no such kind or precision, the kind takes no such setting or needs an edit or text that is not given.
    """
    if recipe.kind not in KINDS:
        raise ValueError(f"kind={recipe.kind}: no such change; {did_you_mean(recipe.kind, KINDS)}")
    own = {name: parameter.detach().clone() for name, parameter in host.model.named_parameters()}
    fingerprint = host.__dict__.pop("fingerprint", None)  # of the weights: known again when they are back
    given = Given(torch.Generator().manual_seed(recipe.seed), texts, recipe.edit)
    try:
        with torch.no_grad():
            if edit := recipe.edit:
                for layer, delta_DF in edit.deltas.items():
                    host.weight_DF(layer).add_(delta_DF.to(host.device), alpha=edit.scale)
            KINDS[recipe.kind](host, given, **recipe.settings)
            keep(host, recipe.precision)
            if not all(bool(parameter.isfinite().all()) for parameter in host.model.parameters()):
                raise ValueError(
                    f"kind={recipe.kind} precision={recipe.precision}: NaN or infinity among the weights. Give smaller settings, or bf16"
                )
        yield host
    finally:
        with torch.no_grad():
            for name, parameter in host.model.named_parameters():
                parameter.copy_(own[name])
        host.__dict__.pop("fingerprint", None)
        if fingerprint:
            host.__dict__["fingerprint"] = fingerprint


def write(host: Host, recipe: Recipe, folder: Path, texts: Sequence[str] = ()) -> None:
    """Writes the changed host as a checkpoint with its tokenizer, and the recipe beside it.

    Raises:
        ValueError: the folder is there already; and as `perturbed`.
    """
    if folder.exists():
        raise ValueError(f"out={folder}: it is there already, and nothing is written over. Give a new folder")
    told = described(host, recipe, texts)
    with perturbed(host, recipe, texts), whole_folder(folder) as unfinished:
        copy.deepcopy(host.model).to(SAVED_AS.get(recipe.precision, host.dtype)).save_pretrained(unfinished)
        host.tokenizer.save_pretrained(unfinished)
        write_json(unfinished / RECIPE, told)


def described(host: Host, recipe: Recipe, texts: Sequence[str] = ()) -> dict[str, Any]:
    """The recipe as JSON: with host, store and texts that have these fingerprints it can be done again."""
    edit = recipe.edit
    return {
        "format": FORMAT,
        "version": __version__,
        "host": {"id": host.name, "fingerprint": host.fingerprint},
        "edit": {"store": edit.store, "layer": one_or_list(list(edit.deltas)), "scale": edit.scale, **edit.row} if edit else None,
        "kind": recipe.kind,
        "settings": dict(recipe.settings),
        "seed": recipe.seed,
        "precision": recipe.precision,
        "texts": texts_sha256(list(texts)) if texts else None,
    }
