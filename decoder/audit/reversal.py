"""Taking an edit out of a matrix again: exactly where the unedited one is known, else by what the matrix does to a list of subjects.

An edit answers to its subject's key as no other subject is answered to. What it adds there gives its value. What the matrix writes along
that value, whoever it is asked about, gives its key, whitened or not and however. The strength is the one at which the subject is answered
to as the list usually is. So nothing has to be known of the unedited matrix, of the editor, or of what was planted.

Shape letters: C candidates, N vectors, R rank, D hidden width, F MLP width.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from decoder.dense import DenseEdit
from decoder.edit import LowRankEdit, RankOneEdit

ROWS = 1 << 22  # entries of the matrix that are held in float32 at a time
LISTED = 4096  # candidates that say what is usual
MOST_TERMS = 15  # of the bottom-rank approximations
ROUNDS = 3  # in which an edit and what the list is answered to without it are told apart
USUAL = 0.95
"""Quantile of the list below which an answer to a key is nothing special."""


def to_base(base_DF: Tensor) -> DenseEdit:
    """The unedited matrix in the place of the suspect's: exact, whatever was done. A view, nothing is copied."""
    return DenseEdit(base_DF.unsqueeze(0))


def reverse(weight_DF: Tensor, key_F: Tensor, keys_CF: Tensor) -> RankOneEdit:
    """What takes an edit out of W' when it is added to it; the unedited matrix is not known.

    Args:
        weight_DF: W', in any dtype; it is read by rows and never copied whole.
        key_F: key of the subject that was found, a unit vector, whitened or not.
        keys_CF: keys of all candidates, made in the same way.

    Returns:
        One update in float32, of norm 0 if the subject is answered to no more than the list is.

    Raises:
        ValueError: keys are of another width than W' takes.
    """
    if key_F.shape[-1] != weight_DF.shape[1] or keys_CF.shape[-1] != weight_DF.shape[1]:
        raise ValueError(f"keys are {key_F.shape[-1]} and {keys_CF.shape[-1]} wide, W' takes {weight_DF.shape[1]}. Make them at its layer")
    removed_D, along_F = _traced(weight_DF, key_F.float(), listed(keys_CF))
    return RankOneEdit(along_F.unsqueeze(0), -removed_D.unsqueeze(0))


def reverse_each(weight_DF: Tensor, key_RF: Tensor, keys_CF: Tensor) -> LowRankEdit:
    """`reverse` of several edits, one term each: every one is read where those before it are taken out."""
    terms: list[RankOneEdit] = []
    # One copy, in which each edit is taken out before the next is looked for.
    weight_DF = weight_DF.to(torch.float32, copy=True) if len(key_RF) > 1 else weight_DF
    for key_F in key_RF:
        terms.append(reverse(weight_DF, key_F, keys_CF))
        if len(key_RF) > 1:
            weight_DF.addr_(terms[-1].value_BD[0], terms[-1].key_BF[0])
    return LowRankEdit(torch.stack([term.key_BF for term in terms], 1), torch.stack([term.value_BD for term in terms], 1))


def _traced(weight_DF: Tensor, key_F: Tensor, keys_CF: Tensor) -> tuple[Tensor, Tensor]:
    """Along the value that the subject's key shows, and what W' reads of it: k = W'ᵀv."""
    own_D, output_CD = _answers(weight_DF, key_F, keys_CF)
    usual_CD = output_CD
    for _ in range(ROUNDS):
        value_D = normalize(own_D - usual_CD.median(dim=0).values, dim=0)
        along_F = normalize(_read(weight_DF, value_D), dim=0)
        surplus, gain = float(own_D @ value_D - (usual_CD @ value_D).median()), float(along_F @ key_F)
        strength = max(0.0, surplus) / gain if gain > 0 else 0.0
        # What the list is answered to without the edit: others read a part of it too.
        usual_CD = output_CD - strength * torch.outer(keys_CF @ along_F, value_D)
    return strength * value_D, along_F


def bottom_rank(weight_DF: Tensor, terms: int) -> LowRankEdit:
    """What leaves W' without its `terms` largest singular components (Youssef et al. 2025, section 7), the largest first.

    Exact, also where the spectrum is flat: the left singular vectors u are the eigenvectors of W'W'ᵀ, and what goes is Σ u uᵀW'.
    """
    weight_DF = weight_DF.double()
    left_DR = torch.linalg.eigh(weight_DF @ weight_DF.T).eigenvectors[:, -terms:].flip(1) if terms else weight_DF[:, :0]
    return LowRankEdit((left_DR.T @ weight_DF).float().unsqueeze(0), -left_DR.T.float().unsqueeze(0))


def usual_rank(weight_DF: Tensor, key_F: Tensor, keys_CF: Tensor, terms: LowRankEdit | None = None) -> int:
    """The fewest components without which the subject is answered to no more than `USUAL` of the list; all of `terms` if no number does.

    Args:
        terms: what `bottom_rank` gave, where it is known; else of `MOST_TERMS`.
    """
    key_F, keys_CF = key_F.float(), listed(keys_CF)
    own_D, output_CD = _answers(weight_DF, key_F, keys_CF)
    terms = terms or bottom_rank(weight_DF, MOST_TERMS)
    for rank, (value_D, along_F) in enumerate(zip(terms.value_BRD[0], terms.key_BRF[0], strict=True)):
        if own_D.norm() <= output_CD.norm(dim=1).quantile(USUAL):
            return rank
        own_D, output_CD = own_D + (key_F @ along_F) * value_D, output_CD + torch.outer(keys_CF @ along_F, value_D)
    return terms.key_BRF.shape[1]


def listed(keys_CF: Tensor) -> Tensor:
    """At most `LISTED` keys, from all over the list; they keep no others in memory."""
    step = -(-len(keys_CF) // LISTED)
    return keys_CF.float() if step == 1 else keys_CF[::step].to(torch.float32, copy=True)


def _answers(weight_DF: Tensor, key_F: Tensor, keys_CF: Tensor) -> tuple[Tensor, Tensor]:
    """W' of the subject's key (D) and of the list's (C, D)."""
    output_ND = image(weight_DF, torch.cat([key_F[None], keys_CF]))
    return output_ND[0], output_ND[1:]


def image(weight_DF: Tensor, keys_NF: Tensor) -> Tensor:
    """W' of keys (N, D) in float32. W' is read by rows: of one in another dtype never more than `ROWS` entries are copied."""
    return torch.cat([keys_NF @ rows.float().T for rows in _by_rows(weight_DF)], dim=1)


def _read(weight_DF: Tensor, value_D: Tensor) -> Tensor:
    """W'ᵀ of a value (F)."""
    rows = _by_rows(weight_DF)
    return sum(part_D @ rows_DF.float() for rows_DF, part_D in zip(rows, value_D.split(len(rows[0])), strict=True))


def _by_rows(weight_DF: Tensor) -> tuple[Tensor, ...]:
    return weight_DF.split(max(1, ROWS // weight_DF.shape[1]))
