"""Keys of candidates at layers: as many layers at a time as fit the host's budget, and those whose keys whiten all others.

Shape letters: F MLP width.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

import torch
from torch import Tensor

from decoder.audit.candidates import Candidates
from decoder.host import Host

WHITENING = 2048  # names whose keys the second moment is counted over


def usable_layers(host: Host) -> list[int]:
    """The layers that have a down-projection of their own."""
    found = []
    for layer in range(host.layers):
        with suppress(ValueError):
            found += [layer] if host.down_proj_path(layer) else []
    return found


def layers_together(host: Host, layers: Sequence[int], count: int) -> Iterator[list[int]]:
    """Layers whose keys for `count` candidates, and what whitens them, fit the host's budget together; one always may."""
    group: list[int] = []
    size = 0
    for layer in layers:
        width = host.mlp_size(layer)
        needed = 4 * width * (count + min(count, width))
        if group and size + needed > host.memory_budget:
            yield group
            group, size = [], 0
        group.append(layer)
        size += needed
    if group:
        yield group


def gathered(
    candidates: Candidates,
    layers: Sequence[int],
    advance: Callable[[int], None] = lambda count: None,
    picked: Sequence[int] | None = None,
) -> dict[int, Tensor]:
    """Keys of all candidates, or of those `picked`, at each layer as they come, one row each in the order asked for."""
    picked = range(len(candidates)) if picked is None else picked
    row = {place: n for n, place in enumerate(picked)}
    host = candidates.host
    keys = {layer: torch.empty(len(picked), host.mlp_size(layer), device=host.device) for layer in layers}
    for places, found in candidates.keys(layers, picked):
        for layer, keys_NF in found.items():
            keys[layer][[row[place] for place in places]] = keys_NF
        advance(len(places))
    return keys


def for_whitening(candidates: Candidates) -> list[int]:
    """At most `WHITENING` candidates, from all over the list: those whose keys whiten all."""
    return [*range(0, len(candidates), -(-len(candidates) // WHITENING))]
