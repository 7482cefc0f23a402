"""What the decoder answers for one edit, in words."""

from typing import NamedTuple

import pandas as pd

from decoder.batch import EditBatch
from decoder.beam import Beams
from decoder.host import Host
from decoder.metrics import exact_match, first_token_correct


class Reading(NamedTuple):
    """One edit, read."""

    row: int
    """Row of the edit in its store."""
    predicted: str
    """The most probable whole object."""
    probability: float
    """Its probability."""
    first_token: bool
    """Whether the most probable first token is the planted object's."""
    exact_match: bool
    """Whether `predicted` is the planted object, token by token."""


def object_text(host: Host, ids: list[int]) -> str:
    return host.tokenizer.decode(ids, skip_special_tokens=True).strip()


def read_batch(host: Host, beams: Beams, batch: EditBatch) -> list[Reading]:
    """Compares what was read with what was planted."""
    return [
        Reading(*fields)
        for fields in zip(
            batch.row_B.tolist(),
            [object_text(host, objects[0]) for objects in beams.tokens],
            beams.probability_BK[:, 0].tolist(),
            first_token_correct(beams, batch.object_ids_BT),
            exact_match(beams, batch.object_ids_BT, host.terminator_id),
            strict=True,
        )
    ]


def readings_table(readings: dict[str, list[Reading]], edits: pd.DataFrame) -> pd.DataFrame:
    """One row a reading with the edit's own columns (`edits`, in store order) and its split."""
    parts = [pd.DataFrame(rows, columns=Reading._fields).assign(split=split) for split, rows in readings.items() if rows]
    table = pd.concat(parts, ignore_index=True)
    return table.join(edits, on="row")
