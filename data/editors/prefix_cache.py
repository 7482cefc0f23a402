"""Running what follows the subject on top of what precedes it.

Positions left of the subject's last token (the lookup) cannot see the edit, so one clean pass over the rows gives, once and for all,
their keys and values at every layer, input (the key) and output of the projection at the lookup, and the edited block's output. What is
left to run for every trial δ are the suffixes, the lookup and what comes after it, through the blocks above the edit.

In the clean pass itself a beginning that several rows share, such as the context that many edits are put into, is run once.

Rows are padded on both sides so that all lookups share a column: T = P + S.

Shape letters: N rows, G groups of rows, T positions, P prefix positions, C cached ones of them, S suffix positions, R states that are
read, D hidden width, F MLP width.
"""

import os.path
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from data.editors.prompts import Row
from decoder.host import Host
from decoder.shortcuts import branched, changed, last_mlp_by
from decoder.swap import exchanged

SHORTCUT_ERROR = 1e-2  # relative; rounding in bfloat16 stays below, a norm after the projection far above


class Given(nn.Module):
    """A block whose output is already known."""

    def __init__(self, block: nn.Module, state_NSD: Tensor, as_tuple: bool) -> None:
        super().__init__()
        # Older models look the mask of a block up by it.
        self.attention_type = getattr(block, "attention_type", None)
        self.output = (state_NSD, None) if as_tuple else state_NSD

    def forward(self, *args: object, **kwargs: object) -> object:
        return self.output


