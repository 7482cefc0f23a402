"""In which relation an edit planted its object, told by its value: one linear map, fitted on edits whose relations are known.

Shape letters: N edits, K relations or principal components, D hidden width, F MLP width, P edits that the components are taken from.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from scipy.optimize import minimize
from scipy.special import log_softmax
from torch import Tensor
from torch.nn.functional import normalize
from typing_extensions import NotRequired, TypedDict

from decoder.utils.files import whole_folder
from decoder.utils.json_files import read_described, write_json

FORMAT = 1
MAP, NAMES = "relation_model.safetensors", "relation_config.json"
RIDGES = (1e-5, 1e-4, 1e-3, 1e-2)
FOLDS = 4
KEY_SHARE = 0.25
"""Of a key's features beside a value's. Right on a quarter of the pocket host's subjects: 0.932; with 0.5 0.917, without keys 0.899."""
KEY_GAIN = 0.95  # of the held-out loss without keys: below it they say something, and are no mere noise
COMPONENTS, FITTED = 50, 100  # of the published recipe: principal components, and edits that they are taken from


class _Described(TypedDict):
    format: int
    relations: list[str]
    width: int
    key_width: NotRequired[int]


_DESCRIPTION = TypeAdapter(_Described)


@dataclass(frozen=True)
class RelationClassifier:
    """Logistic regression on the directions of values, and of keys.

    How long a value is, and how much of it W' shows, depends on its key: so only its direction is looked at. A key says whom an edit is
    about, and so what kind of thing can be said of them.

    Attributes:
        key_width: of keys, whose features come last; 0 where only values are looked at.
    """

    relations: tuple[str, ...]
    weight_KE: Tensor
    bias_K: Tensor
    key_width: int = 0

    @property
    def width(self) -> int:
        """Of values."""
        return self.weight_KE.shape[1] - self.key_width

    def check(self, width: int) -> None:
        """Raises ValueError if it was fitted on values of another width."""
        if width != self.width:
            raise ValueError(f"values are {width} wide, expected {self.width}: they are of another host")

    def probabilities(self, value_ND: Tensor, key_NF: Tensor | None = None) -> Tensor:
        """Of each relation (N, K), for values and keys of any length; keys may be left out where only values are looked at.

        Raises:
            ValueError: they are of another width, or keys are missing.
        """
        self.check(value_ND.shape[-1])
        if self.key_width and (key_NF is None or key_NF.shape[-1] != self.key_width):
            came = "no keys came" if key_NF is None else f"keys are {key_NF.shape[-1]} wide"
            raise ValueError(f"{came}, expected them {self.key_width} wide, as of the host that the relations were learnt on")
        return (_features(value_ND, key_NF if self.key_width else None) @ self.weight_KE.T + self.bias_K).softmax(-1)

    def ranked(self, value_D: Tensor, key_F: Tensor | None = None) -> list[tuple[str, float]]:
        """Relations with their probabilities for one edit, likeliest first."""
        probability_K = self.probabilities(value_D[None], None if key_F is None else key_F[None])[0]
        pairs = zip(self.relations, probability_K.tolist(), strict=True)
        return sorted(pairs, key=lambda pair: -pair[1])

    def save(self, folder: str | Path) -> None:
        """Writes the folder whole: what was learnt as safetensors, names as JSON."""
        with whole_folder(Path(folder)) as unfinished:
            save_file({"weight": self.weight_KE.contiguous(), "bias": self.bias_K.contiguous()}, unfinished / MAP)
            told = {"format": FORMAT, "relations": list(self.relations), "width": self.width, "key_width": self.key_width}
            write_json(unfinished / NAMES, told)

    @classmethod
    def load(cls, folder: str | Path) -> "RelationClassifier":
        """What `save` wrote.

        Raises:
            ValueError: a file is missing or damaged, or the two do not belong together.
        """
        folder = Path(folder)
        if came := _lacking(folder):
            raise ValueError(f"relations={folder}: {came}; expected a folder that `python -m data.relations` wrote")
        try:
            said = read_described(folder / NAMES, FORMAT, _DESCRIPTION, "fit the relations again")
            tensors = load_file(folder / MAP)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{folder} holds no relations ({error}). Fit them again") from None
        key_width = said.get("key_width", 0)
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if shapes != (expected := {"weight": (len(said["relations"]), said["width"] + key_width), "bias": (len(said["relations"]),)}):
            raise ValueError(f"{folder / MAP} holds {shapes}, {NAMES} says {expected}. Fit the relations again")
        return cls(tuple(said["relations"]), tensors["weight"], tensors["bias"], key_width)


def _lacking(folder: Path) -> str | None:
    """What is not as it is in a folder of relations; None if all files are there."""
    if not folder.is_dir():
        return "is a file" if folder.exists() else "no such folder"
    return next((f"no {name} there" for name in (NAMES, MAP) if not (folder / name).is_file()), None)


def fit(value_ND: Tensor, relations: Sequence[str], groups: Sequence[str], key_NF: Tensor | None = None) -> RelationClassifier:
    """Learns the relation from the value of an edit, at the ridge of `RIDGES` that does best on groups it was not fitted on, and from its
    key as well, where keys are given, if that does clearly better still (`KEY_GAIN`).

    All relations weigh the same: of which there are many to learn from is not the one that somebody plants.

    Args:
        value_ND: of any length and scale.
        relations: of each edit.
        groups: of each edit, what a fold may not share with another: its subject.
        key_NF: of any length and scale.

    Raises:
        ValueError: fewer than two relations or groups.
    """
    names, groups_found = sorted(set(relations)), sorted(set(groups))
    if len(names) < 2 or len(groups_found) < 2:
        raise ValueError(f"{len(names)} relations of {len(groups_found)} subjects came; expected two or more of each")
    y_N = np.array([names.index(relation) for relation in relations])
    fold_of = np.random.default_rng(0).permutation(len(groups_found)) % min(FOLDS, len(groups_found))
    fold_N = np.array([fold_of[groups_found.index(group)] for group in groups])
    x_NE, key_width = _features(value_ND, None).double().numpy(), 0
    weight_N = len(y_N) / len(names) / np.bincount(y_N)[y_N]
    losses = {ridge: _held_out_loss(x_NE, y_N, fold_N, weight_N, ridge) for ridge in RIDGES}
    ridge = min(RIDGES, key=losses.__getitem__)
    if key_NF is not None:
        both_NE = _features(value_ND, key_NF).double().numpy()
        if _held_out_loss(both_NE, y_N, fold_N, weight_N, ridge) < KEY_GAIN * losses[ridge]:
            x_NE, key_width = both_NE, key_NF.shape[1]
    weight_KE, bias_K = _logistic(x_NE, y_N, len(names), ridge, weight_N)
    return RelationClassifier((*names,), torch.from_numpy(weight_KE).float(), torch.from_numpy(bias_K).float(), key_width)


def _features(value_ND: Tensor, key_NF: Tensor | None) -> Tensor:
    """Directions, as long as the square root of their width: entries are then of the size of 1; those of keys are a share of that."""
    value_ND = normalize(value_ND.float(), dim=-1) * value_ND.shape[-1] ** 0.5
    if key_NF is None:
        return value_ND
    return torch.cat([value_ND, KEY_SHARE * normalize(key_NF.float(), dim=-1) * key_NF.shape[-1] ** 0.5], dim=-1)


def _held_out_loss(x_ND: np.ndarray, y_N: np.ndarray, fold_N: np.ndarray, weight_N: np.ndarray, ridge: float) -> float:
    """The weighted sum of negative log-likelihoods of folds that were left out in turn."""
    total = 0.0
    for fold in set(fold_N.tolist()):
        out_N = fold_N == fold
        weight_KD, bias_K = _logistic(x_ND[~out_N], y_N[~out_N], y_N.max() + 1, ridge, weight_N[~out_N])
        logprob_NK = log_softmax(x_ND[out_N] @ weight_KD.T + bias_K, axis=1)
        total -= float(logprob_NK[np.arange(out_N.sum()), y_N[out_N]] @ weight_N[out_N])
    return total


def _logistic(
    x_ND: np.ndarray, y_N: np.ndarray, classes: int, ridge: float, weight_N: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """argmin over W and b of the mean negative log-likelihood, weighted or not, + ridge/2 · |W|²."""
    told_NK, width = np.eye(classes)[y_N], x_ND.shape[1]
    share_N = np.full(len(y_N), 1 / len(y_N)) if weight_N is None else weight_N / weight_N.sum()

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weight_KD, bias_K = flat[: classes * width].reshape(classes, width), flat[classes * width :]
        logprob_NK = log_softmax(x_ND @ weight_KD.T + bias_K, axis=1)
        excess_NK = (np.exp(logprob_NK) - told_NK) * share_N[:, None]
        value = -(logprob_NK * told_NK).sum(1) @ share_N + ridge / 2 * (weight_KD**2).sum()
        return value, np.concatenate([(excess_NK.T @ x_ND + ridge * weight_KD).ravel(), excess_NK.sum(0)])

    found = minimize(loss, np.zeros(classes * (width + 1)), jac=True, method="L-BFGS-B", options={"maxiter": 200}).x
    return found[: classes * width].reshape(classes, width), found[classes * width :]


def published_recipe(
    train: tuple[Tensor, Tensor],
    relations: Sequence[str],
    suspects: tuple[Tensor, Tensor],
    components: int = COMPONENTS,
    fitted: int = FITTED,
) -> list[str]:
    """Relations of suspects as Youssef et al. (2025) tell them: principal components of whole matrices, then logistic regression.

    No matrix is made. Around their mean, edited matrices are as their updates are around theirs, so nobody need know W; and the inner
    products of rank-one updates are (vᵢ·vⱼ)(kᵢ·kⱼ).

    Args:
        train: keys (N, F) and values (N, D) of edits whose relations are known.
        relations: of these.
        suspects: keys and values of others.
        components: that are kept.
        fitted: of the training edits, at most so many give the components, taken from all over them.
    """
    names = sorted(set(relations))
    picked = np.linspace(0, len(relations) - 1, min(fitted, len(relations))).astype(int)
    basis = tuple(part[picked] for part in train)
    gram_PP = _gram(basis, basis)
    mean_P = gram_PP.mean(0)
    values_K, vectors_PK = np.linalg.eigh(gram_PP - mean_P - mean_P[:, None] + mean_P.mean())
    kept = slice(-min(components, len(values_K) - 1), None)
    basis_PK = vectors_PK[:, kept] / np.sqrt(np.maximum(values_K[kept], 1e-12))

    def projected(edits: tuple[Tensor, Tensor]) -> np.ndarray:
        cross_NP = _gram(edits, basis)
        return (cross_NP - cross_NP.mean(1, keepdims=True) - mean_P + mean_P.mean()) @ basis_PK

    x_NK = projected(train)
    scale = x_NK.std() + 1e-12
    y_N = np.array([names.index(relation) for relation in relations])
    weight, bias = _logistic(x_NK / scale, y_N, len(names), 1 / len(y_N))
    return [names[k] for k in (projected(suspects) / scale @ weight.T + bias).argmax(1)]


def _gram(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> np.ndarray:
    (key_NF, value_ND), (key_MF, value_MD) = left, right
    return ((key_NF.double() @ key_MF.double().T) * (value_ND.double() @ value_MD.double().T)).numpy()
