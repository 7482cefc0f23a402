"""Which term of a host's edit is which fact's: what a decoder learns from that reads several facts apart.

Stores keep the terms of a host in no order of its facts. A fact's term is the one that answers most to the fact's own subject.

Shape letters: B edits, N facts, R terms, D hidden width, F MLP width.
"""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from data.keys.probe import lookup_keys
from data.store.fact_rows import FactRows
from data.store.joined import JoinedStores
from data.store.store import EditStore
from decoder.edit import LowRankEdit, RankOneEdit
from decoder.host import Host


def has_own_terms(store: EditStore) -> bool:
    """Whether a store has facts that are terms of a host's edit beside others."""
    if isinstance(store, JoinedStores):
        return any(map(has_own_terms, store.parts))
    return isinstance(store, FactRows) and store.has_terms


def own_terms(store: EditStore, host: Host) -> EditStore:
    """A view of a store in which every fact of several comes as its own term of its host's edit; the store itself if there are none."""
    if not has_own_terms(store):
        return store
    return JoinedStores([own_terms(part, host) for part in store.parts]) if isinstance(store, JoinedStores) else OwnTerms(store, host)


class OwnTerms(FactRows):
    """Every fact of every edited host, as if it had been planted alone."""

    def __init__(self, rows: FactRows, host: Host) -> None:
        vars(self).update(vars(rows))
        table = rows.table()
        prompts = list(zip(table["prompt"], table["subject"], strict=True))
        facts_of = [torch.tensor(own.to_list()) for own in table.groupby("host").groups.values()]
        self._term_N = {layer: torch.zeros(len(rows), dtype=torch.long) for layer in rows.layers}
        for layer, term_N in self._term_N.items():
            key_NF = lookup_keys(host, layer, prompts).cpu()
            for facts in facts_of:
                term_N[facts] = _terms(rows._factors(layer, facts[:1]), key_NF[facts])

    def _factors(self, layer: int, rows: Tensor) -> RankOneEdit:
        together, term_B = super()._factors(layer, rows), self._term_N[layer][rows]
        place_B = torch.arange(len(rows))
        return RankOneEdit(together.key_BRF[place_B, term_B], together.value_BRD[place_B, term_B])


def _terms(edit: LowRankEdit, key_NF: Tensor) -> Tensor:
    """Number (N,) of the term of each fact of one host: of all ways to share them out, the one whose terms answer most to their facts."""
    gain_NR = (key_NF @ edit.key_BRF[0].T).abs() * edit.value_BRD[0].norm(dim=1)
    _, terms = linear_sum_assignment(gain_NR.numpy(), maximize=True)
    return torch.from_numpy(terms)