@dataclass(frozen=True)
class Suffixes:
    """The suffixes of a batch of rows, with all that the clean host says about the rows.

    Attributes:
        host, edited_layer: where δ is added: the down-projection's output at the lookup.
        lengths: of the suffixes.
        ids_NS, positions_NS, mask_NT: tokens and places of the suffixes; real positions of the whole rows.
        key_NF, output_ND: input and output of the projection at the lookup.
        state_NSD: output of the edited block; what the shortcut starts from.
        cache: keys and values of the prefixes.
        as_tuple: whether blocks of this family return a tuple.
        shortcut: start above the edited block (exact where the block adds the projection's output to the residual stream).
    """

    host: Host
    edited_layer: int
    lengths: list[int]
    ids_NS: Tensor
    positions_NS: Tensor
    mask_NT: Tensor
    key_NF: Tensor
    output_ND: Tensor
    state_NSD: Tensor
    cache: DynamicCache
    as_tuple: bool
    shortcut: bool = False

    def hidden(self, delta_ND: Tensor, read_R2: Tensor | None = None) -> Tensor:
        """Final hidden states (N, S, D), after the last norm, with delta added at the lookup.

        Args:
            delta_ND: or delta (N, S, D), which is added from the lookup on.
            read_R2: row and column of the only states that will be read, none twice; the others may be wrong.
        """
        inputs = {"input_ids": self.ids_NS, "attention_mask": self.mask_NT, "position_ids": self.positions_NS}
        with self._above(delta_ND) if self.shortcut else self._added(delta_ND), self._read_only(read_R2):
            return self.host.model.base_model(**inputs, **self.host.with_cache(branched(self.cache))).last_hidden_state

    def _above(self, delta_ND: Tensor) -> AbstractContextManager[None]:
        given = Given(self.host.blocks[self.edited_layer], _sum(self.state_NSD, delta_ND), self.as_tuple)
        return exchanged(self.host, dict.fromkeys(range(self.edited_layer + 1), given))

    def _added(self, delta_ND: Tensor) -> AbstractContextManager:
        def add(module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
            return _sum(output.reshape(*self.ids_NS.shape, -1), delta_ND).reshape(output.shape)

        return self.host.down_proj(self.edited_layer).register_forward_hook(add)

    def _read_only(self, read_R2: Tensor | None) -> AbstractContextManager[None]:
        """Inside the block the last MLP runs on the states that are read only."""
        if read_R2 is None:
            return nullcontext()
        # Flat places: the gradient of an index over two dimensions is slow on a CPU.
        place_R = read_R2[:, 0] * self.ids_NS.shape[1] + read_R2[:, 1]

        def at_places(forward: Callable[..., Tensor], *args: Tensor) -> Tensor:
            if any(arg.shape[:2] != self.ids_NS.shape for arg in args):
                return forward(*args)
            out_RD = forward(*(arg.flatten(0, 1).index_select(0, place_R).unsqueeze(0) for arg in args)).squeeze(0)
            return out_RD.new_zeros(self.ids_NS.numel(), out_RD.shape[1]).index_copy(0, place_R, out_RD).unflatten(0, self.ids_NS.shape)

        return last_mlp_by(at_places, self.host, self.edited_layer)

    def select(self, rows: Sequence[int]) -> "Suffixes":
        """Only these rows, in this order; columns that only served longer rows are dropped."""
        index = torch.tensor(rows, device=self.ids_NS.device)
        lengths = [self.lengths[row] for row in rows]
        prefix, suffix = self.mask_NT.shape[1] - self.ids_NS.shape[1], max(lengths)
        return replace(
            self,
            lengths=lengths,
            ids_NS=self.ids_NS[index, :suffix],
            positions_NS=self.positions_NS[index, :suffix],
            mask_NT=self.mask_NT[index, : prefix + suffix],
            key_NF=self.key_NF[index],
            output_ND=self.output_ND[index],
            state_NSD=self.state_NSD[index, :suffix],
            cache=changed(branched(self.cache), lambda rows: rows[index]),
        )

    def above(self) -> "Suffixes":
        """The same by the shortcut; what the blocks up to the edit have cached is let go."""

        def length_only(rows: Tensor) -> Tensor:
            return rows.new_zeros(1).expand(len(rows), 1, rows.shape[2], 1)

        return replace(self, cache=changed(branched(self.cache), length_only, slice(self.edited_layer + 1)), shortcut=True)

    @torch.no_grad()
    def shortcut_holds(self) -> bool:
        """Whether starting above the edited block gives what running every block gives, on a random δ."""
        generator = torch.Generator().manual_seed(0)
        delta_ND = torch.randn(self.output_ND.shape, generator=generator).to(self.output_ND)
        delta_ND *= self.output_ND.norm() / delta_ND.norm()
        short_NSD, whole_NSD = (replace(self, shortcut=flag).hidden(delta_ND)[:, 0].float() for flag in (True, False))
        return bool((short_NSD - whole_NSD).norm() <= SHORTCUT_ERROR * whole_NSD.norm())


def _sum(state_NSD: Tensor, delta: Tensor) -> Tensor:
    """States with delta (N, D) added at the lookup, or delta (N, S, D) everywhere."""
    delta = delta.to(state_NSD.dtype)
    return state_NSD + delta if delta.dim() == 3 else torch.cat([state_NSD[:, :1] + delta[:, None], state_NSD[:, 1:]], dim=1)


@torch.no_grad()
def clean_pass(
    host: Host, edited_layer: int, rows: Sequence[Row], groups: Sequence[int] | None = None, key_layer: int | None = None
) -> Suffixes:
    """Runs rows through the clean host once.

    Args:
        groups: number of each row's group, from 0 up; what all rows of a group begin with is run once for them. None: each its own.
        key_layer: whose keys are caught, if not those of the edited layer.
    """
    prefix, suffix = max(row.lookup for row in rows), max(row.suffix for row in rows)
    ids_NT = torch.zeros(len(rows), prefix + suffix, dtype=torch.long)
    mask_NT = torch.zeros_like(ids_NT)
    for n, row in enumerate(rows):
        columns = slice(prefix - row.lookup, prefix + row.suffix)
        ids_NT[n, columns] = torch.tensor(row.ids)
        mask_NT[n, columns] = 1
    ids_NT, mask_NT = ids_NT.to(host.device), mask_NT.to(host.device)
    positions_NT = (mask_NT.cumsum(dim=1) - 1).clamp(min=0)
    cache, start = _shared_beginnings(host, rows, groups, prefix)
    caught: dict[str, object] = {}
    inputs = {"input_ids": ids_NT[:, start:], "attention_mask": mask_NT, "position_ids": positions_NT[:, start:]}
    with (
        host.down_proj(edited_layer).register_forward_hook(lambda module, args, output: caught.update(output=output)),
        host.down_proj(edited_layer if key_layer is None else key_layer).register_forward_pre_hook(
            lambda module, args: caught.update(key=args[0])
        ),
        host.blocks[edited_layer].register_forward_hook(lambda module, args, output: caught.update(block=output)),
    ):
        host.model.base_model(**inputs, **host.with_cache(cache))
    as_tuple = isinstance(caught["block"], tuple)
    state_NTD = caught["block"][0] if as_tuple else caught["block"]
    run = (len(rows), prefix + suffix - start, -1)
    return Suffixes(
        host=host,
        edited_layer=edited_layer,
        lengths=[row.suffix for row in rows],
        ids_NS=ids_NT[:, prefix:],
        positions_NS=positions_NT[:, prefix:],
        mask_NT=mask_NT,
        key_NF=caught["key"].reshape(run)[:, prefix - start].clone(),
        output_ND=caught["output"].reshape(run)[:, prefix - start].clone(),
        state_NSD=state_NTD[:, prefix - start :].clone(),
        cache=changed(cache, lambda rows: rows[:, :, :prefix].clone()),
        as_tuple=as_tuple,
    )


def _shared_beginnings(host: Host, rows: Sequence[Row], groups: Sequence[int] | None, prefix: int) -> tuple[DynamicCache, int]:
    """Keys and values of the first columns, each group's beginning run once, and the column from which on every row runs for itself."""
    groups = groups or range(len(rows))
    members: dict[int, list[Row]] = {}
    for group, row in zip(groups, rows, strict=True):
        members.setdefault(group, []).append(row)
    # One cut for all rows, left of which none has more than its group shares: columns stay gapless, as sliding windows need it.
    shared = {group: os.path.commonprefix([row.ids[: row.lookup] for row in found]) for group, found in members.items() if len(found) > 1}
    start = prefix - max(row.lookup - len(shared.get(group, ())) for group, row in zip(groups, rows, strict=True))
    cache = DynamicCache()
    if start == 0:
        return cache, 0
    openings = [torch.tensor(ids, dtype=torch.long) for ids in shared.values()]
    # Padding on the right is seen by nobody.
    ids_GC = torch.nn.utils.rnn.pad_sequence(openings, batch_first=True).to(host.device)
    host.model.base_model(input_ids=ids_GC, **host.with_cache(cache))
    place = {group: g for g, group in enumerate(shared)}
    group_N1 = torch.tensor([place.get(group, 0) for group in groups], device=host.device)[:, None]
    left_N1 = torch.tensor([prefix - row.lookup for row in rows], device=host.device)[:, None]
    token_NC = (torch.arange(start, device=host.device) - left_N1).clamp(min=0, max=ids_GC.shape[1] - 1)
    return changed(cache, lambda rows: rows[group_N1, :, token_NC].transpose(1, 2).contiguous()), start
