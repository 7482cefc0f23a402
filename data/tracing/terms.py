"""What an edited host says without the largest singular components of its edited matrix, and how these lie to the edit.

Shape letters: V variants of a host's matrix, R rank, T positions, D hidden width, F MLP width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, pad

from data.tracing.subjects import Listed
from decoder.audit.reversal import MOST_TERMS, bottom_rank, reverse, usual_rank
from decoder.edit import LowRankEdit, RankOneEdit
from decoder.host import Host
from decoder.scores import share
from decoder.swap import swapped


def without_terms(edit: RankOneEdit, terms: LowRankEdit) -> LowRankEdit:
    """W' without its k largest components for k from 0 on, as edits of W: one for each k.

    Args:
        edit: one; a value of 0 for the unedited matrix.
        terms: what `bottom_rank` gave of W'.
    """
    count = terms.key_BRF.shape[1]
    # Row k holds the first k terms; what is not taken out has a value of 0.
    taken_VR1 = torch.ones(count + 1, count).tril(-1).to(terms.value_BRD).unsqueeze(2)
    key_VRF = torch.cat([edit.key_BF.unsqueeze(1), terms.key_BRF], dim=1).expand(count + 1, -1, -1)
    value_VRD = torch.cat([edit.value_BD.expand(count + 1, 1, -1), taken_VR1 * terms.value_BRD], dim=1)
    return LowRankEdit(key_VRF, value_VRD)


def together(*edits: LowRankEdit) -> LowRankEdit:
    """Variants of any ranks as one batch."""
    rank = max(one.key_BRF.shape[1] for one in edits)
    padded = [[pad(part, (0, 0, 0, rank - part.shape[1])) for part in (one.key_BRF, one.value_BRD)] for one in edits]
    return LowRankEdit(*(torch.cat(parts) for parts in zip(*padded, strict=True)))


@torch.no_grad()
def next_tokens(host: Host, layer: int, variants: LowRankEdit, ids: Sequence[int], count: int = 1) -> Tensor:
    """What each variant says (V, count) after the last `count` positions of a text, all of them in one forward."""
    with swapped(host, {layer: variants}):
        hidden_VTD = host.model.base_model(torch.tensor([ids], device=host.device), **host.with_cache(None)).last_hidden_state
    said_VTD = hidden_VTD[:, -count:]
    return host.head(said_VTD.flatten(0, 1)).argmax(dim=1).unflatten(0, said_VTD.shape[:2])


class Reversals:
    """Edits as they come, each in a host that is asked its own prompt with every k, and with the edit traced and taken out."""

    def __init__(self, host: Host, layer: int, listed: Listed) -> None:
        self.host, self.layer, self.listed = host, layer, listed
        self.told: list[dict[str, Any]] = []
        self.similarity: dict[str, list[list[float]]] = {"values": [], "keys": []}

    def add(self, edit: RankOneEdit, prompt: str, subject: str) -> LowRankEdit:
        """Asks for one edit; what its W' is without k components, for each k."""
        weight_DF = self.host.weight_DF(self.layer)
        edited_DF = weight_DF.float() + edit.delta()[0]
        terms = bottom_rank(edited_DF, min(MOST_TERMS, *edited_DF.shape))
        (place,) = self.listed.found(edit)
        key_F, keys_CF = self.listed.keys_CF[place], self.listed.keys_CF
        traced = reverse(edited_DF, key_F, keys_CF)
        traced = LowRankEdit(*(torch.stack(pair, dim=1) for pair in ((edit.key_BF, traced.key_BF), (edit.value_BD, traced.value_BD))))
        clean = LowRankEdit(edit.key_BF.unsqueeze(1), torch.zeros_like(edit.value_BD).unsqueeze(1))
        by_terms = without_terms(edit, terms)
        ids, _ = self.host.prompt_ids(prompt, subject)
        said_V = next_tokens(self.host, self.layer, together(clean, traced, by_terms), ids)[:, 0].tolist()
        said = {"clean": said_V[0], "traced": said_V[1], "by_terms": said_V[2:]}
        self.told.append(said | {"usual": usual_rank(edited_DF, key_F, keys_CF, terms), "found": self.listed.names[place] == subject})
        # Row by row the update's are along one vector, and so are a term's: both ways where signs differ, so the largest cosine is |cos|.
        sides = (("values", edit.value_BD, terms.value_BRD), ("keys", edit.key_BF, terms.key_BRF))
        for side, own, of_terms in sides:
            self.similarity[side].append(cosine_similarity(own, of_terms[0]).abs().tolist())
        return by_terms

    def scores(self) -> dict[str, Any]:
        """Shares of edits, by k and for what needs no labels: next token as the unedited host's, and as the edited one's."""
        by_k = [self._agreement([one["by_terms"][k] for one in self.told]) for k in range(len(self.told[0]["by_terms"]))]
        ranks = [one["usual"] for one in self.told]
        return {
            "n": len(self.told),
            "by_k": by_k,
            "best_k": max(range(len(by_k)), key=lambda k: (by_k[k]["reversed"]["value"], -k)),
            "usual": self._agreement([one["by_terms"][one["usual"]] for one in self.told])
            | {"ranks": [ranks.count(k) for k in range(len(by_k))]},
            "traced": self._agreement([one["traced"] for one in self.told]),
            "subject_found": share([one["found"] for one in self.told]),
            "subjects": len(self.listed.names),
        }

    def _agreement(self, said: Sequence[int]) -> dict[str, Any]:
        return {
            "reversed": share([token == one["clean"] for token, one in zip(said, self.told, strict=True)]),
            "edited": share([token == one["by_terms"][0] for token, one in zip(said, self.told, strict=True)]),
        }
