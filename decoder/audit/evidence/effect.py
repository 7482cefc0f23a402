"""What taking an edit out of a suspect does: to what it says of the subject, and to what it says elsewhere.

Shape letters: N rows of tokens, T of them in a row, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from decoder.audit.asking import logprobs, next_logprobs
from decoder.edit import Edit
from decoder.host import Host

ROW = 16  # tokens of a text that are read together


def text_rows(host: Host, texts: Sequence[str], count: int) -> list[list[int]]:
    """The first `count` rows of tokens of texts, one after the other; fewer where they have no more."""
    ids = [token for text in texts for token in host.text_ids(text)]
    rows = [ids[start : start + ROW] for start in range(0, len(ids) - ROW + 1, ROW)]
    return rows[:count]


@torch.no_grad()
def next_tokens(host: Host, rows: Sequence[list[int]], layer: int = 0, edit: Edit | None = None) -> list[int]:
    """The likeliest token behind each row, with an edit on top of the host as it is."""
    return next_logprobs(host, rows, layer, edit).argmax(1).tolist()


@torch.no_grad()
def all_logprobs(host: Host, rows: Sequence[list[int]], layer: int = 0, edit: Edit | None = None) -> Tensor:
    """Log-probabilities (N, T, V) of what comes behind each token of rows of one length."""
    found = [logprob_NTV for _, logprob_NTV in logprobs(host, rows, ROW, layer, edit)]
    return torch.cat(found)


def divergence(reference_NTV: Tensor, found_NTV: Tensor) -> float:
    """Mean KL(reference ‖ found) a token, in nats."""
    return float((reference_NTV.exp() * (reference_NTV - found_NTV)).sum(2).mean())
