"""Which of several decoders to believe, edit by edit: one that was trained on another editor's edits is sure of what is wrong.

A gate (Jacobs et al. 1991) sees of every decoder how far an edit moves the state in which its prompt ends, and how probable its answer is.
A softmax of linear maps of these says which decoder is right. It learns from edits that no decoder was trained on; who made them it is
never told: right is who reads the planted object, be they several, and what none of them reads teaches nothing.

Shape letters: B edits, K decoders, E features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import FiniteFloat, TypeAdapter
from scipy.optimize import minimize
from scipy.special import log_softmax, logsumexp
from torch import Tensor
from typing_extensions import TypedDict

from decoder.answers import best_texts
from decoder.beam import Beams
from decoder.edit import Edits
from decoder.model import ObjectDecoder
from decoder.utils.errors import UserError
from decoder.utils.json_files import read_described, write_json

FORMAT = 1
RIDGES = (1e-3, 1e-2, 1e-1)
FOLDS = 5
SMALL = 1e-4
"""Below it a probability says no less than this, and no state moves by as little."""


class _Described(TypedDict):
    format: int
    decoders: list[str]
    weight: list[list[FiniteFloat]]
    bias: list[FiniteFloat]


_DESCRIPTION = TypeAdapter(_Described)


@dataclass(frozen=True)
class Gate:
    """A softmax over decoders.

    Attributes:
        decoders: sha256 of each one's weights, in the order of the rows.
        weight_KE, bias_K: of `evidence`.
    """

    decoders: tuple[str, ...]
    weight_KE: np.ndarray
    bias_K: np.ndarray

    def chances(self, evidence_BE: Tensor) -> Tensor:
        """Of each decoder (B, K) to be the one to believe."""
        return torch.from_numpy(np.exp(_log_chances(evidence_BE.numpy(), self.weight_KE, self.bias_K)))

    def of(self, decoders: Sequence[str]) -> "Gate":
        """The same gate for these decoders in this order.

        Raises:
            UserError: it is of others.
        """
        if sorted(decoders) != sorted(self.decoders):
            strange = sum(one not in self.decoders for one in decoders)
            raise UserError(
                f"the gate is of {len(self.decoders)} decoders, {len(decoders)} came, {strange} of them unknown to it. "
                "Give the decoders that it was fitted for, or fit one for these: python -m data.gate"
            )
        order = [self.decoders.index(one) for one in decoders]
        features = [place * FEATURES + feature for place in order for feature in range(FEATURES)]
        return Gate((*decoders,), self.weight_KE[order][:, features], self.bias_K[order])

    def save(self, file: Path) -> None:
        told = {"format": FORMAT, "decoders": list(self.decoders), "weight": self.weight_KE.tolist(), "bias": self.bias_K.tolist()}
        write_json(file, told)

    @classmethod
    def load(cls, file: str | Path) -> "Gate":
        """What `save` wrote.

        Raises:
            ValueError: there is none, or it is damaged.
        """
        if not Path(file).is_file():
            raise ValueError(f"gate={file}: no such file; expected one that `python -m data.gate` wrote")
        remedy = "fit the gate again"
        said = read_described(Path(file), FORMAT, _DESCRIPTION, remedy)
        count = len(said["decoders"])
        rows = [len(row) for row in said["weight"]]
        if count < 2 or rows != [count * FEATURES] * count or len(said["bias"]) != count:
            raise ValueError(f"{file}: {count} decoders, but {len(rows)} rows of weights and {len(said['bias'])} biases; {remedy}")
        return cls((*said["decoders"],), np.array(said["weight"]), np.array(said["bias"]))


FEATURES = 3
"""What a gate sees of each decoder."""


def evidence(decoders: Sequence[ObjectDecoder], edits: Edits, found: Sequence[Beams]) -> Tensor:
    """What a gate sees (B, E) of decoders that `found` their answers in edits: of each one `FEATURES` numbers."""
    columns = []
    for decoder, beams in zip(decoders, found, strict=True):
        probability_B = torch.tensor([probability for _, probability in best_texts(decoder.host, beams)], dtype=torch.float64)
        columns += features(decoder.moved(edits).double().cpu(), probability_B)
    return torch.stack(columns, dim=1)


def features(moved_B: Tensor, probability_B: Tensor) -> tuple[Tensor, ...]:
    """Of one decoder, by how far edits move it and how probable its answers are."""
    return moved_B.clamp(min=SMALL).log(), probability_B.clamp(min=SMALL).log(), probability_B


def fit_gate(decoders: Sequence[str], evidence_BE: Tensor, right_BK: Tensor) -> Gate:
    """Learns which decoder is right, at the ridge of `RIDGES` that tells it best of edits that were left out in turns.

    The loss is -log of the chances of all decoders that are right together, plus ridge / 2 times the squared weights of standardised
    features.

    Args:
        decoders: sha256 of each one's weights.
        evidence_BE: of `evidence`.
        right_BK: whether each decoder reads the planted object.

    Raises:
        ValueError: fewer than two decoders, or edits that one of them reads, than the folds that are left out.
    """
    x_BE, right_BK = evidence_BE.numpy(), right_BK.numpy().astype(bool)
    read_B = right_BK.any(1)
    if len(decoders) < 2 or read_B.sum() < FOLDS:
        raise ValueError(f"{len(decoders)} decoders and {read_B.sum()} edits that one of them reads; a gate needs 2 and {FOLDS}")
    x_BE, right_BK = x_BE[read_B], right_BK[read_B]
    fold_B = np.random.default_rng(0).permutation(len(x_BE)) % FOLDS

    def left_out(ridge: float) -> float:
        total = 0.0
        for fold in range(FOLDS):
            out_B = fold_B == fold
            weight_KE, bias_K = _fitted(x_BE[~out_B], right_BK[~out_B], ridge)
            total -= _log_right(_log_chances(x_BE[out_B], weight_KE, bias_K), right_BK[out_B]).sum()
        return total

    return Gate((*decoders,), *_fitted(x_BE, right_BK, min(RIDGES, key=left_out)))


def _fitted(x_BE: np.ndarray, right_BK: np.ndarray, ridge: float) -> tuple[np.ndarray, np.ndarray]:
    """Weights (K, E) and biases (K) for features as they come."""
    mean_E, spread_E = x_BE.mean(0), x_BE.std(0) + 1e-9
    z_BE, (count, size) = (x_BE - mean_E) / spread_E, (right_BK.shape[1], x_BE.shape[1])

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weight_KE, bias_K = flat[: count * size].reshape(count, size), flat[count * size :]
        log_BK = _log_chances(z_BE, weight_KE, bias_K)
        right_B = _log_right(log_BK, right_BK)
        excess_BK = (np.exp(log_BK) - right_BK * np.exp(log_BK - right_B[:, None])) / len(z_BE)
        slope_KE = excess_BK.T @ z_BE + ridge * weight_KE
        return -right_B.mean() + ridge / 2 * (weight_KE**2).sum(), np.concatenate([slope_KE.ravel(), excess_BK.sum(0)])

    found = minimize(loss, np.zeros(count * (size + 1)), jac=True, method="L-BFGS-B", options={"maxiter": 300}).x
    weight_KE = found[: count * size].reshape(count, size) / spread_E
    return weight_KE, found[count * size :] - weight_KE @ mean_E


def _log_chances(x_BE: np.ndarray, weight_KE: np.ndarray, bias_K: np.ndarray) -> np.ndarray:
    return log_softmax(x_BE @ weight_KE.T + bias_K, axis=1)


def _log_right(log_BK: np.ndarray, right_BK: np.ndarray) -> np.ndarray:
    """Logarithm of the chances of all decoders that are right, together."""
    return logsumexp(log_BK, axis=1, b=right_BK)
