"""EMMET (Gupta et al. 2024) of one fact: MEMIT's key and ROME's equality, ΔW k = δ at that key.

    ΔW = δ (C⁻¹k)ᵀ / (kᵀC⁻¹k)

One key is the direction of the edit and the place where it holds, as in r-ROME.
"""

from data.editors.memit import Memit


class Emmet(Memit):
    weight = 0.0


EDITORS = {"emmet": Emmet}
