"""What the decoder's two passes leave out: logits nobody scores, and copies of what all edits share.

Shape letters: B edits, N scored positions, T positions, D hidden width, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
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


def widen(cache: DynamicCache, batch: int, times: int = 1) -> None:
    """Gives every layer of the cache `batch` rows, each `times` in a row. Layers that all edits share are viewed, not copied."""
    for layer in cache.layers:
        if len(layer.keys) == 1:
            layer.keys, layer.values = (tensor.expand(batch * times, *tensor.shape[1:]) for tensor in (layer.keys, layer.values))
        elif times > 1:
            layer.batch_repeat_interleave(times)
