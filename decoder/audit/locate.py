"""Where in a checkpoint an edit lies, and whom it is about: layers and subjects, ranked.

Shape letters: C candidates, F MLP width.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Located:
    """One edit, as far as it is known where it is.

    Attributes:
        layer: block whose down-projection holds it.
        subject: the candidate it is about; None if it is about nobody in the list.
        key_F: unit vector, the whitened key of the subject; without one the right singular vector that the edit was seen by.
        keys_CF: unit vectors, whitened keys of all candidates at the layer, in the list's order.
        score: how far it stands out, in the scale of its threshold.
        base_known: whether it was found in W' - W, and not in W' alone.
    """

    layer: int
    subject: str | None
    key_F: Tensor
    keys_CF: Tensor
    score: float
    base_known: bool
