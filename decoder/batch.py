"""What a loader yields: edits and the tokens of their objects.

Shape letters: B edits, T object tokens.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from decoder.edit import Edits

PADDING = -100
"""Marks positions of `object_ids_BT` behind the end of an object; what torch's cross-entropy ignores."""


class EditBatch(NamedTuple):
    """What a loader yields."""

    edits: Edits
    """B edits."""
    object_ids_BT: Tensor
    """Tokens of each planted object and its terminator, then `PADDING`."""
    row_B: Tensor
    """Row of each edit in its store."""

    def on(self, device: torch.device) -> "EditBatch":
        """The batch on a device; copies from page-locked memory are not waited for."""
        return EditBatch(*(part.to(device, non_blocking=True) for part in self))
