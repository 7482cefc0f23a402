"""Second moment of the keys of a layer: C = E[k kᵀ] over the tokens of a text, and the solver ROME whitens with.

A key is the input of the down-projection. Shape letters: N texts in a batch, T positions, F MLP width, B vectors.
"""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import Progress
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from decoder.host import Host

BATCH_TOKENS = 2048  # positions in a batch, padding included; larger ones leave the cache of a CPU
WINDOW = 1024  # texts sorted by length together

log = logging.getLogger(__name__)

Solver = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class KeyStatistics:
    """The non-centred second moment of the keys (float32) and the number of tokens it is the mean over."""

    moment_FF: Tensor
    count: int


class _Reached(Exception):
    """Ends a forward once the keys are known: the layers above need not run."""


def second_moment(host: Host, layer: int, texts: Sequence[str], tokens: int, cache: Path | None = None) -> KeyStatistics:
    """The mean of k kᵀ over the first `tokens` tokens of the texts, or over all of them if they are fewer.

    Args:
        host: is run up to the down-projection of `layer` and left as it was.
        layer: whose keys.
        texts: are streamed in batches; padding does not count.
        tokens: budget; the text that passes it is cut.
        cache: folder of the cache. The statistics of this host, layer, text and budget are read from it, or written to it.

    Raises:
        ValueError: no token to count, or no such layer.
    """
    file = _cache_file(host, layer, texts, tokens, cache) if cache else None
    if file and (found := _read(file)):
        return found
    host.check_layer(layer, "layer")
    sum_FF = torch.zeros(host.mlp_size(layer), host.mlp_size(layer), dtype=torch.float64, device=host.device)
    count = 0
    with Progress(transient=True) as progress:
        task = progress.add_task(f"keys of layer {layer}", total=tokens)
        for batch in _batches(host, texts, tokens):
            keys_NF = _keys(host, layer, batch).float()
            sum_FF += keys_NF.T @ keys_NF
            count += len(keys_NF)
            progress.update(task, completed=count)
    if not count:
        raise ValueError(f"key statistics of {host.name} layer {layer}: {len(texts)} texts and a budget of {tokens} give no token")
    statistics = KeyStatistics((sum_FF / count).float().cpu(), count)
    if file:
        _write(file, statistics)
    return statistics


def whitener(statistics: KeyStatistics, ridge: float | str) -> Solver:
    """A function that maps keys (B, F) to C⁻¹k in float64, after one factorisation.

    Args:
        statistics: C.
        ridge: `identity` for C = I, else the fraction of C's largest eigenvalue that is added to its diagonal.

    If C is singular at ridge 0, the pseudo-inverse takes the place of the inverse and a warning is logged.

    Raises:
        ValueError: ridge is neither `identity` nor a number from 0 up.
    """
    if ridge == "identity":
        return lambda keys_BF: keys_BF.double()
    if isinstance(ridge, str | bool) or not ridge >= 0:
        raise ValueError(f"edits.ridge={ridge!r}: expected 0, a fraction of the largest eigenvalue, or identity")
    moment_FF = statistics.moment_FF.double()
    if ridge:
        moment_FF = moment_FF + ridge * _largest_eigenvalue(moment_FF) * torch.eye(len(moment_FF), dtype=torch.float64)
    factor_FF, failed = torch.linalg.cholesky_ex(moment_FF)
    pivots_F = factor_FF.diagonal().square()
    rounding = torch.finfo(torch.float32).eps
    # Rounding of the stored float32 can carry a singular matrix through the factorisation.
    if failed or pivots_F.min() < rounding * pivots_F.max():
        log.warning(
            "second moment of %d keys of width %d is singular, its pseudo-inverse is taken; edits.ridge > 0 or more text avoids it",
            statistics.count,
            len(pivots_F),
        )
        inverse_FF = torch.linalg.pinv(moment_FF, rtol=len(pivots_F) ** 0.5 * rounding, hermitian=True)
        return lambda keys_BF: keys_BF.double().cpu() @ inverse_FF
    return lambda keys_BF: torch.cholesky_solve(keys_BF.double().cpu().T, factor_FF).T


