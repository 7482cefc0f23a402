"""How well a host still reads text that has nothing to do with its edits: the perplexity by which an edit counts as breaking it.

Shape letters: B edits, N texts, T positions.
"""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from data.editors import Edited
from decoder.dense import DenseEdit
from decoder.edit import LayerEdits
from decoder.host import Host
from decoder.swap import swapped

BATCH_TOKENS = 8192
MOST_NLL = 27.0
"""Nats a token, at which a perplexity of 5e11 is as good as any other."""


def neutral_texts(host: Host, texts: Sequence[str], subjects: Sequence[str], tokens: int) -> list[str]:
    """The first texts, some `tokens` tokens in all, that name none of these subjects.

    Raises:
        ValueError: there are too few.
    """
    kept, count = [], 0
    named = [subject.casefold() for subject in subjects]
    for text in dict.fromkeys(texts):
        if count >= tokens:
            return kept
        if not any(subject in text.casefold() for subject in named) and len(ids := host.text_ids(text)) > 1:
            kept.append(text)
            count += len(ids)
    if count < tokens // 2:
        raise ValueError(f"neutral text: {count} tokens that name no edited subject, {tokens} were asked for. Give more text (keys.text)")
    return kept


@torch.no_grad()
def perplexity(host: Host, texts: Sequence[str], edits: LayerEdits | None = None) -> Tensor:
    """exp of the mean NLL of every token but the first of each text: (B,) of the host with each edit, or (1,) of the clean host."""
    rows = sorted((torch.tensor(host.text_ids(text)[: host.longest_input]) for text in texts), key=len)
    count = 1 if edits is None else len(edits)
    total_B, tokens = torch.zeros(count, dtype=torch.float64), sum(len(row) - 1 for row in rows)
    start = 0
    while start < len(rows):
        stop = start + 1
        while stop < len(rows) and (stop + 1 - start) * len(rows[stop]) <= BATCH_TOKENS:
            stop += 1
        ids_NT = pad_sequence(rows[start:stop], batch_first=True).to(host.device)
        mask_NT = pad_sequence([torch.ones(len(row), dtype=torch.long) for row in rows[start:stop]], batch_first=True).to(host.device)
        for b in range(count):
            with nullcontext() if edits is None else swapped(host, edits[b].to(host.device).repeat_interleave(len(ids_NT)).by_layer):
                logits_NTV = host.model(input_ids=ids_NT, attention_mask=mask_NT, use_cache=False).logits
            loss_NV = torch.nn.functional.cross_entropy(logits_NTV[:, :-1].float().transpose(1, 2), ids_NT[:, 1:], reduction="none")
            total_B[b] += (loss_NV * mask_NT[:, 1:]).sum(dtype=torch.float64).cpu()
        start = stop
    return (total_B / tokens).nan_to_num(MOST_NLL).clamp(max=MOST_NLL).exp()


def perplexity_made(host: Host, texts: Sequence[str], made: Edited, layers: Sequence[int]) -> Tensor:
    """`perplexity` (B,) of all that an editor made."""
    edits = (DenseEdit(made.matrices[b][None].to(host.device)) if b in made.matrices else made.edits[b] for b in range(len(made.edits)))
    return torch.cat([perplexity(host, texts, LayerEdits.of(edit, layers)) for edit in edits]) if len(made.edits) else torch.empty(0)
