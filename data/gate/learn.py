"""Fits a gate on the validation edits of stores.

Shape letters: B edits, K decoders, E features.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from data.exported_splits import loader_of, refuse_other
from data.store.store import EditStore
from decoder.answers import read_batch
from decoder.export.gate import Gate, evidence, fit_gate
from decoder.export.opened import Voters, identity_of
from decoder.scores import TEST_SPLITS, VAL_SPLITS
from decoder.utils.errors import UserError
from decoder.utils.progress import progress


def validation_rows(store: EditStore, configs: Sequence[Mapping[str, Any]], allow_host_mismatch: bool = False) -> list[int]:
    """Rows of a store whose edits came out and are a validation edit of some decoder, and a training or test edit of none.

    An edit is named by its fact and object, so it is the same in stores of other editors.

    Raises:
        UserError: there is none, or the store is of another host or other layers.
    """
    refuse_other(store, configs[0], allow_host_mismatch)
    table = store.table()
    validated = {edit_id for config in configs for split in VAL_SPLITS for edit_id in config["splits"].get(split, ())}
    others = {edit_id for config in configs for split in ("train", *TEST_SPLITS) for edit_id in config["splits"][split]}
    there, kept = table["edit_id"].isin(validated), table["edit_id"].isin(validated - others)
    usable = kept & table["success"]
    if not usable.any():
        raise UserError(
            f"store {store.path} has {there.sum()} validation edits of the decoders, {kept.sum()} in no other split of any of them, "
            "of which 0 came out. Give one made from the same facts and splits"
        )
    return usable.to_numpy().nonzero()[0].tolist()


def learn(voters: Voters, edits: Sequence[tuple[EditStore, list[int]]]) -> tuple[Gate, str]:
    """The gate of these decoders, and what it learnt from, in words."""
    evidences, rights, ids = [], [], []
    with progress("validation edits", sum(len(rows) for _, rows in edits)) as advance:
        for store, rows in edits:
            table = store.table()
            for batch in loader_of(store, rows, voters.configs[0], voters.host):
                batch = batch.on(voters.host.device)
                found = voters.read_each(batch.edits)
                evidences.append(evidence(voters.decoders, batch.edits, found))
                readings = [read_batch(voters.host, beams, batch) for beams in found]
                rights.append(torch.tensor([[reading.exact_match for reading in of_one] for of_one in readings]).T)
                ids += table["edit_id"].iloc[batch.row_B.tolist()].tolist()
                advance(len(batch.row_B))
    right_BK = torch.cat(rights)
    gate, hits_B = fit_gate([identity_of(folder) for folder in voters.folders], torch.cat(evidences), right_BK, ids)
    editors = ", ".join(dict.fromkeys(store.manifest["editor"]["name"] for store, _ in edits))
    idle = [folder for folder, of_one in zip(voters.folders, right_BK.T, strict=True) if not (of_one & (right_BK.sum(1) == 1)).any()]
    told = (
        f"learnt from {len(right_BK)} validation edits of {editors}; left out, they are read by the decoder that it believes in "
        f"{hits_B.float().mean():.3f}, by the best of them in {right_BK.float().mean(0).max():.3f}, by any in "
        f"{right_BK.any(1).float().mean():.3f}"
    )
    return gate, told + "".join(f". None is read by {folder} alone: stores= lacks its editor, or it is not needed" for folder in idle)
