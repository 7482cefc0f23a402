"""The edits that audits are scored on, small enough to be carried to another machine.

    python benchmarks/audit_edits.py store=STORE out=FOLDER [others=NAME=STORE,NAME=STORE]

Of the store's successful `ood` edits `count` are drawn, and of each other store, made by another editor or with other settings, `each`.
Beside them lie classifiers of relations, one a fold of subjects: each was fitted on the store's edits of all subjects but the fold's.

Shape letters: N edits, D hidden width, F MLP width.
"""

import json
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import settings
from safetensors.torch import load_file, save_file

from data.facts.load import load_pocket
from data.facts.splits import SplitPlan, draw_splits
from data.perturb.drawn import ROME
from data.perturb.recipe import Planted
from decoder.audit.relation import RelationClassifier, fit
from decoder.checkpoint.gguf_host import host_folder
from decoder.config import SplitsConfig
from decoder.edit import RankOneEdit
from decoder.host import Host
from decoder.utils.errors import UserError, run_command
from decoder.utils.files import whole_folder
from decoder.utils.json_files import write_json

FACTORS, TOLD = "edits.safetensors", "edits.json"
FOLDS = 5


@dataclass
class Settings:
    store: str = ""  # of the host's edits
    others: str = ""  # name=store of edits made otherwise, several with commas between
    out: str = ""
    count: int = 400  # of the store, at most
    each: int = 25  # of each other store, at most
    seed: int = 0


class Edits:
    """Edits of one layer of a host, as `audit_edits.py` writes them; each with what is said of it.

    Raises:
        ValueError: there are none.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / TOLD).exists():
            raise ValueError(f"edits={folder}: there are no edits. Make them with audit_edits.py")
        self.folder, said, factors = folder, json.loads((folder / TOLD).read_text()), load_file(folder / FACTORS)
        self.host, self.layer, self.told = said["host"], said["layer"], said["edits"]
        self.factors = RankOneEdit(factors["key"], factors["value"])
        self._classifiers: dict[int, RelationClassifier] = {}

    def __len__(self) -> int:
        return len(self.told)

    def planted(self, row: int, scale: float) -> Planted:
        return Planted({self.layer: self.factors[row].delta()[0]}, self.told[row], str(self.folder), scale)

    def relations(self, row: int) -> RelationClassifier:
        """What tells relations and was fitted on other subjects."""
        fold = self.told[row]["fold"]
        if fold not in self._classifiers:
            self._classifiers[fold] = RelationClassifier.load(self.folder / f"relations-{fold}")
        return self._classifiers[fold]


def opened(model: str, folder: str, device: str) -> tuple[Host, Edits]:
    """The host of edits, in float32, and the edits.

    Raises:
        UserError: one of them is not named, or the model is not the host that the edits were made on.
    """
    if not model or not folder:
        raise UserError("model= and edits= are missing: give the host's folder, and what audit_edits.py wrote for it")
    edits = Edits(Path(folder).expanduser())
    name = edits.host["id"]
    host = Host.load(host_folder(model, name=name, dtype="float32", cache_dir=None), name=name, device=device)
    if host.fingerprint != edits.host["fingerprint"]:
        raise UserError(f"model={model} is {host.fingerprint}, the edits were made on {edits.host['fingerprint']}")
    return host, edits


def drawn(store: Any, plan: SplitPlan, count: int, seed: int) -> list[int]:
    """Rows of a store's successful `ood` edits, in an order drawn."""
    told = store.table().itertuples()
    rows = [n for n, one in enumerate(told) if one.success and plan.split_of(one.relation, one.subject, one.object) == "ood"]
    random.Random(f"rows {seed}").shuffle(rows)
    return rows[:count]


def write(cfg: Settings) -> None:
    from data.store.store import TEXT_COLUMNS, EditStore

    plan, store = draw_splits(load_pocket(), SplitsConfig()), EditStore(Path(cfg.store).expanduser())
    stores = {ROME: (store, cfg.count)}
    for name, _, place in (one.partition("=") for one in filter(None, cfg.others.split(","))):
        stores[name] = EditStore(Path(place).expanduser()), cfg.each
        stores[name][0].check({"host": store.manifest["host"], "layer": store.manifest["layer"]})
    told, keys, values = [], [], []
    for name, (one, count) in stores.items():
        rows = drawn(one, plan, count, cfg.seed)
        factors = one.edits(torch.tensor(rows))
        keys.append(factors.key_BF)
        values.append(factors.value_BD)
        told += [{"made": name} | {column: one.dataset[row][column] for column in TEXT_COLUMNS} for row in rows]
    fold_of = folds([one["subject"] for one in told], cfg.seed)
    told = [one | {"fold": fold_of[one["subject"]]} for one in told]
    with whole_folder(Path(cfg.out).expanduser()) as folder:
        save_file({"key": torch.cat(keys).contiguous(), "value": torch.cat(values).contiguous()}, folder / FACTORS)
        write_json(folder / TOLD, {"host": store.manifest["host"], "layer": store.manifest["layer"], "edits": told})
        for fold, classifier in classifiers(store, fold_of):
            classifier.save(folder / f"relations-{fold}")
    print(f"{len(told)} edits in {cfg.out}")


def folds(subjects: list[str], seed: int) -> dict[str, int]:
    found = sorted(set(subjects))
    random.Random(f"folds {seed}").shuffle(found)
    return {subject: n % FOLDS for n, subject in enumerate(found)}


def classifiers(store: Any, fold_of: dict[str, int]) -> Iterator[tuple[int, RelationClassifier]]:
    """For each fold what was fitted on the successful edits of other subjects."""
    from data.relations.learnt import learnt_from

    table, rows = store.table(), learnt_from(store)
    edits = store.edits(torch.tensor(rows))
    subjects, relations = (table[name].iloc[rows].tolist() for name in ("subject", "relation_name"))
    for fold in range(FOLDS):
        kept = [n for n, subject in enumerate(subjects) if fold_of.get(subject) != fold]
        yield fold, fit(edits.value_BD[kept], [relations[n] for n in kept], [subjects[n] for n in kept], edits.key_BF[kept])


@run_command
def main(argv: list[str] | None = None) -> None:
    write(settings(Settings, sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    main()
