"""MEMIT (Meng et al. 2023) of one fact at one layer: what is written is weighed against the keys that are to stay.

    key    k = ½ k₀ + ½ k̄, of the bare prompt and the mean over the other contexts
    ΔW     δ (C⁻¹k)ᵀ / (λ + kᵀC⁻¹k), which is δ kᵀ (λC + kkᵀ)⁻¹: the least of |ΔW k - δ|² + λ |ΔW C^½|²

δ is searched for as in ROME. MEMIT adds it to the output of the block. In one layer that is what adding it to the projection's output
does, but for families with a norm in between: there the projection has to give what is searched for before the norm.

Shape letters: B edits, N rows, D hidden width, F MLP width.
"""

from collections.abc import Sequence

from torch import Tensor

from data.editors.prefix_cache import Suffixes
from data.editors.rome import Rome


class Memit(Rome):
    """As ROME, but for key and closed form; with λ = 0 and the bare prompt as the only context it is ROME.

    Attributes:
        whiten: keys k (B, F) -> C⁻¹k.
    """

    @property
    def weight(self) -> float:
        """λ."""
        return self.cfg.weight

    def _factors(self, suffixes: Suffixes, starts: Sequence[int], delta_BD: Tensor) -> tuple[Tensor, Tensor]:
        key_BF = self._key(suffixes.key_NF, starts)
        turned_BF = self.whiten(key_BF)
        length_B1 = turned_BF.norm(dim=1, keepdim=True)
        return turned_BF / length_B1, delta_BD * length_B1 / (self.weight + (turned_BF * key_BF).sum(dim=1, keepdim=True))

    def _key(self, key_NF: Tensor, starts: Sequence[int]) -> Tensor:
        bare_BF = key_NF[starts].double().cpu()
        return bare_BF if len(self.contexts) == 1 else (bare_BF + self._mean(key_NF, starts, first=1)) / 2


EDITORS = {"memit": Memit}
