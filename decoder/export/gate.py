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
FEATURES = ("moved", "log_probability", "probability")
"""What a gate sees of each decoder."""
RIDGES = (1e-3, 1e-2, 1e-1)  # of standardised features
FOLDS = 5  # of edits, left out in turns to choose among the ridges
SMALL = 1e-4  # of a probability, and of how far a state moves: what is less is as good as nothing


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
        decoders: what identifies each one (`opened.identity_of`), in the order of the rows.
        weight_KE, bias_K: of what `seen` gives.
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
        features = [place * len(FEATURES) + feature for place in order for feature in range(len(FEATURES))]
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
            came = "is a folder" if Path(file).exists() else "no such file"
            raise ValueError(f"gate={file}: {came}; expected a file that `python -m data.gate` wrote")
        remedy = "fit the gate again"
        said = read_described(Path(file), FORMAT, _DESCRIPTION, remedy)
        count = len(said["decoders"])
        rows = [len(row) for row in said["weight"]]
        if count < 2 or rows != [count * len(FEATURES)] * count or len(said["bias"]) != count:
            raise ValueError(f"{file}: {count} decoders, but {len(rows)} rows of weights and {len(said['bias'])} biases; {remedy}")
        return cls((*said["decoders"],), np.array(said["weight"]), np.array(said["bias"]))


def evidence(decoders: Sequence[ObjectDecoder], edits: Edits, found: Sequence[Beams]) -> Tensor:
    """What a gate sees (B, E) of decoders that `found` their answers in edits."""
    moved_KB = torch.stack([decoder.moved(edits).cpu().double() for decoder in decoders])
    sure = [[probability for _, probability in best_texts(decoder.host, beams)] for decoder, beams in zip(decoders, found, strict=True)]
    return seen(moved_KB, torch.tensor(sure, dtype=torch.float64))


def seen(moved_KB: Tensor, probability_KB: Tensor) -> Tensor:
    """The same (B, E) from how far edits move decoders, and how probable their answers are: decoder by decoder its `FEATURES`."""
    each_KFB = torch.stack([moved_KB.clamp(min=SMALL).log(), probability_KB.clamp(min=SMALL).log(), probability_KB], dim=1)
    return each_KFB.flatten(0, 1).T


def fit_gate(decoders: Sequence[str], evidence_BE: Tensor, right_BK: Tensor, edits: Sequence[str]) -> tuple[Gate, Tensor]:
    """Learns which decoder is right, at the ridge of `RIDGES` that tells it best of edits that were left out in turns.

    The loss is -log of the chances of all decoders that are right together, plus ridge / 2 times the squared weights of standardised
    features.

    Args:
        decoders: what identifies each one.
        evidence_BE: of `seen`.
        right_BK: whether each decoder reads the planted object.
        edits: what is left out together: the same fact and object in stores of several editors.

    Returns:
        The gate, and of each edit (B) whether the decoder was right that it believes when the edit is left out.

    Raises:
        ValueError: fewer than two decoders, or fewer edits that one of them reads than folds.
    """
    x_BE, right_BK = evidence_BE.numpy(), right_BK.numpy().astype(bool)
    read_B, names = right_BK.any(1), sorted({*edits})
    folds = np.random.default_rng(0).permutation(len(names)) % FOLDS
    fold_of = dict(zip(names, folds.tolist(), strict=True))
    read = {edit for edit, is_read in zip(edits, read_B, strict=True) if is_read}
    if len(decoders) < 2 or len(read) < FOLDS or len({fold_of[edit] for edit in read}) < 2:
        raise ValueError(
            f"{len(read)} of {len(names)} validation edits are read by any of {len(decoders)} decoders, expected {FOLDS} edits or "
            "more, and two decoders. Give stores of the editors that the decoders were trained on"
        )
    fold_B = np.array([fold_of[edit] for edit in edits])

    def left_out(ridge: float) -> np.ndarray:
        log_BK = np.empty(right_BK.shape)
        for fold in {*fold_of.values()}:
            out_B = fold_B == fold
            log_BK[out_B] = _log_chances(x_BE[out_B], *_fitted(x_BE[~out_B & read_B], right_BK[~out_B & read_B], ridge))
        return log_BK

    tried = {ridge: left_out(ridge) for ridge in RIDGES}
    ridge = max(tried, key=lambda ridge: _log_right(tried[ridge][read_B], right_BK[read_B]).sum())
    hits_B = right_BK[np.arange(len(right_BK)), tried[ridge].argmax(1)]
    return Gate((*decoders,), *_fitted(x_BE[read_B], right_BK[read_B], ridge)), torch.from_numpy(hits_B)


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
