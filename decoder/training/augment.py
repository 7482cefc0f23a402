"""More training edits out of those there are, for nothing: their keys and values put together anew, their values shaken.

A key says where an edit acts and a value what it plants, so any key and any value make an edit of the value's object. It keeps a decoder
from fitting the few hundred pairs that were made.

Shape letters: B edits, D hidden width, F MLP width.
"""

import torch
from torch import Tensor

from decoder.edit import Edits, LayerEdits, RankOneEdit


def varied(edits: Edits, recombined: float, value_noise: float, generator: torch.Generator) -> Edits:
    """The edits of a batch with some keys exchanged and noise on every value; what each value plants stays.

    Args:
        recombined: chance of each edit to get the key of an edit drawn from the batch.
        value_noise: length of the Gaussian noise, as a share of the value's.
        generator: on the CPU, so that a seed gives the same draws on every device.

    Raises:
        ValueError: the edits are not of rank one, so their keys and values are not known.
    """
    if not (recombined or value_noise):
        return edits
    by_layer = edits.by_layer if isinstance(edits, LayerEdits) else {0: edits}
    if not all(isinstance(own, RankOneEdit) for own in by_layer.values()):
        raise ValueError(
            "optim.recombined and optim.value_noise vary keys and values, which whole matrices do not show. "
            "Set optim.recombined=0 optim.value_noise=0, or data.form=factors where the edits have rank one"
        )
    exchanged_B = torch.rand(len(edits), generator=generator) < recombined
    other_B = torch.randperm(len(edits), generator=generator)
    source_B = torch.where(exchanged_B, other_B, torch.arange(len(edits)))
    found = {layer: _varied(own, source_B, value_noise, generator) for layer, own in by_layer.items()}
    return LayerEdits(found) if isinstance(edits, LayerEdits) else found[0]


def _varied(edits: RankOneEdit, source_B: Tensor, value_noise: float, generator: torch.Generator) -> RankOneEdit:
    """The edits of one layer, each with the key of `source_B`, and noise on its value."""
    key_BF, value_BD = edits.key_BF, edits.value_BD
    noise_BD = torch.randn(value_BD.shape, generator=generator).to(value_BD)
    length_B1 = value_BD.norm(dim=1, keepdim=True) / value_BD.shape[1] ** 0.5
    return RankOneEdit(key_BF[source_B.to(key_BF.device)], value_BD + value_noise * length_B1 * noise_BD)
