"""More training edits out of those there are, for nothing: their keys and values put together anew, their values shaken.

A key says where an edit acts and a value what it plants, so any key and any value make an edit of the value's object. It keeps a decoder
from fitting the few hundred pairs that were made.

Shape letters: B edits, D hidden width, F MLP width.
"""

import torch

from decoder.edit import Edit, RankOneEdit


def varied(edits: Edit, recombined: float, value_noise: float, generator: torch.Generator) -> Edit:
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
    if not isinstance(edits, RankOneEdit):
        raise ValueError(
            "optim.recombined and optim.value_noise vary keys and values, which whole matrices do not show. "
            "Set optim.recombined=0 optim.value_noise=0, or data.form=factors where the edits have rank one"
        )
    key_BF, value_BD = edits.key_BF, edits.value_BD
    exchanged_B = torch.rand(len(edits), generator=generator) < recombined
    other_B = torch.randperm(len(edits), generator=generator)
    source_B = torch.where(exchanged_B, other_B, torch.arange(len(edits))).to(key_BF.device)
    noise_BD = torch.randn(value_BD.shape, generator=generator).to(value_BD)
    length_B1 = value_BD.norm(dim=1, keepdim=True) / value_BD.shape[1] ** 0.5
    return RankOneEdit(key_BF[source_B], value_BD + value_noise * length_B1 * noise_BD)
