"""What the decoder's two passes leave out: logits nobody scores, and copies of what all edits share.

Shape letters: B edits, N scored positions, T positions, D hidden width, V vocabulary.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import DynamicCache

from decoder.host import Host


@contextmanager
def scored_only(host: Host, scored_BT: Tensor | None = None) -> Iterator[None]:
    """Inside the block the host's logits are (1, N, V): those of the scored positions (all, if None), row by row.

    The head sees one contiguous matrix. A slice of the hidden states, as `logits_to_keep` makes it, is multiplied sample by sample,
    which reads the whole unembedding once a sample.
    """

    def pick(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        hidden_BTD = args[0]
        hidden_ND = hidden_BTD.flatten(0, 1) if scored_BT is None else hidden_BTD[scored_BT]
        return (hidden_ND.unsqueeze(0),)

    handle = host.model.get_output_embeddings().register_forward_pre_hook(pick)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def last_state_only(host: Host, edited_layer: int) -> Iterator[None]:
    """Inside the block the last MLP, which mixes no positions, runs on the last position; the other final states are wrong.

    Keys and values of the last block are made before its MLP, so a cache is filled as ever. Blocks that build their MLP otherwise, and an
    edited last block, run whole.
    """
    mlp = last_mlp(host) if edited_layer < host.layers - 1 else None
    if mlp is None:
        yield
        return
    forward = mlp.forward

    def at_last(*args: Tensor) -> Tensor:
        if any(arg.dim() != 3 for arg in args):
            return forward(*args)
        return pad(forward(*(arg[:, -1:] for arg in args)), (0, 0, args[0].shape[1] - 1, 0))

    mlp.forward = at_last
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


def widen(cache: DynamicCache, batch: int, times: int = 1) -> None:
    """Gives every layer of the cache `batch` rows, each `times` in a row. Layers that all edits share are viewed, not copied."""
    for layer in cache.layers:
        if len(layer.keys) == 1:
            layer.keys, layer.values = (tensor.expand(batch * times, *tensor.shape[1:]) for tensor in (layer.keys, layer.values))
        elif times > 1:
            layer.batch_repeat_interleave(times)


def branched(cache: DynamicCache) -> DynamicCache:
    """A cache that goes its own way from here. Keys and values so far are shared: a cache that grows, or is reordered, replaces them."""
    branch = copy.copy(cache)
    branch.layers = [copy.copy(layer) for layer in cache.layers]
    return branch
