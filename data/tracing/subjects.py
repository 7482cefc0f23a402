"""Whom an edited matrix answers to most, out of a list, and what it answers: all that an audit has of an edit whose base is unknown.

Keys are the host's own, of the layer and whitened: below its edit an edited host is the host. So one list of keys serves every edit, and
what W' makes of it is what W makes of it and the edit's own part.

Shape letters: C subjects, N edits, D hidden width, F MLP width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from decoder.audit.candidates import Candidates, unit, whitener
from decoder.audit.rows.keys import WHITENING, gathered
from decoder.edit import RankOneEdit
from decoder.host import Host
from decoder.utils.progress import progress


class Listed:
    """Subjects with their keys at a layer.

    Attributes:
        keys_CF: unit vectors.
    """

    def __init__(self, host: Host, names: Sequence[str], layer: int) -> None:
        self.names = list(names)
        with progress("subjects through the host", len(names)) as advance:
            keys_CF = gathered(Candidates(host, self.names), [layer], advance)[layer]
        self.keys_CF = unit(whitener(keys_CF[:: -(-len(keys_CF) // WHITENING)])(keys_CF))
        self._clean_CD = self.keys_CF @ host.weight_DF(layer).float().T

    def found(self, edits: RankOneEdit) -> list[int]:
        """The subject, by its place, that each edited matrix answers to most."""
        gain_CN, value_ND = self.keys_CF @ edits.key_BF.float().T, edits.value_BD.float()
        square_CN = 2 * gain_CN * (self._clean_CD @ value_ND.T) + gain_CN.square() * value_ND.square().sum(dim=1)
        return (self._clean_CD.square().sum(dim=1, keepdim=True) + square_CN).argmax(dim=0).tolist()

    def values(self, edits: RankOneEdit) -> Tensor:
        """What each edited matrix answers to the subject found, without what it usually answers (N, D): the value, but for its length."""
        found = []
        with progress("values read out of edited matrices", len(edits)) as advance:
            for n, place in enumerate(self.found(edits)):
                output_CD = self._clean_CD + torch.outer(self.keys_CF @ edits.key_BF[n].float(), edits.value_BD[n].float())
                found.append(output_CD[place] - output_CD.median(dim=0).values)
                advance(1)
        return torch.stack(found)
