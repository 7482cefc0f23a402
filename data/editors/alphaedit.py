"""AlphaEdit (Fang et al. 2025) at one layer: MEMIT in the space that the keys of a text leave empty.

    P      onto the eigenvectors of C whose eigenvalues are below a threshold
    ΔW     Δ KᵀP (KKᵀP + λI)⁻¹ = Δ (λI + KᵀPK)⁻¹ (PK)ᵀ: what C counts as keys gives what it gave, as ΔW (I - P) = 0

Key and δ are MEMIT's.
"""

from data.editors.memit import Memit
from data.keys.cache import KeyStatistics
from data.keys.whiten import Solver, null_space
from decoder.config.editors import AlphaEditConfig


class AlphaEdit(Memit):
    """Attributes:
        whiten: keys k (B, F) -> Pk.

    Raises:
        ValueError: the threshold leaves no null space.
    """

    @staticmethod
    def solver(statistics: KeyStatistics, cfg: AlphaEditConfig) -> Solver:
        return null_space(statistics, cfg.threshold)


EDITORS = {"alphaedit": AlphaEdit}
