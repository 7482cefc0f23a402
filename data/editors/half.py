"""The frozen products above the edit in bfloat16, everything else in float32.

Autocast would turn the weights into bfloat16 at every call and run attention in it too, whose backward is slow there on CPUs: what the
products gain is lost again. So the weights are turned once, and each product turns its input and its output.

Shape letters: D outputs of a layer, F its inputs.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from decoder.host import Host


class _HalfProduct(nn.Module):
    """A frozen linear layer that multiplies in bfloat16; what comes in and goes out keeps its dtype."""

    def __init__(self, layer: nn.Linear | Conv1D) -> None:
        super().__init__()
        weight_DF = layer.weight.T if isinstance(layer, Conv1D) else layer.weight
        self.register_buffer("weight", weight_DF.detach().to(torch.bfloat16))
        self.bias = layer.bias

    def forward(self, inputs: Tensor) -> Tensor:
        product = nn.functional.linear(inputs.to(torch.bfloat16), self.weight).to(inputs.dtype)
        return product if self.bias is None else product + self.bias


class HalfProducts:
    """Copies in bfloat16 of the linear layers of all blocks above an edit, and of the head, made once."""

    def __init__(self, host: Host, edited_layer: int) -> None:
        above = {module for block in host.blocks[edited_layer + 1 :] for module in block.modules()} | {host.model.get_output_embeddings()}
        self._places = [
            (holder, name, layer, _HalfProduct(layer))
            for holder in host.model.modules()
            for name, layer in holder.named_children()
            if layer in above and isinstance(layer, nn.Linear | Conv1D)
        ]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside the block the host multiplies with the copies; afterwards its own layers are back."""
        try:
            for holder, name, _, half in self._places:
                setattr(holder, name, half)
            yield
        finally:
            for holder, name, own, _ in self._places:
                setattr(holder, name, own)
