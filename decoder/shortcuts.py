"""What the decoder's two passes leave out: logits nobody scores, and copies of what all edits share.

Shape letters: B edits, N scored positions, T positions, D hidden width, V vocabulary.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import CacheLayerMixin

from decoder.host import Host


@contextmanager
def scored_only(host: Host, scored_BT: Tensor | None = None) -> Iterator[list[Tensor]]:
    """Inside the block the host's logits are (1, N, V): those of the scored positions (all, if None), row by row.

    Every forward appends the final states (N, D) of these positions to the list, as the head sees them.

    The head sees one contiguous matrix. A slice of the hidden states, as `logits_to_keep` makes it, is multiplied sample by sample,
    which reads the whole unembedding once a sample.
    """
    states: list[Tensor] = []

    def pick(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        hidden_BTD = args[0]
        states.append(hidden_BTD.flatten(0, 1) if scored_BT is None else hidden_BTD[scored_BT])
        return (states[-1].unsqueeze(0),)

    with host.model.get_output_embeddings().register_forward_pre_hook(pick):
        yield states


def last_state_only(host: Host, edited_layer: int) -> AbstractContextManager[None]:
    """Inside the block the last MLP runs on the last position; the other final states are wrong."""

    def at_last(forward: Callable[..., Tensor], *args: Tensor) -> Tensor:
        if any(arg.dim() != 3 for arg in args):
            return forward(*args)
        return pad(forward(*(arg[:, -1:] for arg in args)), (0, 0, args[0].shape[1] - 1, 0))

    return last_mlp_by(at_last, host, edited_layer)


@contextmanager
def last_mlp_by(run: Callable[..., Tensor], host: Host, edited_layer: int) -> Iterator[None]:
    """Inside the block the last MLP, which mixes no positions, is `run`, which is given its own forward and then its inputs.

    Keys and values of the last block are made before its MLP, so a cache is filled as ever. Blocks that build their MLP otherwise, and an
    edited last block, run whole.
    """
    mlp = last_mlp(host) if edited_layer < host.layers - 1 else None
    if mlp is None:
        yield
        return
    mlp.forward = partial(run, mlp.forward)
    try:
        yield
    finally:
        del mlp.forward


def last_mlp(host: Host) -> nn.Module | None:
    """The MLP of the last block, where it is one module that serves every token."""
    last = host.layers - 1
    with suppress(ValueError):
        if path := host.down_proj_path(last).rpartition(".")[0]:
            return host.blocks[last].get_submodule(path)
    return None


def branched(cache: DynamicCache) -> DynamicCache:
    """A cache that goes its own way from here. Keys and values so far are shared: a cache that grows, or is changed, replaces them."""
    branch = copy.copy(cache)
    branch.layers = [copy.copy(layer) for layer in cache.layers]
    return branch


def changed(cache: DynamicCache, change: Callable[[Tensor], Tensor], layers: slice = slice(None)) -> DynamicCache:
    """The cache itself, each of its layers (or of those) with what `change` makes of its keys and of its values, rows first."""
    for layer in cache.layers[layers]:
        layer.keys, layer.values = change(layer.keys), change(layer.values)
    return cache


def forgetting(cache: DynamicCache) -> DynamicCache:
    """The cache itself, each of its layers giving a forward what it holds and what came, and keeping only what it held: nothing follows."""

    def joined(layer: CacheLayerMixin, update: Callable[..., tuple[Tensor, Tensor]], *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        held = layer.keys, layer.values
        found = update(*args, **kwargs)
        layer.keys, layer.values = held
        return found

    for layer in cache.layers:
        layer.update = partial(joined, layer, layer.update)
    return cache


def widen(cache: DynamicCache, batch: int, times: int = 1) -> None:
    """Gives every layer of the cache `batch` rows, each `times` in a row. Layers that all edits share are viewed, not copied."""

    def wide(rows: Tensor) -> Tensor:
        if len(rows) == 1:
            return rows.expand(batch * times, *rows.shape[1:])
        return rows.repeat_interleave(times, dim=0) if times > 1 else rows

    changed(cache, wide)
