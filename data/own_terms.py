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


def own_terms(store: EditStore, host: Host) -> EditStore:
    """A view of a store in which every fact of several comes as its own term of its host's edit; the store itself if there are none."""
    if isinstance(store, JoinedStores):
        parts = [own_terms(part, host) for part in store.parts]
        return store if all(own is part for own, part in zip(parts, store.parts, strict=True)) else JoinedStores(parts)
    return OwnTerms(store, host) if isinstance(store, FactRows) and store.has_terms else store


class OwnTerms(FactRows):
    """Every fact of every edited host, as if it had been planted alone."""

    def __init__(self, rows: FactRows, host: Host) -> None:
        vars(self).update(vars(rows))
        table = rows.table()
        prompts = list(zip(table["prompt"], table["subject"], strict=True))
        hosts_N = torch.tensor(table["host"].to_numpy())
        self._term_N = {
            layer: _terms(rows._factors(layer, torch.arange(len(rows))), lookup_keys(host, layer, prompts).cpu(), hosts_N)
            for layer in rows.layers
        }

    def _factors(self, layer: int, rows: Tensor) -> RankOneEdit:
        together, term_B = super()._factors(layer, rows), self._term_N[layer][rows]
        place_B = torch.arange(len(rows))
        return RankOneEdit(together.key_BRF[place_B, term_B], together.value_BRD[place_B, term_B])


def _terms(edits: LowRankEdit, key_NF: Tensor, host_N: Tensor) -> Tensor:
    """Number (N,) of each fact's term: of all ways to share a host's terms out, the one whose facts' keys are moved farthest by theirs."""
    gain_NR = torch.einsum("nrf,nf->nr", edits.key_BRF, key_NF).abs() * edits.value_BRD.norm(dim=2)
    term_N = torch.zeros(len(host_N), dtype=torch.long)
    for host in host_N.unique().tolist():
        rows = (host_N == host).nonzero()[:, 0]
        facts, terms = linear_sum_assignment(gain_NR[rows].numpy(), maximize=True)
        term_N[rows[facts]] = torch.from_numpy(terms)
    return term_N
