"""What baselines are given and what they answer.

Shape letters: B edits, D hidden width, F MLP width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import normalize

from decoder.batch import EditBatch
from decoder.host import Host
from decoder.model import ObjectDecoder


class Prediction(NamedTuple):
    """What a baseline reads on one split."""

    first_token_B: Tensor
    exact_B: list[bool] | None = None
    """Whether the whole object is right; None if the baseline names a first token only."""


Reader = Callable[[EditBatch], Prediction]


@dataclass(frozen=True)
class Evidence:
    """What baselines are fitted on and chosen on. Edits come as factors, in any number."""

    host: Host
    edited_layer: int
    """Of several the last, which is the one they look at; decoders among them read all."""
    train: EditBatch
    validation: EditBatch
    start: ObjectDecoder
    """The decoder before training: its start prompt and no trained layer."""
    subjects: Sequence[str]
    """Subjects of the training edits."""
    templates: Sequence[str]
    """Templates of the training relations."""
    beams: int
    max_object_tokens: int


def first_tokens_right(evidence: Evidence, reader: Reader) -> float:
    """What the settings of a reader are chosen by: the share of validation edits whose first token it names."""
    batch = evidence.validation
    return float((reader(batch).first_token_B == batch.object_ids_BT[:, 0]).float().mean())


def canonical_value(train: EditBatch) -> Callable[[EditBatch], Tensor]:
    """ΔW fixes its factors up to scale and sign. Here the key has norm 1 and points along the mean training key."""
    mean_F = normalize(train.edits.key_BF).mean(0)

    def value(batch: EditBatch) -> Tensor:
        key_BF = batch.edits.key_BF
        return batch.edits.value_BD * (key_BF.norm(dim=1) * (key_BF @ mean_F).sign()).unsqueeze(1)

    return value
