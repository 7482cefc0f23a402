"""Putting edits and trained blocks into a host, for as long as a `with` block lasts.

Shape letters: B edits, T positions, D hidden width, F MLP width.
"""

import copy
import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from decoder.edit import Edit, LayerEdits, RankOneEdit
from decoder.host import Host

INPUTS = {"input_ids", "inputs_embeds", "attention_mask"}
SELF_CHECK_ERROR = 2e-2  # relative; rounding in bfloat16 stays below

log = logging.getLogger(__name__)


@contextmanager
def swapped(host: Host, edits: Mapping[int, Edit]) -> Iterator[None]:
    """Inside the block edit b of every layer acts in sample b; afterwards, also after an exception, the host is as it was.

    The host's weights are never written: a forward hook on the down-projection of each layer replaces its output. A forward of
    batch B, or of batch 1 where all samples share their input, ends with batch B. The batch grows at the lowest of the projections, or,
    in families whose blocks do not let it, where the input enters the model.

    Args:
        edits: B of each edited layer.

    Raises:
        ValueError: a layer does not exist, edits are for a matrix of another width, layers differ in their number of edits, the batch of
            a forward is neither 1 nor B, or the host has gradient checkpointing on (it would re-run the block without the hook).
    """
    edits = LayerEdits(edits)
    for layer in edits.layers:
        _check(host, edits.by_layer[layer], layer)
    _settle(host, edits.layers[0])
    hooks = _Hooks(len(edits), host.memory_budget)
    with ExitStack() as stack:
        if not host.batch_grows_at_edit:
            stack.enter_context(host.entry.register_forward_pre_hook(hooks.at_entry, with_kwargs=True))
        for layer, own in edits.by_layer.items():
            stack.enter_context(host.down_proj(layer).register_forward_hook(partial(hooks.at_projection, own)))
        yield


class _Hooks:
    """What runs inside a host while edits are swapped in."""

    def __init__(self, batch: int, memory_budget: int) -> None:
        self.batch, self.memory_budget = batch, memory_budget
        self.entered: int | None = None

    def at_projection(self, edits: Edit, module: nn.Module, args: tuple[Tensor], y_BTD: Tensor) -> Tensor:
        """The output of the edited projections in place of the host's own."""
        x_BTF, shape = args[0], y_BTD.shape
        if x_BTF.dim() == 2 and self.entered:
            # The family flattens its tokens before the projection, and wants them back flat.
            x_BTF, y_BTD = x_BTF.unflatten(0, (self.entered, -1)), y_BTD.unflatten(0, (self.entered, -1))
        if x_BTF.dim() != 3 or x_BTF.shape[0] not in (1, len(edits)):
            raise ValueError(
                f"{len(edits)} edits meet an input of shape {tuple(x_BTF.shape)}: expected ({len(edits)}, T, F) or (1, T, F). "
                "Repeat the edits, or the batch, so that every sample has its edit"
            )
        out_BTD = edits.output(x_BTF, y_BTD, getattr(module, "bias", None), self.memory_budget)
        # A permuted layout would survive the norms and break models that call .view on the result.
        return (out_BTD if len(shape) == 3 else out_BTD.reshape(shape)).contiguous()

    def at_entry(self, module: nn.Module, args: tuple[Tensor, ...], inputs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """The model's inputs, repeated for every edit."""
        args, inputs = tuple(self._repeated(arg) for arg in args), dict(inputs)
        for name in INPUTS & inputs.keys():
            inputs[name] = self._repeated(inputs[name])
        self.entered = next(len(value) for value in (*args, inputs.get("input_ids"), inputs.get("inputs_embeds")) if value is not None)
        return args, inputs

    def _repeated(self, value: Any) -> Any:
        """A tensor of batch 1 repeated; anything else as it is."""
        return value.expand(self.batch, *value.shape[1:]) if isinstance(value, Tensor) and len(value) == 1 else value


def _check(host: Host, edits: Edit, edited_layer: int) -> None:
    expected = tuple(host.weight_DF(edited_layer).shape)
    if edits.width() != expected:
        raise ValueError(
            f"edits are for a (D, F) = {edits.width()} matrix, W_V of {host.name} layer {edited_layer} is {expected}. "
            "Edits can only be read with the host and layer they were made on"
        )
    if any(getattr(module, "gradient_checkpointing", False) for module in (host.entry, *host.blocks)):
        raise ValueError(f"{host.name} has gradient checkpointing on, which re-runs blocks after the edit is gone. Switch it off")


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


def trainable_copy(host: Host, layer: int, is_edited: bool) -> nn.Module:
    """A float32 copy of a block with gradients on; an edited W_V is not copied but shared, outside the module tree."""
    block = copy.deepcopy(host.blocks[layer]).float().requires_grad_(True)
    if is_edited:
        parent_path, _, leaf = host.down_proj_path(layer).rpartition(".")
        parent = block.get_submodule(parent_path)
        delattr(parent, leaf)
        # In __dict__ instead of the module tree: neither trained, nor counted, nor saved.
        parent.__dict__[leaf] = host.down_proj(layer)
    return block


@contextmanager
def projection_inputs(host: Host, edited_layer: int) -> Iterator[list[Tensor]]:
    """Inside the block every forward appends the input (N, T, F) of the layer's down-projection to the list: its keys."""
    _settle(host, edited_layer)  # or its own forwards would be taken for the caller's
    inputs: list[Tensor] = []
    with host.down_proj(edited_layer).register_forward_pre_hook(lambda module, args: inputs.append(args[0])):
        yield inputs


# Self-check, once a host: with some settings blocks lay something out for the batch that came in, whatever the family's row says.


@torch.no_grad()
def _settle(host: Host, edited_layer: int) -> None:
    """Runs the self-check unless it has run on this host."""
    if host.batch_grows_at_edit is None:
        host.batch_grows_at_edit = _may_grow_at_edit(host, edited_layer)


def _may_grow_at_edit(host: Host, edited_layer: int) -> bool:
    """Whether a batch that grows at the edit comes out as one that was there from the start, on two random edits."""
    generator = torch.Generator().manual_seed(0)
    weight_DF = host.weight_DF(edited_layer)
    sizes = zip(reversed(weight_DF.shape), (1.0, float(weight_DF.float().std())), strict=True)
    edits = RankOneEdit(*(scale * torch.randn(2, size, generator=generator).to(host.device) for size, scale in sizes))
    inputs_1TD = host.model.get_input_embeddings()(torch.arange(1, 4, device=host.device).unsqueeze(0))
    training = [block.training for block in host.blocks]
    logits_BTV = []
    try:
        for block in host.blocks:
            block.eval()
        for batch in (1, 2):
            host.batch_grows_at_edit = True
            with swapped(host, {edited_layer: edits}):
                inputs_BTD = inputs_1TD.expand(batch, -1, -1)
                logits_BTV.append(host.model(inputs_embeds=inputs_BTD, use_cache=False).logits.float())
    except (RuntimeError, ValueError) as error:
        log.warning("%s: a batch cannot grow at the edit (%s); prompts are repeated where they enter", host.name, error)
        return False
    finally:
        host.batch_grows_at_edit = None
        for block, flag in zip(host.blocks, training, strict=True):
            block.train(flag)
    apart = (logits_BTV[0] - logits_BTV[1]).norm() / logits_BTV[1].norm()
    if not apart < SELF_CHECK_ERROR:
        log.warning("%s: a batch that grows at the edit is off by %.1e; prompts are repeated where they enter", host.name, apart)
    return bool(apart < SELF_CHECK_ERROR)
