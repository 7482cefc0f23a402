"""What a suspect says behind rows of tokens, as it is or with edits in it.

Shape letters: N rows, S tokens at the end of each, B trees, T tokens of a tree, U those that are scored, V vocabulary.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from decoder.audit.rows.forest import forests
from decoder.edit import Edit
from decoder.host import Host
from decoder.shortcuts import scored_only
from decoder.swap import swapped


def next_logprobs(suspect: Host, rows: Sequence[list[int]], edits: Mapping[int, Edit] | None = None) -> Tensor:
    """Log-probabilities (N, V) of what comes behind each row, as the suspect is, or with one edit in each of some layers."""
    return last_logprobs(suspect, rows, 1, edits)[:, 0]


def last_logprobs(suspect: Host, rows: Sequence[list[int]], scored: int, edits: Mapping[int, Edit] | None = None) -> Tensor:
    """Log-probabilities (N, S, V) of what comes behind each of the last `scored` tokens of each row."""
    found_NSV = torch.empty(len(rows), scored, len(suspect.unembedding_VD), device=suspect.device)
    for batch, logprob_NSV in logprobs(suspect, rows, scored, edits):
        found_NSV[batch] = logprob_NSV
    return found_NSV


def logprobs(suspect: Host, rows: Sequence[list[int]], scored: int, edits: Mapping[int, Edit] | None) -> Iterator[tuple[list[int], Tensor]]:
    """Rows by their numbers, and the log-probabilities (N, S, V) at the last `scored` tokens of each.

    Args:
        edits: layer -> one edit, the lowest layer first; all of them act on every row. Without any the suspect is as it is.
    """
    for forest in forests(suspect, rows):
        ids_BT, (tree_N1, place_NS) = forest.inputs["input_ids"], forest.last(scored)
        scored_BT = torch.zeros(ids_BT.shape, dtype=torch.bool)
        scored_BT[tree_N1, place_NS] = True
        which_BT = scored_BT.flatten().cumsum(0).view_as(scored_BT) - 1
        of_trees = {layer: edit.repeat_interleave(len(ids_BT)) for layer, edit in (edits or {}).items()}
        with swapped(suspect, of_trees) if of_trees else nullcontext(), scored_only(suspect, scored_BT.to(suspect.device)):
            logits_1UV = suspect.model(**forest.inputs, **suspect.with_cache(None)).logits
        yield forest.rows, logits_1UV[0].float().log_softmax(1)[which_BT[tree_N1, place_NS].to(suspect.device)]
