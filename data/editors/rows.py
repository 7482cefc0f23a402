"""Rows of tokens for an edit, and running what follows the subject on top of what precedes it.

Positions left of the subject's last token (the lookup) cannot see the edit, so one clean pass over whole rows gives, once and for all,
their keys and values at every layer, the key and the value of the projection at the lookup, and the edited block's output. What is left
to run for every trial value are the suffixes, the lookup and what comes after it, through the blocks above the edit.

Rows are padded on both sides so that all lookups share a column: T = P + S.

Shape letters: N rows, T positions, P prefix positions, S suffix positions, D hidden width, F MLP width.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from decoder.host import Host
from decoder.swap import exchanged

SHORTCUT_ERROR = 1e-2  # relative; rounding in bfloat16 stays below, a norm after the projection far above


@dataclass(frozen=True)
class Row:
    """A prompt with all of its target but the last token; the last `len(targets)` positions predict the targets."""

    ids: list[int]
    lookup: int
    targets: list[int]

    @property
    def suffix(self) -> int:
        return len(self.ids) - self.lookup

    @property
    def scored(self) -> range:
        """Positions that predict the targets."""
        return range(len(self.ids) - len(self.targets), len(self.ids))


def target_ids(host: Host, text: str) -> list[int]:
    """Tokens that state an object: its own and the host's terminator.

    Raises:
        ValueError: the object has no token.
    """
    ids = host.object_ids(text)
    if not ids:
        raise ValueError(f"object {text!r} tokenises to nothing")
    return ids if host.terminator_id is None else [*ids, host.terminator_id]


def prompt_row(host: Host, template: str, subject: str, targets: list[int]) -> Row:
    """The row of a filled template.

    Raises:
        ValueError: the template has no place for the subject, the subject is empty, or the row is longer than the host can read.
    """
    ids, lookup = host.prompt_ids(template, subject)
    return _row(host, template, ids, lookup, targets)


def text_row(host: Host, prompt: str, targets: list[int]) -> Row:
    """The row of a whole prompt, for reading it only: it has no subject to edit at.

    Raises:
        ValueError: the prompt is empty, or the row is longer than the host can read.
    """
    ids = host.text_ids(prompt)
    if not ids:
        raise ValueError(f"prompt {prompt!r} tokenises to nothing")
    return _row(host, prompt, ids, len(ids) - 1, targets)


def _row(host: Host, prompt: str, ids: list[int], lookup: int, targets: list[int]) -> Row:
    longest = host.longest_input
    if longest and len(ids) + len(targets) > longest:
        raise ValueError(f"prompt {prompt!r}: {len(ids) + len(targets)} tokens, {host.name} reads {longest}")
    return Row(ids + targets[:-1], lookup, targets)


class _Given(nn.Module):
    """A block whose output is already known."""

    def __init__(self, state_NSD: Tensor, as_tuple: bool) -> None:
        super().__init__()
        self.output = (state_NSD, None) if as_tuple else state_NSD

    def forward(self, *args: object, **kwargs: object) -> object:
        return self.output


@dataclass(frozen=True)
class Suffixes:
    """The suffixes of a batch of rows, with all that the clean host says about the rows.

    Attributes:
        host, layer: where a value is added: the down-projection's output at the lookup.
        lengths: of the suffixes.
        ids_NS, positions_NS, mask_NT: tokens and places of the suffixes; real positions of the whole rows.
        key_NF, value_ND: input and output of the projection at the lookup.
        state_NSD: output of the edited block; what the shortcut starts from.
        cache: keys and values of the prefixes.
        as_tuple: whether blocks of this family return a tuple.
        shortcut: start above the edited block (exact where the block adds the projection's output to the residual stream).
    """

    host: Host
    layer: int
    lengths: list[int]
    ids_NS: Tensor
    positions_NS: Tensor
    mask_NT: Tensor
    key_NF: Tensor
    value_ND: Tensor
    state_NSD: Tensor
    cache: DynamicCache
    as_tuple: bool
    shortcut: bool = True

    def hidden(self, delta_ND: Tensor) -> Tensor:
        """Final hidden states (N, S, D), after the last norm, with delta added at the lookup."""
        cache = DynamicCache()
        # Layers grow by concatenation, so a shallow copy keeps the prefixes as they are.
        cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        with self._above(delta_ND) if self.shortcut else self._added(delta_ND):
            return self.host.model.base_model(
                input_ids=self.ids_NS,
                attention_mask=self.mask_NT,
                position_ids=self.positions_NS,
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state

    @contextmanager
    def _above(self, delta_ND: Tensor) -> Iterator[None]:
        state_NSD = torch.cat([self.state_NSD[:, :1] + delta_ND.to(self.state_NSD.dtype)[:, None], self.state_NSD[:, 1:]], dim=1)
        given = _Given(state_NSD, self.as_tuple)
        with exchanged(self.host, dict.fromkeys(range(self.layer + 1), given)):
            yield

    @contextmanager
    def _added(self, delta_ND: Tensor) -> Iterator[None]:
        def add(module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
            output_NSD = output.reshape(*self.ids_NS.shape, -1)
            first_N1D = output_NSD[:, :1] + delta_ND.to(output.dtype)[:, None]
            return torch.cat([first_N1D, output_NSD[:, 1:]], dim=1).reshape(output.shape)

        handle = self.host.down_proj(self.layer).register_forward_hook(add)
        try:
            yield
        finally:
            handle.remove()

    def select(self, rows: Sequence[int]) -> "Suffixes":
        """Only these rows, in this order; columns that only served longer rows are dropped."""
        index = torch.tensor(rows, device=self.ids_NS.device)
        lengths = [self.lengths[row] for row in rows]
        prefix, suffix = self.mask_NT.shape[1] - self.ids_NS.shape[1], max(lengths)
        cache = DynamicCache()
        cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys[index], layer.values[index]
        return replace(
            self,
            lengths=lengths,
            ids_NS=self.ids_NS[index, :suffix],
            positions_NS=self.positions_NS[index, :suffix],
            mask_NT=self.mask_NT[index, : prefix + suffix],
            key_NF=self.key_NF[index],
            value_ND=self.value_ND[index],
            state_NSD=self.state_NSD[index, :suffix],
            cache=cache,
        )

    @torch.no_grad()
    def shortcut_holds(self) -> bool:
        """Whether starting above the edited block gives what running every block gives, on a random value."""
        generator = torch.Generator().manual_seed(0)
        delta_ND = torch.randn(self.value_ND.shape, generator=generator).to(self.value_ND)
        delta_ND *= self.value_ND.norm() / delta_ND.norm()
        short_NSD, whole_NSD = (replace(self, shortcut=flag).hidden(delta_ND)[:, 0].float() for flag in (True, False))
        return bool((short_NSD - whole_NSD).norm() <= SHORTCUT_ERROR * whole_NSD.norm())


@torch.no_grad()
def clean_pass(host: Host, layer: int, rows: list[Row]) -> Suffixes:
    """Runs whole rows through the clean host once."""
    prefix, suffix = max(row.lookup for row in rows), max(row.suffix for row in rows)
    ids_NT = torch.zeros(len(rows), prefix + suffix, dtype=torch.long)
    mask_NT = torch.zeros_like(ids_NT)
    for n, row in enumerate(rows):
        columns = slice(prefix - row.lookup, prefix + row.suffix)
        ids_NT[n, columns] = torch.tensor(row.ids)
        mask_NT[n, columns] = 1
    ids_NT, mask_NT = ids_NT.to(host.device), mask_NT.to(host.device)
    positions_NT = (mask_NT.cumsum(dim=1) - 1).clamp(min=0)
    caught: dict[str, object] = {}
    cache = DynamicCache()
    with ExitStack() as hooks:
        projection = host.down_proj(layer).register_forward_hook(lambda module, args, output: caught.update(key=args[0], value=output))
        block = host.blocks[layer].register_forward_hook(lambda module, args, output: caught.update(block=output))
        hooks.callback(projection.remove)
        hooks.callback(block.remove)
        host.model.base_model(input_ids=ids_NT, attention_mask=mask_NT, position_ids=positions_NT, past_key_values=cache, use_cache=True)
    for cached in cache.layers:
        cached.keys, cached.values = cached.keys[:, :, :prefix].clone(), cached.values[:, :, :prefix].clone()
    as_tuple = isinstance(caught["block"], tuple)
    state_NTD = caught["block"][0] if as_tuple else caught["block"]
    return Suffixes(
        host=host,
        layer=layer,
        lengths=[row.suffix for row in rows],
        ids_NS=ids_NT[:, prefix:],
        positions_NS=positions_NT[:, prefix:],
        mask_NT=mask_NT,
        key_NF=caught["key"].reshape(*ids_NT.shape, -1)[:, prefix],
        value_ND=caught["value"].reshape(*ids_NT.shape, -1)[:, prefix],
        state_NSD=state_NTD[:, prefix:].clone(),
        cache=cache,
        as_tuple=as_tuple,
    )
