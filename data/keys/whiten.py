"""What turns keys towards those that others rarely share: the inverse of their second moment, or its null space.

Shape letters: F MLP width, B vectors.
"""

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from data.keys.cache import KeyStatistics

log = logging.getLogger(__name__)

Solver = Callable[[Tensor], Tensor]


def whitener(statistics: KeyStatistics, ridge: float | str) -> Solver:
    """A function that maps keys (B, F) to C⁻¹k in float64, after one factorisation.

    Args:
        statistics: C.
        ridge: `identity` for C = I, else the fraction of C's largest eigenvalue that is added to its diagonal.

    If C is singular at ridge 0, the pseudo-inverse takes the place of the inverse and a warning is logged.

    Raises:
        ValueError: ridge is neither `identity` nor a number from 0 up.
    """
    if ridge == "identity":
        return lambda keys_BF: keys_BF.double()
    if isinstance(ridge, str | bool) or not ridge >= 0:
        raise ValueError(f"edits.ridge={ridge!r}: expected 0, a fraction of the largest eigenvalue, or identity")
    moment_FF = statistics.moment_FF.double()
    if ridge:
        moment_FF = moment_FF + ridge * _largest_eigenvalue(moment_FF) * torch.eye(len(moment_FF), dtype=torch.float64)
    factor_FF, failed = torch.linalg.cholesky_ex(moment_FF)
    pivots_F = factor_FF.diagonal().square()
    rounding = torch.finfo(torch.float32).eps
    # Rounding of the stored float32 can carry a singular matrix through the factorisation.
    if failed or pivots_F.min() < rounding * pivots_F.max():
        log.warning(
            "second moment of %d keys of width %d is singular, its pseudo-inverse is taken; edits.ridge > 0 or more text avoids it",
            statistics.count,
            len(pivots_F),
        )
        inverse_FF = torch.linalg.pinv(moment_FF, rtol=len(pivots_F) ** 0.5 * rounding, hermitian=True)
        return lambda keys_BF: keys_BF.double().cpu() @ inverse_FF
    return lambda keys_BF: torch.cholesky_solve(keys_BF.double().cpu().T, factor_FF).T


def null_space(statistics: KeyStatistics, threshold: float) -> Solver:
    """A function that projects keys (B, F) onto the eigenvectors of C with eigenvalues below a threshold, in float64.

    Raises:
        ValueError: there is none, or nothing else.
    """
    value_F, vector_FF = torch.linalg.eigh(statistics.moment_FF.double())
    basis_FN = vector_FF[:, value_F < threshold]
    if not basis_FN.shape[1]:
        raise ValueError(
            f"edits.threshold={threshold:g} leaves no null space: the least eigenvalue of {statistics.count} keys is {value_F[0]:.2e}, "
            f"the median {value_F.median():.2e}. Raise it"
        )
    if basis_FN.shape[1] == len(value_F):
        raise ValueError(
            f"edits.threshold={threshold:g} protects nothing: the largest eigenvalue of {statistics.count} keys is {value_F[-1]:.2e}, "
            f"the median {value_F.median():.2e}. Lower it"
        )
    log.info("null space: %d of %d directions", basis_FN.shape[1], len(value_F))
    return lambda keys_BF: keys_BF.double().cpu() @ basis_FN @ basis_FN.T


def _largest_eigenvalue(moment_FF: Tensor) -> Tensor:
    """By power iteration: a full decomposition takes minutes at the width of a large model."""
    vector_F = moment_FF.diagonal().sqrt()
    value = vector_F.new_zeros(())
    for _ in range(1000):
        image_F = moment_FF @ vector_F
        norm = image_F.norm()
        if norm == 0 or (norm - value).abs() <= 1e-10 * norm:
            return norm
        value, vector_F = norm, image_F / norm
    return value
