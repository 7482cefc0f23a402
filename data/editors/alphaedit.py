"""AlphaEdit (Fang et al. 2025) at one layer: MEMIT in the space that the keys of a text leave empty.

    P      onto the eigenvectors of C whose eigenvalues are below a threshold
    ΔW     Δ KᵀP (KKᵀP + λI)⁻¹ = Δ (λI + KᵀPK)⁻¹ (PK)ᵀ: what C counts as keys gives what it gave, as ΔW (I - P) = 0

Key and δ are MEMIT's.

Facts that follow one another (`keep`) leave the outputs at the keys K₀ of those before as they are: M = K₀K₀ᵀ joins KKᵀ, so that

    ΔW     Δ KᵀP ((KKᵀ + M)P + λI)⁻¹ = [Δ 0] (λI + JᵀPJ)⁻¹ (PJ)ᵀ, J = [K K₀]; of N facts it has rank N

In one layer the keys do not change by what is written there. Of several, each has the keys that it had when they were kept, as published.

Shape letters: B edited hosts, N facts of one, K facts before, M both, F MLP width, D hidden width.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from data.editors.memit import Memit
from data.editors.value_search import Job, row_starts
from data.facts.fact import EditRequest
from data.keys.cache import KeyStatistics
from data.keys.whiten import Solver, null_space
from decoder.config.editors import AlphaEditConfig


class AlphaEdit(Memit):
    """Attributes:
        whiten: keys k (B, F) -> Pk.
        kept: keys (K, F) in each layer of the facts that were planted before, at which outputs stay; float64 on the CPU.

    Raises:
        ValueError: the threshold leaves no null space.
    """

    kept: Mapping[int, Tensor] = MappingProxyType({})

    def keep(self, requests: Sequence[EditRequest]) -> None:
        """Counts the keys of facts that the host has been given among those at which outputs stay from now on.

        Of several layers their keys are those of the host as it is now, so their edit has to be in its weights.
        """
        jobs = [self._job(index, request) for index, request in enumerate(requests)]
        keys = self._keys_by_layer(jobs)
        self.kept = {layer: torch.cat([self.kept[layer], key_NF]) if self.kept else key_NF for layer, key_NF in keys.items()}

    def _keys_by_layer(self, jobs: list[Job]) -> dict[int, Tensor]:
        if len(self.layers) > 1:
            return {layer: self._on({}, layer, [jobs])[0][0] for layer in self.layers}
        return {self.edited_layer: torch.cat([self._key(self._clean([job]).key_NF, row_starts([job])) for job in jobs])}

    def _closed_form(self, layer: int, key_BNF: Tensor, delta_BND: Tensor) -> tuple[Tensor, Tensor]:
        if not self.kept:
            return super()._closed_form(layer, key_BNF, delta_BND)
        hosts, facts, _ = key_BNF.shape
        joined_BMF = torch.cat([key_BNF, self.kept[layer].expand(hosts, -1, -1)], dim=1)
        turned_BMF = self.whiteners[layer](joined_BMF.flatten(0, 1)).view(joined_BMF.shape)
        system_BMM = joined_BMF @ turned_BMF.mT + self.weight * torch.eye(joined_BMF.shape[1], dtype=joined_BMF.dtype)
        direction_BNF = torch.linalg.pinv(system_BMM, hermitian=True)[:, :facts] @ turned_BMF
        length_BN1 = direction_BNF.norm(dim=2, keepdim=True)
        return direction_BNF / length_BN1, delta_BND * length_BN1

    @staticmethod
    def solver(statistics: KeyStatistics, cfg: AlphaEditConfig) -> Solver:
        return null_space(statistics, cfg.threshold)


EDITORS = {"alphaedit": AlphaEdit}
