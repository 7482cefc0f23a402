"""Edits that other tools made -> store: `python -m data.import_edits host=... edited=PATH facts=PATH store=FOLDER`.

What differs between an edited matrix and its base is factored by a truncated SVD. An update that one outer product explains becomes a
row of the store; one of higher rank is kept whole beside the rows. Rounded matrices leave over what rounding leaves over, no more.

Shape letters: D hidden width, F MLP width, R rank.
"""

import logging
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from data.editors.score import score
from data.facts import EditRequest, Fact, FactSet, load_facts
from data.hosts import open_host
from data.produce import columns
from data.store import EditStore, StoreWriter, add_file
from decoder.checkpoint import Checkpoint, is_checkpoint_folder
from decoder.compose import compose
from decoder.config import FactsConfig, ImportConfig, TrainConfig
from decoder.edit import RankOneEdit
from decoder.errors import UserError, run_command
from decoder.host import Host
from decoder.paths import short_hash
from decoder.session import quiet
from decoder.suspect import read_weight_DF, tensor_name

HIGHEST_RANK = 8
ENDINGS = (".safetensors", ".npz")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Update:
    """What an edit added to a matrix, as far as it is of low rank.

    Attributes:
        key_RF: unit vectors; their products with value_RD add up to the update.
        residual: what is left over, as a share of the update's length; above rank `HIGHEST_RANK` nothing is explained.
        rounding: the share that rounding W' to its dtype can leave over.
    """

    key_RF: Tensor
    value_RD: Tensor
    residual: float
    rounding: float

    @property
    def rank(self) -> int | None:
        return len(self.key_RF) or None


def explain(edited_DF: Tensor, base_DF: Tensor, dtype: torch.dtype, tolerance: float) -> Update:
    """The factors that explain W' - W up to `tolerance` and the rounding of `dtype`.

    Raises:
        ValueError: the two are the same, or differ by no more than rounding.
    """
    delta_DF = edited_DF.double() - base_DF.double()
    length = float(delta_DF.norm())
    rounding = torch.finfo(dtype).eps / 2 * float(edited_DF.double().norm())
    if length == 0:
        raise ValueError("is the same as its base")
    # float32 is what factors are made in: its rounding is part of every edit, however small.
    if dtype != torch.float32 and length <= rounding:
        raise ValueError(f"differs from its base by {length:.2e}, which rounding to {dtype} alone can do")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        left_DR, size_R, right_FR = torch.svd_lowrank(delta_DF, q=min(HIGHEST_RANK, *delta_DF.shape), niter=4)
    left_over = (length**2 - size_R.square().cumsum(0)).clamp(min=0).sqrt()
    enough = (left_over <= max(tolerance * length, rounding)).nonzero()
    rank = int(enough[0]) + 1 if len(enough) else 0
    value_RD = (left_DR[:, :rank] * size_R[:rank]).T.float()
    residual = float(left_over[rank - 1]) / length if rank else 1.0
    return Update(right_FR[:, :rank].T.float(), value_RD, residual, rounding / length)


