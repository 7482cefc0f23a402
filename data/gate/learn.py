"""Fits a gate on the validation edits of stores.

Shape letters: B edits, K decoders, E features.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from data.exported_splits import loader_of
from data.store.fact_rows import one_fact_a_row
from data.store.store import EditStore
from decoder.answers import read_batch
from decoder.config.options import as_list
from decoder.export.gate import Gate, evidence, fit_gate
from decoder.export.opened import Voters, weights_of
from decoder.scores import VAL_SPLITS
from decoder.utils.errors import UserError


def validation_rows(store: EditStore, configs: Sequence[Mapping[str, Any]]) -> list[int]:
    """Rows of a store whose edits came out and are a validation edit of some decoder, and a training edit of none.

    An edit is named by its fact and object, so it is the same in stores of other editors.

    Raises:
        UserError: there is none, or the store is of another host or other layers.
    """
    layers, fingerprint = as_list(configs[0]["edited_layer"]), configs[0]["host"]["fingerprint"]
    if store.layers != layers or store.manifest["host"]["fingerprint"] != fingerprint:
        raise UserError(
            f"store {store.path} has edits of host {store.manifest['host']['fingerprint']}, layer {store.layers}; the decoders read host "
            f"{fingerprint}, layer {layers}. Give another store"
        )
    store = one_fact_a_row(store)
    table = store.table()
    validated = {edit_id for config in configs for split in VAL_SPLITS for edit_id in config["splits"].get(split, ())}
    trained = {edit_id for config in configs for edit_id in config["splits"]["train"]}
    usable = table["success"] & table["edit_id"].isin(validated - trained)
    if not usable.any():
        raise UserError(f"store {store.path} has none of the decoders' validation edits; give one made from the same facts and splits")
    return usable.to_numpy().nonzero()[0].tolist()


def learn(voters: Voters, folders: Sequence[str], edits: Sequence[tuple[EditStore, list[int]]]) -> tuple[Gate, str]:
    """The gate of these decoders, and what it learnt from, in words."""
    seen, right = [], []
    for store, rows in edits:
        for batch in loader_of(one_fact_a_row(store), rows, voters.configs[0], voters.host):
            batch = batch.on(voters.host.device)
            found = voters.read_each(batch.edits)
            seen.append(evidence(voters.decoders, batch.edits, found))
            readings = [read_batch(voters.host, beams, batch) for beams in found]
            right.append(torch.tensor([[reading.exact_match for reading in of_one] for of_one in readings]).T)
    evidence_BE, right_BK = torch.cat(seen), torch.cat(right)
    gate = fit_gate([weights_of(folder) for folder in folders], evidence_BE, right_BK)
    believed_B = gate.chances(evidence_BE).argmax(1)
    hits = right_BK[torch.arange(len(right_BK)), believed_B].float().mean()
    editors = ", ".join(dict.fromkeys(store.manifest["editor"]["name"] for store, _ in edits))
    return gate, (
        f"learnt from {len(right_BK)} validation edits of {editors}; of these the decoder that it believes reads {hits:.3f}, "
        f"the best of them alone {right_BK.float().mean(0).max():.3f}, some decoder {right_BK.any(1).float().mean():.3f}"
    )
