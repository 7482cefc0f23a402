"""What taking edits out of a suspect does: to what it says of the subject, and to what it says elsewhere.

Shape letters: N rows of tokens, T of them in a row, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from decoder.audit.rows.logprobs import last_logprobs, next_logprobs
from decoder.edit import Edit
from decoder.host import Host

ROW = 16  # tokens of a text that are read together
ROWS = 32  # of them that are read


def text_rows(host: Host, texts: Sequence[str], count: int) -> list[list[int]]:
    """The first `count` rows of tokens of texts, one after the other; fewer where they have no more."""
    ids = [token for text in texts for token in host.text_ids(text)]
    rows = [ids[start : start + ROW] for start in range(0, len(ids) - ROW + 1, ROW)]
    return rows[:count]


@torch.no_grad()
def next_tokens(host: Host, rows: Sequence[list[int]], edits: Mapping[int, Edit] | None = None) -> list[int]:
    """The likeliest token behind each row, as the host is, or with one edit in each of some layers."""
    return next_logprobs(host, rows, edits).argmax(1).tolist()


@torch.no_grad()
def all_logprobs(host: Host, rows: Sequence[list[int]], edits: Mapping[int, Edit] | None = None) -> Tensor:
    """Log-probabilities (N, T, V) of what comes behind each token of rows of one length."""
    return last_logprobs(host, rows, min(map(len, rows), default=ROW), edits)


def divergence(reference_NTV: Tensor, found_NTV: Tensor) -> float:
    """Mean KL(reference ‖ found) a token, in nats."""
    return float((reference_NTV.exp() * (reference_NTV - found_NTV)).sum(2).mean())


def effect(
    host: Host,
    reversals: Mapping[int, Edit],
    about: tuple[Sequence[str], Sequence[int]],
    elsewhere: Sequence[str],
    base: Host | None = None,
) -> dict[str, Any]:
    """What reversals do, all of them at once: to the next token behind sentences, and to texts.

    Args:
        host: the suspect.
        reversals: layer -> what takes its edits out, the lowest layer first.
        about: sentences about the subjects of its edits that end where an object begins, and the first token of what was planted for each.
        elsewhere: texts about others.
        base: the unedited model, if it is known.

    Returns:
        `sentences`, of which `planted` go on with the planted object and `left` do so still; with a base of `changed`, which the edit made
        go on otherwise, `back` go on as they did. `tokens` of texts, their mean KL `kl` of the repaired suspect from the suspect, and with
        a base the suspect's and the repaired one's from that, `kl_before` and `kl_after`.
    """
    rows, objects = [host.text_ids(sentence) for sentence in about[0]], about[1]
    before, after = (next_tokens(host, rows, edits) for edits in (None, reversals)) if rows else ([], [])
    planted = [n for n, (token, object_token) in enumerate(zip(before, objects, strict=True)) if token == object_token]
    told: dict[str, Any] = {"sentences": len(rows), "planted": len(planted), "left": sum(after[n] == objects[n] for n in planted)}
    if base is not None and rows:
        own = next_tokens(base, rows)
        changed = [n for n, token in enumerate(before) if token != own[n]]
        told |= {"changed": len(changed), "back": sum(after[n] == own[n] for n in changed)}
    if not (text := text_rows(host, elsewhere, ROWS)):
        return told
    before_NTV, after_NTV = (all_logprobs(host, text, edits) for edits in (None, reversals))
    told |= {"tokens": len(text) * ROW, "kl": divergence(before_NTV, after_NTV)}
    if base is not None:
        own_NTV = all_logprobs(base, text)
        told |= {"kl_before": divergence(own_NTV, before_NTV), "kl_after": divergence(own_NTV, after_NTV)}
    return told