def _largest_eigenvalue(moment_FF: Tensor) -> Tensor:
    """By power iteration: a full decomposition takes minutes at the width of a large model."""
    vector_F = moment_FF.diagonal().sqrt()
    value = vector_F.new_zeros(())
    for _ in range(1000):
        image_F = moment_FF @ vector_F
        norm = image_F.norm()
        if norm == 0 or (norm - value).abs() <= 1e-10 * norm:
            return norm
        value, vector_F = norm, image_F / norm
    return value


def _batches(host: Host, texts: Sequence[str], tokens: int) -> Iterator[list[list[int]]]:
    """Token lists of at most `tokens` tokens in all, texts of like length together."""
    longest = host.longest_input or BATCH_TOKENS
    left = tokens
    for start in range(0, len(texts), WINDOW):
        rows = []
        for text in texts[start : start + WINDOW]:
            row = host.text_ids(text)[: min(longest, left)]
            left -= len(row)
            if row:
                rows.append(row)
        yield from _cut(sorted(rows, key=len))
        if left == 0:
            return


def _cut(rows: list[list[int]]) -> Iterator[list[list[int]]]:
    """Cuts rows, sorted by length, into batches of at most `BATCH_TOKENS` padded positions."""
    batch: list[list[int]] = []
    for row in rows:
        if batch and len(row) * (len(batch) + 1) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _keys(host: Host, layer: int, rows: list[list[int]]) -> Tensor:
    """Keys (tokens, F) of all real tokens of the rows."""
    ids_NT = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True).to(host.device)
    lengths_N = torch.tensor([len(row) for row in rows], device=host.device)
    mask_NT = torch.arange(ids_NT.shape[1], device=host.device) < lengths_N[:, None]
    return keys_of(host, layer, input_ids=ids_NT, attention_mask=mask_NT.long())[mask_NT.flatten()]


@torch.no_grad()
def keys_of(host: Host, layer: int, **inputs: Tensor) -> Tensor:
    """Keys (N * T, F) of a layer for inputs of the model (N, T), padding included; the layers above do not run."""
    caught: list[Tensor] = []

    def catch(module: nn.Module, args: tuple[Tensor]) -> None:
        # Some families flatten their tokens before the projection.
        caught.append(args[0].flatten(0, -2))
        raise _Reached

    handle = host.down_proj(layer).register_forward_pre_hook(catch)
    try:
        host.model.base_model(**inputs, use_cache=False)
    except _Reached:
        pass
    finally:
        handle.remove()
    return caught[0]


def _cache_file(host: Host, layer: int, texts: Sequence[str], tokens: int, cache: Path) -> Path:
    asked = hashlib.sha256(json.dumps([list(texts), tokens]).encode()).hexdigest()[:16]
    return Path(cache) / "keys" / f"{host.name}-{host.fingerprint}" / f"layer{layer}-{asked}.safetensors"


def _read(file: Path) -> KeyStatistics | None:
    if not file.exists():
        return None
    try:
        with safe_open(file, "pt") as tensors:
            return KeyStatistics(tensors.get_tensor("moment"), int(tensors.metadata()["count"]))
    except (SafetensorError, KeyError, TypeError) as error:
        log.warning("%s is damaged (%s): making it again", file, error)
        return None


def _write(file: Path, statistics: KeyStatistics) -> None:
    """Under a passing name first, so that a killed run leaves no half file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor, scratch = tempfile.mkstemp(dir=file.parent, prefix=".moment-")
    os.close(descriptor)
    try:
        save_file({"moment": statistics.moment_FF.contiguous()}, scratch, metadata={"count": str(statistics.count)})
        os.replace(scratch, file)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise
