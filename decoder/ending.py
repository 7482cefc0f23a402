"""Where an object ends, on a host that has no terminator.

Such a host goes on after an object, and nothing in its vocabulary says that the object was whole. What says so is its state behind the
object's tokens, and whether it would go on within the word: a logistic regression on both gives the chance that the object ends there. The
end so becomes one more token, with the id behind the vocabulary's last, and an object's probability is that of its tokens and its end.

Shape letters: B edits, T object tokens, N states, D hidden width, V vocabulary.
"""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import expit
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from decoder.batch import PADDING
from decoder.edit import Edits
from decoder.host import OPENING, Host

ENDS_FROM = 512  # edits
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)
FOLDS = 5
SUREST = 15.0  # log-odds beyond which a word's end is as sure as can be
FREEDOM = 10.0  # times its own scale, so that the ridge hardly holds it


class Ending(nn.Module):
    """The chance that an object ends, as a logit, where the host is behind its last token so far.

    Args:
        width: of the host's states.
        inside_V: which tokens go on within a word (`inside_words`).
    """

    def __init__(self, width: int, inside_V: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight_D", torch.zeros(width))
        self.register_buffer("word_weight", torch.zeros(()))
        self.register_buffer("bias", torch.zeros(()))
        self.register_buffer("inside_V", inside_V)

    def forward(self, logits_NV: Tensor, state_ND: Tensor) -> Tensor:
        return state_ND.float() @ self.weight_D + self.word_weight * word_ends(logits_NV, self.inside_V) + self.bias

    def with_end(self, logits_NV: Tensor, state_ND: Tensor) -> Tensor:
        """Log-probabilities (N, V + 1) of the next token given that the object goes on, and last that it does not."""
        logit_N1 = self(logits_NV, state_ND).unsqueeze(1)
        return torch.cat([logits_NV.float().log_softmax(-1) + logsigmoid(-logit_N1), logsigmoid(logit_N1)], dim=1)


def word_ends(logits_NV: Tensor, inside_V: Tensor) -> Tensor:
    """Log-odds (N,) that the next token does not go on within the word, by the host's own probabilities."""
    goes_on_N = logits_NV.float().masked_fill(~inside_V, -torch.inf).logsumexp(-1)
    ends_N = logits_NV.float().masked_fill(inside_V, -torch.inf).logsumexp(-1)
    return (ends_N - goes_on_N).clamp(-SUREST, SUREST)


def ending_examples(edits: Edits, object_ids_BT: Tensor) -> tuple[Edits, Tensor, Tensor]:
    """At most `ENDS_FROM` edits of some, their objects, the shortest first, and a number (B,) of each object, the same for the same."""
    spread = slice(None, None, -(-len(edits) // ENDS_FROM))
    edits, object_ids_BT = edits[spread], object_ids_BT[spread]
    numbers: dict[tuple[int, ...], int] = {}
    numbered_B = torch.tensor([numbers.setdefault(tuple(ids), len(numbers)) for ids in object_ids_BT.tolist()])
    # Most objects are of one token: beside others as long they take no padding.
    order_B = (object_ids_BT != PADDING).sum(1).argsort(stable=True).cpu()
    return edits[order_B], object_ids_BT[order_B], numbered_B[order_B]


def inside_words(host: Host) -> Tensor:
    """Which tokens (V) go on within a word when they follow a letter: letters and digits without a space before them."""
    letter, special = host.object_ids(OPENING)[-1:], set(host.tokenizer.all_special_ids)
    alone = len(host.tokenizer.decode(letter))
    inside_V = torch.zeros(len(host.unembedding_VD), dtype=torch.bool)
    ids = [id for id in host.tokenizer.get_vocab().values() if id < len(inside_V) and id not in special]
    texts = host.tokenizer.batch_decode([[*letter, id] for id in ids])
    inside_V[ids] = torch.tensor([text[alone : alone + 1].isalnum() for text in texts])
    return inside_V.to(host.device)


def fit_ending(state_ND: Tensor, word_ends_N: Tensor, ended_N: Tensor, object_N: Sequence[int], inside_V: Tensor) -> Ending:
    """The logistic regression with a ridge, on standardised states; the log-odds that a word ends are left nearly free.

    The ridge is the one of `RIDGES` that does best on objects it was not fitted on.

    Args:
        state_ND, word_ends_N: final states behind tokens of objects, and what `word_ends` says there.
        ended_N: whether that token was the object's last.
        object_N: number of the object it belongs to.
        inside_V: as of `Ending`.
    """
    x_ND = torch.cat([state_ND.float(), word_ends_N.float().unsqueeze(1)], dim=1).double().cpu().numpy()
    y_N = ended_N.cpu().numpy().astype(float)
    mean_D, scale_D = x_ND.mean(0), x_ND.std(0) + 1e-6
    scale_D[-1] /= FREEDOM
    x_ND = (x_ND - mean_D) / scale_D
    fold_N = np.random.default_rng(0).permutation(max(object_N) + 1)[np.asarray(object_N)] % FOLDS
    ridge = min(RIDGES, key=lambda ridge: _held_out_loss(x_ND, y_N, fold_N, ridge))
    weight_D, bias = _logistic(x_ND, y_N, ridge)
    weight_D = weight_D / scale_D
    ending = Ending(state_ND.shape[1], inside_V).cpu()
    ending.weight_D.copy_(torch.from_numpy(weight_D[:-1]))
    ending.word_weight.fill_(weight_D[-1])
    ending.bias.fill_(bias - float(weight_D @ mean_D))
    return ending.to(state_ND.device)


def _held_out_loss(x_ND: np.ndarray, y_N: np.ndarray, fold_N: np.ndarray, ridge: float) -> float:
    """The sum of negative log-likelihoods over objects that were left out in turn."""
    total = 0.0
    for fold in set(fold_N.tolist()):
        out_N = fold_N == fold
        weight_D, bias = _logistic(x_ND[~out_N], y_N[~out_N], ridge)
        total += float(np.logaddexp(0, -(2 * y_N[out_N] - 1) * (x_ND[out_N] @ weight_D + bias)).sum())
    return total


def _logistic(x_ND: np.ndarray, y_N: np.ndarray, ridge: float) -> tuple[np.ndarray, float]:
    """argmin over w and b of the mean of log(1 + exp(-±(xw + b))) + ridge/2 · |w|²."""

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        score_N = x_ND @ w[:-1] + w[-1]
        excess_N = (expit(score_N) - y_N) / len(y_N)
        value = np.logaddexp(0, score_N).mean() - (y_N * score_N).mean() + ridge / 2 * w[:-1] @ w[:-1]
        return value, np.append(x_ND.T @ excess_N + ridge * w[:-1], excess_N.sum())

    found = minimize(loss, np.zeros(x_ND.shape[1] + 1), jac=True, method="L-BFGS-B").x
    return found[:-1], float(found[-1])
