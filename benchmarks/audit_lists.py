"""Whom an edit is about, out of lists of different lengths: what an audit says at the edited layer, base known and unknown.

    python benchmarks/audit_lists.py model=FOLDER edits=FOLDER [names=100000] [count=100] [precision=bf16]

The names' keys at the layer are those of the host as it is kept: below its edit an edited host is the host. `edits` is what
`audit_edits.py` wrote for it. The names are the facts' subjects and made-up ones, a shorter list is the beginning of a longer one.

Shape letters: C candidates, D hidden width, F MLP width.
"""

import sys
import time
from collections import Counter
from dataclasses import dataclass

import torch
from audit_checkpoints import subjects
from audit_edits import Edits, opened
from common import rate, settings
from rich.console import Console
from rich.table import Table
from torch import Tensor

from data.facts.load import load_pocket
from data.perturb.recipe import Recipe, perturbed
from decoder.audit.candidates import Candidates, unit, whitener
from decoder.audit.locate import STANDS_OUT, outstanding
from decoder.audit.reversal import image
from decoder.audit.rows.keys import WHITENING, gathered
from decoder.host import Host
from decoder.utils.errors import run_command
from decoder.utils.progress import progress
from decoder.utils.terminal import quiet

LENGTHS = (1_000, 4_000, 20_000, 100_000)


@dataclass
class Settings:
    model: str = ""  # folder or GGUF file of the host
    edits: str = ""  # folder that audit_edits.py wrote
    precision: str = "bf16"  # that suspects are kept in
    names: int = LENGTHS[-1]  # in the longest list; the facts' subjects at least
    count: int = 100  # edits
    seed: int = 0
    device: str = "cpu"


class Listed:
    """Names, and their whitened keys at a layer as an audit of that many names has them."""

    def __init__(self, names: list[str], keys_CF: Tensor) -> None:
        self.place = {name: n for n, name in enumerate(names)}
        whiten = whitener(keys_CF[:: -(-len(keys_CF) // WHITENING)])
        self.keys_CF = torch.cat([unit(whiten(part_NF)) for part_NF in keys_CF.split(8192)])

    def asked(self, weight_DF: Tensor, delta_DF: Tensor, subject: str) -> dict[str, bool]:
        """Whether the subject comes first, and whether it, and without it somebody else, stands out as an edit's subject does."""
        own, lengths_C = self.place[subject], image(weight_DF, self.keys_CF).norm(dim=1)
        scores_C, _ = outstanding(lengths_C)
        others_C, _ = outstanding(torch.cat([lengths_C[:own], lengths_C[own + 1 :]]))
        along_C = (self.keys_CF @ torch.svd_lowrank(delta_DF, q=6)[2][:, :1]).abs().flatten()
        return {
            "known": int(along_C.argmax()) == own,
            "unknown": int(scores_C.argmax()) == own,
            "unknown, ten likeliest": own in scores_C.topk(10).indices.tolist(),
            "stands out": float(scores_C.max()) >= STANDS_OUT,
            "stands out, off the list": float(others_C.max()) >= STANDS_OUT,
        }


def run(cfg: Settings, host: Host, edits: Edits) -> Table:
    facts, rows = load_pocket(), [*range(min(cfg.count, len(edits)))]
    names = subjects(host, facts, cfg.names, cfg.seed)
    with perturbed(host, Recipe(precision=cfg.precision)):
        clean_DF, began = host.weight_DF(edits.layer).clone(), time.perf_counter()
        with progress("names through the host", len(names)) as advance:
            keys_CF = gathered(Candidates(host, names), [edits.layer], advance)[edits.layer]
        print(f"{len(names):,} names up to layer {edits.layer}: {time.perf_counter() - began:.0f} s")
    hits: dict[int, Counter[str]] = {}
    for length in [one for one in LENGTHS if one < len(names)] + [len(names)]:
        listed, hits[length] = Listed(names[:length], keys_CF[:length]), Counter()
        with progress(f"edits, {length:,} names", len(rows)) as advance:
            for row in rows:
                with perturbed(host, Recipe(precision=cfg.precision, edit=edits.planted(row, 1.0))):
                    weight_DF = host.weight_DF(edits.layer)
                    hits[length].update(listed.asked(weight_DF, weight_DF - clean_DF, edits.told[row]["subject"]))
                advance(1)
    return _table(hits, len(rows))


def _table(hits: dict[int, Counter[str]], count: int) -> Table:
    table = Table("names", *next(iter(hits.values())), title=f"Whom {count} edits are about", title_justify="left")
    for length, found in hits.items():
        table.add_row(f"{length:,}", *(rate([n < right for n in range(count)]) for right in found.values()))
    return table


@run_command
def main(argv: list[str] | None = None) -> None:
    cfg = settings(Settings, sys.argv[1:] if argv is None else argv)
    quiet()
    host, edits = opened(cfg.model, cfg.edits, cfg.device)
    Console(width=200).print(run(cfg, host, edits))


if __name__ == "__main__":
    main()
