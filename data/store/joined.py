"""Several stores of one host and layer as one, so that a decoder meets the edits of several editors.

Shape letters: B edits, R rank, D hidden width, F MLP width.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import pad

from data.store.manifest import IMPORTED
from data.store.store import EditStore
from decoder.edit import Edits, LowRankEdit, RankOneEdit

SHARED = ("host", "module", "layer", "layers", "base_sha256", "facts", "terminator_id", "facts_per_host")
"""What the manifests of stores that are joined have in common."""


class JoinedStores(EditStore):
    """The rows of the first store, then those of the second, and so on. Edits of one edit_id are of different editors.

    Attributes:
        parts: the stores.

    Raises:
        ValueError: two stores are of different hosts, layers or facts, one is given twice, or one holds edits of other tools.
    """

    def __init__(self, parts: Sequence[EditStore]) -> None:
        first, self.parts = parts[0], list(parts)
        for part in self.parts:
            if part.manifest["editor"]["name"] == IMPORTED:
                raise ValueError(f"data.also: {part.path} holds edits of other tools, which are in no split. Leave it out")
            part.check({name: first.manifest.get(name) for name in SHARED})
        if len({part.fingerprint for part in self.parts}) < len(self.parts):
            raise ValueError(f"data.also: one of {', '.join(str(part.path) for part in self.parts)} has the edits of another. Leave it out")
        self.path = " + ".join(str(part.path) for part in self.parts)
        self.manifest = first.manifest | {
            "editor": {"name": "+".join(part.manifest["editor"]["name"] for part in self.parts), "settings": {}},
            "requests": {"count": sum(part.manifest["requests"]["count"] for part in self.parts)},
            "files": {f"{n}/{name}": digest for n, part in enumerate(self.parts) for name, digest in part.manifest["files"].items()},
        }
        self.object_ids = [ids for part in self.parts for ids in part.object_ids]
        self._ends = list(accumulate(map(len, self.parts)))
        self.matrix_of = {
            (start + row, layer): place
            for start, part in zip(self._starts, parts, strict=True)
            for (row, layer), place in part.matrix_of.items()
        }

    @property
    def _starts(self) -> list[int]:
        return [0, *self._ends[:-1]]

    def __len__(self) -> int:
        return self._ends[-1]

    def part_of(self, rows: Tensor) -> Tensor:
        """Place in `parts` of each row's store."""
        return torch.searchsorted(torch.tensor(self._ends), rows, right=True)

    def _factors(self, layer: int, rows: Tensor) -> RankOneEdit | LowRankEdit:
        """Where ranks differ, lower ones end in zeros."""
        part_B = self.part_of(rows)
        asked = part_B.unique().tolist()
        found = [self.parts[n]._factors(layer, rows[part_B == n] - self._starts[n]) for n in asked]
        if len(found) == 1:
            return found[0]
        order_B = torch.cat([(part_B == n).nonzero()[:, 0] for n in asked]).argsort()
        if all(isinstance(edits, RankOneEdit) for edits in found):
            return RankOneEdit(*(torch.cat(parts)[order_B] for parts in zip(*map(_vectors, found), strict=True)))
        terms = [[part if part.dim() == 3 else part[:, None] for part in _vectors(edits)] for edits in found]
        rank = max(keys_BRF.shape[1] for keys_BRF, _ in terms)
        padded = [[pad(part, (0, 0, 0, rank - part.shape[1])) for part in parts] for parts in terms]
        return LowRankEdit(*(torch.cat(parts)[order_B] for parts in zip(*padded, strict=True)))

    def whole_edits(self, rows: Tensor, weight_DF: Tensor | Mapping[int, Tensor]) -> Edits:
        """W'_V of the edits in `rows` if one of them is of a store with whole matrices, else their factors."""
        whole = any(self.parts[n].is_dense for n in self.part_of(rows).unique().tolist())
        return super().whole_edits(rows, weight_DF) if whole else self.edits(rows)

    def facts(self, row: int) -> list[dict[str, Any]]:
        part = int(self.part_of(torch.tensor(row)))
        return self.parts[part].facts(row - self._starts[part])

    def table(self) -> pd.DataFrame:
        """As of any store, with the editor of each row."""
        tables = [part.table().assign(editor=part.manifest["editor"]["name"]) for part in self.parts]
        for start, table in zip(self._starts, tables, strict=True):
            if "host" in table:  # of several facts; another store's hosts are others
                table["host"] += start
        return pd.concat(tables, ignore_index=True)


def _vectors(edits: RankOneEdit | LowRankEdit) -> tuple[Tensor, Tensor]:
    return (edits.key_BRF, edits.value_BRD) if isinstance(edits, LowRankEdit) else (edits.key_BF, edits.value_BD)
