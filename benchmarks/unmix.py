"""How well the facts of one matrix are told apart by the matrix alone: sums of single edits whose terms are known.

    python benchmarks/unmix.py stores=[STORE,...] [counts=[2,4,8,16,32,64]] [hosts=60] [split=test] [freedom=3]

Edits of different subjects that came out are drawn from a store of single facts, `count` of them for a host, and added up. Of each planted
value the table has its cosine with the part that is its own in the best one-to-one match, and how many are nearly the same. `split=train`
draws from training edits of the default splits, on which `freedom` was chosen; `split=all` from all.

Shape letters: B edits, R terms, D hidden width, F MLP width.
"""

import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median

import torch
from common import settings
from scipy.optimize import linear_sum_assignment
from torch.nn.functional import normalize

from data.facts.load import load_pocket
from data.facts.splits import draw_splits
from data.store.store import EditStore
from decoder.config import SplitsConfig
from decoder.edit import LowRankEdit, RankOneEdit
from decoder.parts import unmix
from decoder.utils.errors import run_command

NEAR = (0.9, 0.95)


@dataclass
class Settings:
    stores: list[str] = field(default_factory=list)
    counts: list[int] = field(default_factory=lambda: [2, 4, 8, 16, 32, 64])
    hosts: int = 60
    split: str = "test"  # or train, all
    freedom: float = unmix.FREEDOM
    seed: int = 0


def rows_of(store: EditStore, split: str) -> list[int]:
    table, plan = store.table(), draw_splits(load_pocket(), SplitsConfig())
    rows = table.index[table["success"]].tolist()
    if split == "all":
        return rows
    is_train = [plan.split_of(*table.loc[row, ["relation", "subject", "object"]]) == "train" for row in rows]
    return [row for row, own in zip(rows, is_train, strict=True) if own == (split == "train")]


def hosts_of(store: EditStore, cfg: Settings, count: int) -> Iterator[RankOneEdit]:
    """The single edits of each host."""
    rows, generator, subject = rows_of(store, cfg.split), random.Random(cfg.seed), store.table()["subject"]
    for _ in range(cfg.hosts):
        drawn = {subject[row]: row for row in generator.sample(rows, len(rows))}
        if len(drawn) >= count:
            yield store.edits(torch.tensor([*drawn.values()][:count]))


def cosines(planted: RankOneEdit, found: RankOneEdit) -> list[float]:
    cosine_RR = (normalize(planted.value_BD, dim=1) @ normalize(found.value_BD, dim=1).T).abs().numpy()
    return cosine_RR[linear_sum_assignment(cosine_RR, maximize=True)].tolist()


@run_command
def main(argv: list[str] | None = None) -> None:
    cfg = settings(Settings, sys.argv[1:] if argv is None else argv)
    torch.set_num_threads(1)
    unmix.FREEDOM = cfg.freedom
    print("| edits | facts | hosts | cosine of values | above 0.9 | above 0.95 | ms a host |\n" + "| --- " * 7 + "|")
    for place in cfg.stores:
        store = EditStore(Path(place).expanduser())
        name = f"{store.manifest['editor']['name']}, {store.manifest['host']['id']}"
        for count in cfg.counts:
            found, seconds = [], []
            for planted in hosts_of(store, cfg, count):
                start = time.perf_counter()
                (parts,) = unmix.unmixed(LowRankEdit(planted.key_BF[None], planted.value_BD[None]))
                seconds.append(time.perf_counter() - start)
                found.append(cosines(planted, parts))
            if not found:
                continue
            near = [fmean(cosine > level for own in found for cosine in own) for level in NEAR]
            cells = [fmean(map(fmean, found)), *near]
            print(f"| {name} | {count} | {len(found)} | {' | '.join(f'{cell:.3f}' for cell in cells)} | {1000 * median(seconds):.0f} |")


if __name__ == "__main__":
    main()
