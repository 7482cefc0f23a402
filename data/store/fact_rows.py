"""A store of several facts a host, a fact a row: what a decoder is trained and scored on.

Shape letters: N facts, D hidden width, F MLP width.
"""

from typing import Any

import pandas as pd
import torch
from torch import Tensor

from data.store.store import FACT_SCORES, TEXT_COLUMNS, EditStore
from decoder.edit import LowRankEdit, RankOneEdit


def one_fact_a_row(store: EditStore) -> EditStore:
    """The store itself if it is so already, else a view of it in which a host has as many rows as facts."""
    return FactRows(store) if "facts" in store.dataset.column_names else store


class FactRows(EditStore):
    """Every fact of every edited host, with the host's edit. A fact is successful if it came out itself.

    Scores that are not kept of each fact are the host's. The table also says which host a fact is in, and which objects are planted there.
    """

    def __init__(self, store: EditStore) -> None:
        vars(self).update(vars(store))
        planted = store.dataset["facts"]
        self._host_of_N = torch.tensor([row for row, facts in enumerate(planted) for _ in facts])
        self._facts: list[dict[str, Any]] = [fact for facts in planted for fact in facts]
        self.object_ids = [fact["object_ids"] for fact in self._facts]
        of_hosts = store.matrix_of
        self.matrix_of = {
            (n, layer): of_hosts[row, layer]
            for n, row in enumerate(self._host_of_N.tolist())
            for layer in store.layers
            if (row, layer) in of_hosts
        }

    def __len__(self) -> int:
        return len(self._facts)

    @property
    def has_terms(self) -> bool:
        """Whether each host's edit is as many terms as it has facts."""
        return not self.is_dense and self.manifest.get("rank", 1) == self.manifest.get("facts_per_host")

    def _factors(self, layer: int, rows: Tensor) -> RankOneEdit | LowRankEdit:
        return super()._factors(layer, self._host_of_N[rows])

    def table(self) -> pd.DataFrame:
        hosts = super().table().iloc[self._host_of_N.tolist()].reset_index(drop=True)
        own = pd.DataFrame(self._facts)[[*TEXT_COLUMNS, *FACT_SCORES]]
        hosts[list(own)] = own
        hosts["success"] = own["efficacy"] == 1
        hosts["host"] = self._host_of_N.tolist()
        planted = own["object"].groupby(hosts["host"]).agg(list)
        hosts["planted"] = hosts["host"].map(planted)
        return hosts
