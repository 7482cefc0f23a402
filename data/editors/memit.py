"""MEMIT (Meng et al. 2023) at one layer: what is written is weighed against the keys that are to stay.

    key    k = ½ k₀ + ½ k̄, of the bare prompt and the mean over the other contexts
    ΔW     Δ Kᵀ (λC + KKᵀ)⁻¹ = Δ (λI + KᵀC⁻¹K)⁻¹ (C⁻¹K)ᵀ, columns of K and Δ being keys and δ of all facts of a host: the least of
           |ΔW K - Δ|² + λ |ΔW C^½|²

δ is searched for as in ROME. MEMIT adds it to the output of the block. In one layer that is what adding it to the projection's output
does, but for families with a norm in between: there the projection has to give what is searched for before the norm.

Shape letters: B edits, N facts of a host or rows, R terms, D hidden width, F MLP width.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from data.editors.prefix_cache import Suffixes
from data.editors.rome import Rome
from data.editors.value_search import Job
from decoder.edit import LowRankEdit


class Memit(Rome):
    """As ROME, but for key and closed form; several facts of a host are solved for together, each δ searched for on the clean host.

    With λ = 0, one fact, and the bare prompt as the only context it is ROME.

    Attributes:
        whiten: keys k (B, F) -> C⁻¹k.
    """

    @property
    def weight(self) -> float:
        """λ."""
        return self.cfg.weight

    def _factors(self, suffixes: Suffixes, starts: Sequence[int], delta_BD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        key_BF = self._key(suffixes.key_NF, starts)
        unit_BNF, value_BND = self._closed_form(key_BF[:, None], delta_BD[:, None])
        return unit_BNF[:, 0], value_BND[:, 0], key_BF

    def _terms(self, jobs_BN: list[list[Job]], advance: Callable[[int], None] | None) -> LowRankEdit:
        jobs = [Job(index, job.rows, job.essence) for index, job in enumerate(job for host in jobs_BN for job in host)]
        _, _, delta_BD, _, _, key_BF = self._in_order(jobs, advance)
        shape = (len(jobs_BN), len(jobs_BN[0]))
        unit_BNF, value_BND = self._closed_form(key_BF.unflatten(0, shape), delta_BD.double().unflatten(0, shape))
        return LowRankEdit(unit_BNF.float(), value_BND.float())

    def _closed_form(self, key_BNF: Tensor, delta_BND: Tensor) -> tuple[Tensor, Tensor]:
        """A term for each fact of each host: keys of length 1, and values."""
        turned_BNF = self.whiten(key_BNF.flatten(0, 1)).view(key_BNF.shape)
        length_BN1 = turned_BNF.norm(dim=2, keepdim=True)
        system_BNN = key_BNF @ turned_BNF.mT + self.weight * torch.eye(key_BNF.shape[1], dtype=key_BNF.dtype)
        # Keys that say the same leave the system singular where nothing weighs against them.
        return turned_BNF / length_BN1, torch.linalg.pinv(system_BNN, hermitian=True) @ delta_BND * length_BN1

    def _key(self, key_NF: Tensor, starts: Sequence[int]) -> Tensor:
        bare_BF = key_NF[starts].double().cpu()
        return bare_BF if len(self.contexts) == 1 else (bare_BF + self._mean(key_NF, starts, first=1)) / 2


EDITORS = {"memit": Memit}
