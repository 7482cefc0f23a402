"""How many edits it takes to learn what tells the relation of an edit by its value.

    python benchmarks/audit_relations.py store=STORE host=HOST [sizes=50,100,200,400,800] [repeats=3]

A quarter of the subjects is left out, by seed; of the others' edits that `python -m data.relations` would learn from, so many are drawn
and the classifier is fitted on them. It is asked about the edits of the subjects that were left out, whose values are read out of
bfloat16: the difference of the edited matrix, rounded, and the host's own along the key.

Shape letters: N edits, D hidden width, F MLP width.
"""

import random
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from common import Row, quartile_distance, rate, settings, write
from torch import Tensor

from data.relations.learnt import learnt_from
from data.store.store import EditStore
from decoder.audit.relation import fit
from decoder.checkpoint.gguf_host import host_folder
from decoder.edit import RankOneEdit
from decoder.host import Host
from decoder.utils.errors import UserError, run_command

LEFT_OUT = 0.25


@dataclass
class Settings:
    out: str = ""  # file of the JSON; empty is benchmarks/results/audit_relations.json
    repeats: int = 3  # draws of subjects and edits
    store: str = ""  # of factors, as python -m data.produce makes it
    host: str = ""  # folder or GGUF file of its host
    sizes: str = "50,100,200,400,800"  # edits to learn from; all that there are come last


def read_out(edits: RankOneEdit, weight_DF: Tensor) -> Tensor:
    """Values (N, D) as W' in bfloat16 has them, the host's own W_V and the keys being known."""
    values = []
    for key_F, value_D in zip(edits.key_BF, edits.value_BD, strict=True):
        edited_DF = (weight_DF + torch.outer(value_D, key_F)).bfloat16().float()
        values.append((edited_DF - weight_DF) @ key_F / key_F.square().sum())
    return torch.stack(values)


def curve(cfg: Settings, store: EditStore, weight_DF: Tensor) -> list[Row]:
    """A row a size: the share of edits whose relation comes first, over all draws."""
    table, rows = store.table(), learnt_from(store)
    edits = store.edits(torch.tensor(rows))
    relations, subjects = (table[name].iloc[rows].tolist() for name in ("relation_name", "subject"))
    value_ND, known = read_out(edits, weight_DF), sorted(set(subjects))
    hits: dict[str, list[list[bool]]] = {}
    for seed in range(cfg.repeats):
        draw = random.Random(seed)
        out = set(draw.sample(known, round(LEFT_OUT * len(known))))
        asked = [n for n, subject in enumerate(subjects) if subject in out]
        others = [n for n, subject in enumerate(subjects) if subject not in out]
        draw.shuffle(others)
        for size in (*(size for size in map(int, cfg.sizes.split(",")) if size < len(others)), None):
            train = others[:size]
            found = fit(edits.value_BD[train], *([names[n] for n in train] for names in (relations, subjects)))
            told = found.probabilities(value_ND[asked]).argmax(1).tolist()
            hits.setdefault(str(size or "all"), []).append([found.relations[k] == relations[n] for k, n in zip(told, asked, strict=True)])
    return [_row(size, draws, len(set(relations))) for size, draws in hits.items()]


def _row(size: str, draws: list[list[bool]], relations: int) -> Row:
    shares = [sum(hits) / len(hits) for hits in draws]
    note = f"{rate([hit for hits in draws for hit in hits])} of {sum(map(len, draws))} in {len(draws)} draws, {relations} relations"
    spread = quartile_distance(shares)
    return Row(f"relation, learnt from {size} edits", "share told", statistics.mean(shares), spread=spread, repeats=len(draws), note=note)


@run_command
def main(argv: list[str] | None = None) -> None:
    cfg = settings(Settings, sys.argv[1:] if argv is None else argv)
    if not cfg.store or not cfg.host:
        raise UserError("store= and host= are both needed: the store of edits, and the folder or GGUF file of its host")
    store = EditStore(Path(cfg.store))
    if len(store.layers) > 1 or store.is_dense:
        raise UserError(f"store {store.path}: expected edits of one layer, stored as factors")
    host = Host.load(host_folder(cfg.host, name="host", dtype="float32", cache_dir=None), name="host")
    store.check({"host": store.manifest["host"] | {"fingerprint": host.fingerprint}})
    write("audit_relations", curve(cfg, store, host.weight_DF(store.layers[0]).float()), cfg.out)


if __name__ == "__main__":
    main()
