"""AlphaEdit (Fang et al. 2025) at one layer: MEMIT in the space that the keys of a text leave empty.

    P      onto the eigenvectors of C whose eigenvalues are below a threshold
    ΔW     Δ KᵀP (KKᵀP + λI)⁻¹ = Δ (λI + KᵀPK)⁻¹ (PK)ᵀ: what C counts as keys gives what it gave, as ΔW (I - P) = 0

Key and δ are MEMIT's.

Facts that follow one another (`keep`) leave the outputs at the keys K₀ of those before as they are: M = K₀K₀ᵀ joins KKᵀ, so that

    ΔW     Δ KᵀP ((KKᵀ + M)P + λI)⁻¹ = [Δ 0] (λI + JᵀPJ)⁻¹ (PJ)ᵀ, J = [K K₀]; of one fact it has rank one

In one layer the keys do not change by what is written there, so they are those of the clean host.

Shape letters: B edits, N facts before and the edit's own, D hidden width, F MLP width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from data.editors.memit import Memit
from data.editors.prefix_cache import Suffixes
from data.editors.value_search import row_starts
from data.facts.fact import EditRequest
from data.keys.cache import KeyStatistics
from data.keys.whiten import Solver, null_space
from decoder.config.editors import AlphaEditConfig


class AlphaEdit(Memit):
    """Attributes:
        whiten: keys k (B, F) -> Pk.
        kept_NF: keys of the facts that were planted before, at which outputs stay.

    Raises:
        ValueError: the threshold leaves no null space.
    """

    kept_NF: Tensor | None = None

    def keep(self, request: EditRequest) -> None:
        """Counts the key of a fact that was planted among those at which outputs stay from now on."""
        job = self._job(0, request)
        key_1F = self._key(self._clean([job]).key_NF, row_starts([job]))
        self.kept_NF = key_1F if self.kept_NF is None else torch.cat([self.kept_NF, key_1F])

    def _factors(self, suffixes: Suffixes, starts: Sequence[int], delta_BD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.kept_NF is None:
            return super()._factors(suffixes, starts, delta_BD)
        key_BF = self._key(suffixes.key_NF, starts)
        joined_BNF = torch.cat([key_BF[:, None], self.kept_NF.expand(len(key_BF), -1, -1)], dim=1)
        turned_BNF = self.whiten(joined_BNF.flatten(0, 1)).view(joined_BNF.shape)
        system_BNN = joined_BNF @ turned_BNF.mT + self.weight * torch.eye(joined_BNF.shape[1], dtype=joined_BNF.dtype)
        direction_BF = (torch.linalg.pinv(system_BNN, hermitian=True)[:, :1] @ turned_BNF)[:, 0]
        length_B1 = direction_BF.norm(dim=1, keepdim=True)
        return direction_BF / length_B1, delta_BD * length_B1, key_BF

    @staticmethod
    def solver(statistics: KeyStatistics, cfg: AlphaEditConfig) -> Solver:
        return null_space(statistics, cfg.threshold)


EDITORS = {"alphaedit": AlphaEdit}
