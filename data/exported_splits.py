"""The test splits of an exported decoder: over the store it was trained on, or over another of the same host and layer.

Shape letters: D hidden width, F MLP width.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
from torch import Tensor
from torch.utils.data import DataLoader

from data.batches import EditRows, as_is
from data.datamodule import mark_seen
from data.store.fact_rows import one_fact_a_row
from data.store.manifest import IMPORTED
from data.store.store import EditStore
from decoder.batch import EditBatch
from decoder.export.formats import layers_of
from decoder.host import Host
from decoder.scores import TEST_SPLITS
from decoder.utils.errors import UserError

BATCH = 128
DENSE_BYTES = 1 << 30  # of the whole matrices of a batch, before they are repeated for the beams


@dataclass(frozen=True)
class ExportedSplits:
    """Loaders of the splits, the edits' table in store order, and how many edits of each split the store cannot show."""

    loaders: dict[str, DataLoader]
    table: pd.DataFrame
    left_out: dict[str, int]


def exported_splits(
    store: EditStore, config: Mapping[str, Any], host: Host, precision: Callable[[Tensor], Tensor] | None = None
) -> ExportedSplits:
    """The edits that a decoder lists as its tests, looked up in a store by their edit_ids.

    An edit is named by its fact and object, so the same requests made by another editor are found too; what failed there, or is not
    there, is counted and left out. Edits of other tools were in no split: they are one split of their own, `imported`.

    Args:
        config: of the exported decoder.
        precision: given, edits come as whole matrices that went through it; else as factors where the store has them.

    Raises:
        ValueError: the decoder's own store lacks edits of the list, or another store has none of them.
    """
    store = one_fact_a_row(store)
    table, splits = store.table(), config["splits"]
    own = store.fingerprint == config["store"]
    if store.manifest["editor"]["name"] == IMPORTED and not own:
        mark_seen(table, [])
        return ExportedSplits({IMPORTED: loader_of(store, list(range(len(store))), config, host, precision)}, table, {})
    row_of = {edit_id: row for row, edit_id in enumerate(table["edit_id"])}
    training = [row_of[edit_id] for edit_id in splits["train"] if edit_id in row_of]
    mark_seen(table, training)
    if not training:
        # A store of test edits alone does not say which objects training had: they are neither.
        table["seen_object"] = None
    shown = {edit_id: row for edit_id, row in row_of.items() if own or table["success"].iloc[row]}
    rows = {split: [shown[edit_id] for edit_id in splits[split] if edit_id in shown] for split in TEST_SPLITS}
    left_out = {split: len(splits[split]) - len(found) for split, found in rows.items() if len(found) < len(splits[split])}
    if left_out and (own or not any(rows.values())):
        split = next(iter(left_out))
        missing = [edit_id for edit_id in splits[split] if edit_id not in shown]
        raise ValueError(
            f"store {store.path} lacks {len(missing)} of the decoder's {split} edits, {missing[0]} first. "
            "Give its own store=, or one made from the same facts and splits"
        )
    loaders = {split: loader_of(store, found, config, host, precision) for split, found in rows.items() if found}
    return ExportedSplits(loaders, table, left_out)


def refuse_other(store: EditStore, config: Mapping[str, Any], allow_host_mismatch: bool = False) -> None:
    """Raises UserError if a store has edits of other layers or of another host than an exported decoder reads."""
    if store.layers != (read := layers_of(config)):
        found, expected = (", ".join(map(str, layers)) for layers in (store.layers, read))
        raise UserError(f"store {store.path} has edits of layer {found}, the decoder reads layer {expected}. Give another store=")
    host, reads = store.manifest["host"], config["host"]
    if host["fingerprint"] != reads["fingerprint"] and not allow_host_mismatch:
        raise UserError(
            f"store {store.path} has edits of host {host['id']} ({host['fingerprint']}), the decoder reads {reads['id']} "
            f"({reads['fingerprint']}). Give another store=, or allow_host_mismatch=true"
        )


def loader_of(
    store: EditStore, rows: list[int], config: Mapping[str, Any], host: Host, precision: Callable[[Tensor], Tensor] | None = None
) -> DataLoader:
    """Batches of some rows of a store, for a decoder of this config.

    They hold factors, or whole matrices where the store has them or a precision is given.
    """
    if not (precision or store.is_dense):
        return DataLoader(EditRows(store, rows, host.terminator_id), BATCH, collate_fn=as_is)
    weights = {layer: host.weight_DF(layer).float().cpu() for layer in layers_of(config)}
    batch_size = max(1, min(BATCH, DENSE_BYTES // sum(4 * weight_DF.numel() for weight_DF in weights.values())))
    bases = weights if len(weights) > 1 else next(iter(weights.values()))

    def stored(batch: EditBatch) -> EditBatch:
        return batch._replace(edits=batch.edits._map(precision))

    return DataLoader(EditRows(store, rows, host.terminator_id, bases), batch_size, collate_fn=stored if precision else as_is)
