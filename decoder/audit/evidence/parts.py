"""What of an update is about one subject: as what takes it out, as a direction, and as an edit of that fact alone.

Shape letters: D hidden width, F MLP width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from decoder.audit.evidence.located import Located
from decoder.audit.reversal import reverse, reverse_each, to_base
from decoder.dense import DenseEdit
from decoder.edit import LowRankEdit, RankOneEdit
from decoder.host import Host


def out_of(host: Host, unedited: Host | None, located: Sequence[Located]) -> DenseEdit | LowRankEdit:
    """What takes edits of one layer out of a suspect: the unedited matrix in the place of its own, else one term for each edit."""
    layer = located[0].layer
    if unedited is not None:
        return to_base(unedited.weight_DF(layer))
    return reverse_each(host.weight_DF(layer), torch.stack([one.key_F for one in located]), located[0].keys_LF)


def out_of_layers(host: Host, unedited: Host | None, located: Sequence[Located]) -> dict[int, DenseEdit | LowRankEdit]:
    """Layer -> what takes its edits out of a suspect, the lowest first.

    Each by the suspect's own keys: those of an upper layer hold what the edits below it write, and editors make edits of such keys too.
    """
    layers = sorted({one.layer for one in located})
    return {layer: out_of(host, unedited, [one for one in located if one.layer == layer]) for layer in layers}


def value_of(host: Host, one: Located, reversal: DenseEdit | LowRankEdit) -> Tensor:
    """Direction (D) of what an edit writes for its subject, out of what takes it out; on the CPU."""
    if isinstance(reversal, DenseEdit):
        return ((host.weight_DF(one.layer) - reversal.weight_BDF[0]).float() @ one.key_F).cpu()
    return -reversal.value_BD[0].float().cpu()


def alone(host: Host, one: Located, reversal: DenseEdit | LowRankEdit) -> RankOneEdit:
    """An edit as it would be if its fact were the only one planted, which decoders of single facts can read: the opposite of what takes
    it out, by the update itself where the base is known."""
    term = reversal
    if isinstance(reversal, DenseEdit):
        update_DF = host.weight_DF(one.layer).to(torch.float32, copy=True)
        update_DF -= reversal.weight_BDF[0]
        term = reverse(update_DF, one.key_F, one.keys_LF)
    return RankOneEdit(term.key_BF, -term.value_BD)
