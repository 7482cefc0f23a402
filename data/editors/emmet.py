"""EMMET (Gupta et al. 2024): MEMIT's keys and ROME's equality, ΔW k = δ at the key of every fact of a host.

    ΔW = Δ (KᵀC⁻¹K)⁻¹ (C⁻¹K)ᵀ

Of one fact, one key is the direction of the edit and the place where it holds, as in r-ROME.
"""

from data.editors.memit import Memit


class Emmet(Memit):
    weight = 0.0


EDITORS = {"emmet": Emmet}
