"""Second moment of the keys of a layer: C = E[k kᵀ] over the tokens of a text, and the solver ROME whitens with.

A key is the input of the down-projection. Several layers are counted in one pass over the text: each adds its products (float32) to its sum
(float64) as the pass goes by, so that the keys of one layer at a time are held.

Shape letters: N texts in a batch, T positions, F MLP width, B vectors.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import torch
from torch import Tensor, nn

from data.keys.cache import KeyStatistics, cache_files, read, write
from decoder.config import KeysConfig
from decoder.host import Host
from decoder.utils.progress import progress

BATCH_TOKENS = 2048  # positions in a batch on a CPU, padding included: larger ones leave its cache. Elsewhere memory alone bounds it
LONGEST_TEXT = 8192  # tokens; hosts that can read more would need gigabytes for one text
MEMORY_BUDGET = KeysConfig().memory_budget
WINDOW = 1024  # texts sorted by length together

log = logging.getLogger(__name__)

Catch = Callable[[Tensor], None]


class _Reached(Exception):
    """Ends a forward once the keys are known: the layers above need not run."""


def second_moments(
    host: Host, layers: Sequence[int], texts: Sequence[str], tokens: int, cache: Path | None = None, memory_budget: float = MEMORY_BUDGET
) -> dict[int, KeyStatistics]:
    """The mean of k kᵀ over the first `tokens` tokens of the texts, or over all of them if they are fewer, for each layer.

    Args:
        host: is run once up to the highest of the layers whose statistics are not in the cache, and left as it was.
        layers: whose keys.
        texts: are streamed in batches; padding does not count. A text is cut at what the host can read, or `LONGEST_TEXT`.
        tokens: budget; the text that passes it is cut.
        cache: folder of the cache. The statistics of this host, layer, text and budget are read from it, or written to it.
        memory_budget: GiB that the keys caught at a time may take, copies included. The sums are kept beside it, 8 F² bytes a layer.

    Raises:
        ValueError: no token to count, no such layer, or a budget that one text is too long for.
    """
    for layer in layers:
        host.check_layer(layer, "layer")
    files = cache_files(host, layers, texts, tokens, cache) if cache else {}
    found = {layer: statistics for layer, file in files.items() if (statistics := read(file))}
    if missing := sorted(set(layers) - found.keys()):
        counted = _count(host, missing, texts, tokens, int(memory_budget * 2**30))
        for layer in missing:
            found[layer] = next(counted)
            if cache:
                write(files[layer], found[layer])
    return found


def _count(host: Host, layers: list[int], texts: Sequence[str], tokens: int, budget: int) -> Iterator[KeyStatistics]:
    """The statistics of each layer, in order, after one pass for all of them."""
    sums = {
        layer: torch.zeros(width, width, dtype=torch.float64, device=host.device) for layer in layers if (width := host.mlp_size(layer))
    }
    most = _positions(host, layers, budget)
    count = 0
    with progress(f"keys of layer{'s' * (len(layers) > 1)} {', '.join(map(str, layers))}, tokens", tokens) as advance:
        for batch in _batches(host, texts, tokens, most):
            advance(added := _add(host, sums, batch))
            count += added
    if not count:
        names = ", ".join(map(str, layers))
        raise ValueError(f"key statistics of {host.name} layer {names}: {len(texts)} texts and a budget of {tokens} give no token")
    for layer in layers:
        yield KeyStatistics((sums.pop(layer) / count).float().cpu(), count)


def _positions(host: Host, layers: list[int], budget: int) -> int:
    """Positions of a batch whose keys stay within `budget` bytes: as they come, without padding, and in float32."""
    width = max(host.mlp_size(layer) for layer in layers)
    each = width * (2 * host.dtype.itemsize + (4 if host.dtype != torch.float32 else 0))
    most = budget // each
    return min(most, BATCH_TOKENS) if host.device.type == "cpu" else most


def _add(host: Host, sums: Mapping[int, Tensor], rows: list[list[int]]) -> int:
    """Adds k kᵀ of all tokens of the rows to the sum of each layer; how many tokens that were."""
    ids_NT = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True).to(host.device)
    lengths_N = torch.tensor([len(row) for row in rows], device=host.device)
    mask_NT = torch.arange(ids_NT.shape[1], device=host.device) < lengths_N[:, None]

    def adder(sum_FF: Tensor) -> Catch:
        def add(keys_NF: Tensor) -> None:
            real_NF = keys_NF[mask_NT.flatten()].float()
            sum_FF.add_(real_NF.T @ real_NF)

        return add

    catches = {layer: adder(sum_FF) for layer, sum_FF in sums.items()}
    _run(host, catches, input_ids=ids_NT, attention_mask=mask_NT.long())
    return sum(map(len, rows))


def _batches(host: Host, texts: Sequence[str], tokens: int, most: int) -> Iterator[list[list[int]]]:
    """Token lists of at most `tokens` tokens in all, texts of like length together, at most `most` padded positions in a batch."""
    longest = min(host.longest_input or BATCH_TOKENS, LONGEST_TEXT)
    left = tokens
    for start in range(0, len(texts), WINDOW):
        rows = []
        for text in texts[start : start + WINDOW]:
            row = host.text_ids(text)[: min(longest, left)]
            if len(row) > most:
                raise ValueError(
                    f"keys.memory_budget: one text has {len(row)} tokens, and the budget holds the keys of {most}. "
                    "Raise it, or give shorter texts"
                )
            left -= len(row)
            if row:
                rows.append(row)
        yield from _cut(sorted(rows, key=len), most)
        if left == 0:
            return


def _cut(rows: list[list[int]], most: int) -> Iterator[list[list[int]]]:
    """Cuts rows, sorted by length, into batches of at most `most` padded positions."""
    batch: list[list[int]] = []
    for row in rows:
        if batch and len(row) * (len(batch) + 1) > most:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def keys_of(host: Host, layer: int, **inputs: Tensor) -> Tensor:
    """Keys (N * T, F) of a layer for inputs of the model (N, T), padding included; the layers above do not run."""
    caught: list[Tensor] = []
    _run(host, {layer: caught.append}, **inputs)
    return caught[0]


@torch.no_grad()
def _run(host: Host, catches: Mapping[int, Catch], **inputs: Tensor) -> None:
    """Runs the host up to the highest of the layers, each of which hands over its keys (N * T, F) as it is reached."""

    def hook(catch: Catch, last: bool) -> Callable:
        def reached(module: nn.Module, args: tuple[Tensor]) -> None:
            # Some families flatten their tokens before the projection.
            catch(args[0].flatten(0, -2))
            if last:
                raise _Reached

        return reached

    with suppress(_Reached), ExitStack() as hooks:
        for layer, catch in catches.items():
            hooks.enter_context(host.down_proj(layer).register_forward_pre_hook(hook(catch, layer == max(catches))))
        host.model.base_model(**inputs, use_cache=False)
