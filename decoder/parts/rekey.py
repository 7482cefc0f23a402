"""Reading what was written rather than where: the value of every edit of rank one at one key, the same for all.

An edit acts on an input as far as the input answers to its key, and a decoder's prompt answers to keys as unevenly as subjects differ. But
the host's own W_V is known, so W'_V - W_V = value ⊗ key is, and the value is one of its factors. At a key of the decoder's own it acts on
the prompt as training edits do in the middle, whoever planted it: AlphaEdit's keys, which have nothing in common, among them.

Factors are known but for their sign: value ⊗ key is -value ⊗ -key. Most keys say it by the direction that keys have in common. Of those
that do not have it the host's vocabulary does: keys are made of activations of some subject, and answer to the activations of few tokens
much and to those of most hardly; so what they answer to all tokens is skewed to the positive side.

Shape letters: B edits, R terms, K tokens of the vocabulary, D hidden width, F MLP width.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from decoder.dense import DenseEdit, RoundedEdit, WholeEdit
from decoder.edit import Edit, LayerEdits, LowRankEdit, RankOneEdit
from decoder.host import Host
from decoder.parts.spectrum import terms

RIDGE = 1e-2
"""Of the largest eigenvalue of the second moment by which keys of the vocabulary are whitened. Chosen of three on all edits of two hosts,
those of tests among them (docs/log.md); it tells signs alone, and of no key that has the direction in common."""
TINY = 1e-30  # of a length that is divided by
FAINT = 0.1
"""Of the strongest term of a whole matrix, what its others have at most where it is the only one: rounding to four bits leaves 0.06, a
second fact 0.54 and more (pocket host). And of the size of training edits, below which what is read fades: rounding alone is no edit."""
COMMON = 0.1
"""What keys of training edits must have in common, as the root of the mean cosine of two of them: a prompt that learnt from keys which
have less (AlphaEdit's 0.02 and 0.04 on two hosts, ROME's and MEMIT's 0.17 and 0.18) answers to no direction."""
CLEAR = 0.01
"""Quantile of the cosines of training keys with their mean direction, from which on a cosine tells a key from its opposite. So it did for
all edits of ROME and its kin on two hosts that reach it; AlphaEdit's keys there do not."""


class OwnKeys(nn.Module):
    """Of each edited layer the key at which a decoder reads its edits."""

    def __init__(self, by_layer: Mapping[int, "OwnKey"]) -> None:
        super().__init__()
        self.by_layer = nn.ModuleDict({str(layer): own for layer, own in by_layer.items()})

    @classmethod
    def learnt(cls, edits: LayerEdits, usual: Mapping[int, Tensor]) -> "OwnKeys | None":
        """From training edits; None if they are not of rank one in every layer, or their keys have too little in common (`COMMON`).

        Args:
            usual: of each layer keys (K, F) of tokens of the host's vocabulary, as they come.
        """
        if not all(isinstance(own, RankOneEdit) for own in edits.by_layer.values()):
            return None
        by_layer = {layer: OwnKey.learnt(own, usual[layer]) for layer, own in edits.by_layer.items()}
        return None if any(own is None for own in by_layer.values()) else cls(by_layer)

    @property
    def tokens(self) -> int:
        """K, the same in all layers."""
        return len(next(iter(self.by_layer.values())).usual_KF)

    def of(self, edits: LayerEdits, host: Host) -> LayerEdits:
        """Edits of one term at these keys, in each layer by itself; all others as they are."""
        by_layer = edits.to(host.device).by_layer
        return LayerEdits({layer: self.by_layer[str(layer)].of(own, host.weight_DF(layer)) for layer, own in by_layer.items()})


class OwnKey(nn.Module):
    """The key at which a decoder has edits of one layer act, how long their values are there, and how keys are told from their opposites.

    Args:
        width: F.
        tokens: K.
    """

    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        self.register_buffer("key_F", torch.zeros(width))
        self.register_buffer("length", torch.zeros(()))
        self.register_buffer("size", torch.zeros(()))
        self.register_buffer("clear", torch.zeros(()))
        self.register_buffer("usual_KF", torch.zeros(tokens, width, dtype=torch.float16))

    @classmethod
    def learnt(cls, edits: RankOneEdit, usual_KF: Tensor) -> "OwnKey | None":
        """The mean direction of the keys of training edits, the median length of what these write there, and their median norm.

        None if the keys have too little in common, as where nobody knows which way round they are.
        """
        own = cls(usual_KF.shape[1], len(usual_KF)).to(edits.key_BF.device)
        own.usual_KF.copy_(_whitened(usual_KF.to(own.key_F)))
        # Editors write keys that their subjects answer to: of training edits the signs are known.
        key_BF = normalize(edits.key_BF.float(), eps=TINY)
        mean_F, count = key_BF.mean(0), len(key_BF)
        # Of keys that have nothing in common the mean is of length count ** -0.5.
        if count < 2 or max(0.0, float(count * mean_F.square().sum() - 1)) / (count - 1) < COMMON**2:
            return None
        own.key_F.copy_(normalize(mean_F, dim=0))
        cosine_B = key_BF @ own.key_F
        own.clear.copy_(cosine_B.abs().quantile(CLEAR))
        own.length.copy_((edits.norm().float() * cosine_B).median())
        own.size.copy_(edits.norm().median().clamp(min=TINY))
        return own

    def sign(self, key_BF: Tensor) -> Tensor:
        """(B, 1): 1 where a key answers to what subjects answer to, -1 where its opposite does."""
        key_BF = normalize(key_BF.float(), eps=TINY)
        cosine_B1 = (key_BF @ self.key_F).unsqueeze(1)
        return torch.where(torch.where(cosine_B1.abs() >= self.clear, cosine_B1, self._skewness(key_BF)) < 0, -1.0, 1.0)

    def _skewness(self, key_BF: Tensor) -> Tensor:
        """1 or -1 (B, 1): the sign of the skewness of what keys of length 1 answer to the vocabulary."""
        answer_BK = key_BF @ self.usual_KF.float().T
        third_B1 = (answer_BK - answer_BK.mean(1, keepdim=True)).pow(3).sum(1, keepdim=True)
        return torch.where(third_B1 < 0, -1.0, 1.0)

    def of(self, edit: Edit, weight_DF: Tensor) -> Edit:
        """The edits with the values of those that have one term at the decoder's own key; all others as they are.

        Args:
            edit: of a whole matrix the term is what stands out of W'_V - W_V.
            weight_DF: W_V.
        """
        if isinstance(edit, RankOneEdit):
            return self._at_own_key(edit)
        if isinstance(edit, LowRankEdit):
            single_B = edit.value_BRD[:, 1:].flatten(1).eq(0).all(1)
            first = self._at_own_key(RankOneEdit(edit.key_BF, edit.value_BD))
            key_BRF, value_BRD = edit.key_BRF.clone(), edit.value_BRD.clone()
            key_BRF[single_B, 0], value_BRD[single_B, 0] = first.key_BF[single_B].to(key_BRF), first.value_BD[single_B].to(value_BRD)
            return LowRankEdit(key_BRF, value_BRD)
        return self._whole(edit, weight_DF) if isinstance(edit, WholeEdit) else edit

    def _at_own_key(self, edit: RankOneEdit) -> RankOneEdit:
        there_B1 = (edit.norm().float() / (FAINT * self.size)).clamp(max=1).unsqueeze(1)
        value_BD = normalize(edit.value_BD.float(), eps=TINY) * self.sign(edit.key_BF) * (self.length * there_B1)
        return RankOneEdit(self.key_F.expand(len(edit), -1), value_BD)

    def _whole(self, edit: WholeEdit, weight_DF: Tensor) -> Edit:
        found = terms(edit, weight_DF)
        sizes = [own.value_BRD[0].norm(dim=1) for own in found]  # keys have norm 1
        single_B = [not (size_R[1:] > FAINT * size_R[0]).any() for size_R in sizes]
        if not any(single_B):
            return edit
        own = self._at_own_key(RankOneEdit(*(torch.cat([getattr(one, name) for one in found]) for name in ("key_BF", "value_BD"))))
        if all(single_B):
            return own
        at_own = RoundedEdit(own, weight_DF.float())
        return DenseEdit(torch.cat([(at_own if single else edit).whole(b, b + 1, torch.float32) for b, single in enumerate(single_B)]))


def _whitened(key_KF: Tensor) -> Tensor:
    """(C + ridge)⁻¹ k of each key, scaled to length 1; C is their second moment."""
    key_KF = key_KF.double()
    # (XᵀX/K + r)⁻¹ Xᵀ = Xᵀ (XXᵀ/K + r)⁻¹, whose nonzero eigenvalues are the same: the smaller of the two will do.
    by_token = len(key_KF) < key_KF.shape[1]
    moment = (key_KF @ key_KF.T if by_token else key_KF.T @ key_KF) / len(key_KF)
    moment.diagonal().add_(RIDGE * torch.linalg.eigvalsh(moment)[-1])
    return normalize(torch.linalg.solve(moment, key_KF) if by_token else torch.linalg.solve(moment, key_KF.T).T).float()
