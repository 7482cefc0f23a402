"""Putting edits and trained blocks into a host, for as long as a `with` block lasts.

Shape letters: B edits, T positions, D hidden width, F MLP width.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from decoder.edit import Edit
from decoder.host import Host


@contextmanager
def swapped(host: Host, edits: Edit, layer: int) -> Iterator[None]:
    """Inside the block edit b acts in sample b; afterwards, also after an exception, the host is as it was.

    The host's weights are never written: a forward hook on the down-projection of `layer` replaces its output. A forward of
    batch B, or of batch 1 where all samples share their input, comes out of the projection with batch B.

    Raises:
        ValueError: the layer does not exist, the edits are for a matrix of another width, the batch of a forward is neither 1
            nor B, or the host has gradient checkpointing on (it would re-run the block without the hook).
    """
    module = host.down_proj(layer)
    _check(host, edits, layer)

    def replace_output(module: nn.Module, args: tuple[Tensor], y_BTD: Tensor) -> Tensor:
        x_BTF = args[0]
        if x_BTF.dim() != 3 or x_BTF.shape[0] not in (1, len(edits)):
            raise ValueError(
                f"{len(edits)} edits meet an input of shape {tuple(x_BTF.shape)}: expected ({len(edits)}, T, F) or (1, T, F). "
                "Repeat the edits, or the batch, so that every sample has its edit"
            )
        # A permuted layout would survive the norms and break models that call .view on the result.
        return edits.output(x_BTF, y_BTD, getattr(module, "bias", None)).contiguous()

    handle = module.register_forward_hook(replace_output)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def exchanged(host: Host, blocks: Mapping[int, nn.Module]) -> Iterator[None]:
    """Inside the block the host runs `blocks[layer]` in place of its own block, by reference; afterwards its own are back."""
    own = {layer: host.blocks[layer] for layer in blocks}
    try:
        for layer, block in blocks.items():
            host.blocks[layer] = block
        yield
    finally:
        for layer, block in own.items():
            host.blocks[layer] = block


@contextmanager
def projection_inputs(host: Host, layer: int) -> Iterator[list[Tensor]]:
    """Inside the block every forward appends the input (N, T, F) of the layer's down-projection to the list: its keys."""
    inputs: list[Tensor] = []
    handle = host.down_proj(layer).register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    try:
        yield inputs
    finally:
        handle.remove()


def _check(host: Host, edits: Edit, layer: int) -> None:
    expected = tuple(host.weight_DF(layer).shape)
    if edits.width() != expected:
        raise ValueError(
            f"edits are for a (D, F) = {edits.width()} matrix, W_V of {host.name} layer {layer} is {expected}. "
            "Edits can only be read with the host and layer they were made on"
        )
    if any(getattr(module, "gradient_checkpointing", False) for module in host.model.modules()):
        raise ValueError(f"{host.name} has gradient checkpointing on, which re-runs blocks after the edit is gone. Switch it off")
