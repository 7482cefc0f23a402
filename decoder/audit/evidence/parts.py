"""What of an update is about one subject: as what takes it out, as a direction, and as an edit of that fact alone.

Shape letters: D hidden width, F MLP width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from decoder.audit.evidence.located import Located
from decoder.audit.reversal import reverse, to_base
from decoder.dense import DenseEdit
from decoder.edit import LowRankEdit, RankOneEdit
from decoder.host import Host


def out_of(host: Host, unedited: Host | None, located: Sequence[Located]) -> DenseEdit | LowRankEdit:
    """What takes edits of one layer out of a suspect: the unedited matrix in the place of its own, else one term for each edit."""
    layer = located[0].layer
    if unedited is not None:
        return to_base(unedited.weight_DF(layer))
    terms, weight_DF = [], host.weight_DF(layer)
    # One copy, in which each edit is taken out before the next is looked for.
    weight_DF = weight_DF.to(torch.float32, copy=True) if len(located) > 1 else weight_DF
    for one in located:
        terms.append(reverse(weight_DF, one.key_F, one.keys_CF))
        if len(located) > 1:
            weight_DF.addr_(terms[-1].value_BD[0], terms[-1].key_BF[0])
    return LowRankEdit(torch.stack([term.key_BF for term in terms], 1), torch.stack([term.value_BD for term in terms], 1))


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
        term = reverse(update_DF, one.key_F, one.keys_CF)
    return RankOneEdit(term.key_BF, -term.value_BD)