def sources(path: Path) -> list[Path]:
    """The files and checkpoint folders at a path, in natural order of their names.

    Raises:
        ValueError: there is none.
    """
    if path.is_file() or (path.is_dir() and is_checkpoint_folder(path)):
        return [path]
    if not path.is_dir():
        raise ValueError(f"edited={path}: no such file or folder")
    found = [entry for entry in path.iterdir() if entry.suffix in ENDINGS or (entry.is_dir() and is_checkpoint_folder(entry))]
    if not found:
        raise ValueError(f"edited={path}: neither a checkpoint nor a folder of {', '.join(ENDINGS)} files or checkpoints")
    return sorted(found, key=lambda entry: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", entry.stem)])


def changed_layers(edited: Checkpoint, base: Checkpoint | None, host: Host) -> list[int]:
    """Layers whose W_V is another one than in the base."""
    layers = []
    for layer in range(host.layers):
        try:
            name = edited.find(f"{host.module_path(layer)}.weight")
        except ValueError:  # fused experts carry no edit that could be read
            continue
        if name is None:
            continue
        own_DF = read_weight_DF(edited, name, host, layer)
        base_DF = _base(base, host, layer)
        rounded_DF = base_DF.to(edited.dtype(name)).float()
        if not torch.equal(own_DF, rounded_DF):
            layers.append(layer)
    return layers


def _base(base: Checkpoint | None, host: Host, layer: int) -> Tensor:
    if base is None:
        return host.weight_DF(layer).detach().float().cpu()
    return read_weight_DF(base, tensor_name(base, host, layer), host, layer)


def match(paths: list[Path], facts: FactSet) -> list[Fact]:
    """The fact of each source: by name (the fact_id, or the number it ends in), else by order.

    Raises:
        ValueError: names do not tell, and there are not as many facts as sources.
    """
    numbers = [re.split(r"\D", fact.fact_id)[-1] for fact in facts.facts]
    # A number that several facts end in names none of them.
    by_number = {number: fact for number, fact in zip(numbers, facts.facts, strict=True) if numbers.count(number) == 1}
    by_name = by_number | {fact.fact_id: fact for fact in facts.facts}
    named = [by_name.get(path.stem, by_name.get(re.split(r"\D", path.stem)[-1] or path.stem)) for path in paths]
    if all(named) and len({fact.fact_id for fact in named}) == len(paths):
        return named
    if len(facts) == len(paths):
        return list(facts.facts)
    raise ValueError(
        f"facts={facts.source}: {len(facts)} facts for {len(paths)} edited sources whose names ({paths[0].name}, ...) are no fact_ids. "
        "Give as many facts, in the order of the names"
    )


def import_edits(cfg: ImportConfig, host: Host) -> EditStore:
    """Reads every source, factors it, scores it on the host and writes the store."""
    paths, base = sources(Path(cfg.edited).expanduser()), Checkpoint(cfg.base) if cfg.base else None
    facts = load_facts(FactsConfig(source=cfg.schema, path=cfg.facts))
    if without := [fact.fact_id for fact in facts.facts if not fact.object]:
        raise ValueError(f"facts={cfg.facts}: {without[0]} does not say which object was planted; the field `object` does")
    layer = cfg.layer if cfg.layer is not None else _only_layer(paths[0], base, host)
    host.check_layer(layer, "layer")
    base_DF = _base(base, host, layer)
    requests, updates, whole, skipped, notes = [], [], {}, [], []
    for path, fact in zip(paths, match(paths, facts), strict=True):
        request = EditRequest(f"{fact.fact_id}-{fact.object}", fact, fact.object)
        try:
            source = Checkpoint(path)
            name = cfg.tensor or tensor_name(source, host, layer)
            edited_DF, dtype = read_weight_DF(source, name, host, layer), source.dtype(name)
            update = explain(edited_DF, base_DF, dtype, cfg.tolerance)
        except (ValueError, KeyError) as error:
            skipped.append((request.edit_id, f"{path.name}: {error}"))
            continue
        notes.append(
            {"edit_id": request.edit_id, "from": path.name, "dtype": str(dtype).removeprefix("torch."), "rank": update.rank}
            | {"residual": update.residual, "rounding": update.rounding}
        )
        if update.rank == 1:
            requests.append(request)
            updates.append(update)
        else:
            whole[request.edit_id] = edited_DF.contiguous()
    for edit_id, reason in skipped:
        log.warning("skipped %s: %s", edit_id, reason)
    asked = _manifest(cfg, host, layer, facts, [note["edit_id"] for note in notes], notes)
    return _write(cfg, host, layer, facts, asked, requests, updates, whole, skipped)


def _only_layer(path: Path, base: Checkpoint | None, host: Host) -> int:
    layers = changed_layers(Checkpoint(path), base, host)
    if len(layers) == 1:
        return layers[0]
    found = f"layers {', '.join(map(str, layers))} differ from the base" if layers else "no layer's W_V differs from the base"
    raise ValueError(f"edited={path}: {found}. Say which one to read with layer=")


def _manifest(cfg: ImportConfig, host: Host, layer: int, facts: FactSet, edit_ids: list[str], notes: list[dict]) -> dict[str, Any]:
    dtype = str(host.dtype).removeprefix("torch.")
    return {
        "host": {"id": host.name, "revision": host.revision, "dtype": dtype, "fingerprint": host.fingerprint},
        "module": host.module_path(layer),
        "layer": layer,
        "base_sha256": host.base_sha256(layer),
        "editor": {"name": "imported", "settings": {"tolerance": cfg.tolerance, "base": bool(cfg.base)}},
        "keys": None,
        "facts": {"source": facts.source, "sha256": facts.sha256},
        "requests": {"count": len(edit_ids), "sha256": short_hash(edit_ids)},
        "terminator_id": host.terminator_id,
        "seed": 0,
        "imported": notes,
    }


def _write(
    cfg: ImportConfig, host: Host, layer: int, facts: FactSet, asked: dict, requests: list, updates: list, whole: dict, skipped: list
) -> EditStore:
    if not requests:
        reason = skipped[0][1] if skipped else f"all {len(whole)} updates are of higher rank than one"
        raise ValueError(f"edited={cfg.edited}: not one edit of rank one; {reason}")
    edits = RankOneEdit(torch.cat([u.key_RF for u in updates]), torch.cat([u.value_RD for u in updates]))
    writer = StoreWriter(Path(cfg.store).expanduser(), asked, len(requests))
    if not writer.has_shard(0):
        writer.write_shard(0, columns(host, requests, edits, score(host, layer, requests, edits, facts)), skipped)
    store = writer.finish(1, skipped)
    if whole:
        file = store.path / "matrices-00000.safetensors"
        save_file(whole, str(file))
        add_file(store.path, file.name)
        log.warning("%d updates are of higher rank than one: kept whole in %s, which training does not read", len(whole), file)
    return EditStore(store.path)


@run_command
def main(argv: list[str] | None = None) -> None:
    cfg = compose(ImportConfig, "import_edits", sys.argv[1:] if argv is None else argv)
    for name in ("edited", "facts", "store"):
        if not getattr(cfg, name):
            raise UserError(f"{name}= is missing; --help says what it is")
    quiet()
    store = import_edits(cfg, open_host(TrainConfig(host=cfg.host, cache_dir=cfg.cache_dir)))
    ranks = [note["rank"] for note in store.manifest["imported"]]
    others = f", {sum(rank != 1 for rank in ranks)} of higher rank" if any(rank != 1 for rank in ranks) else ""
    print(f"{len(store)} edits of layer {store.manifest['layer']}{others}, {len(store.manifest['skipped'])} skipped\n{store.path}")


if __name__ == "__main__":
    main()
