"""A model that is larger than memory: its weights stay in their files, which the system reads as they are needed, and drops."""

import ctypes
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from decoder.checkpoint.reader import Checkpoint

MAPPED = (torch.float32, torch.bfloat16, torch.float16)
"""Dtypes whose files can be mapped and computed with as they are."""
M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
LARGE = 1 << 20  # bytes


def dtype_kept(checkpoint: Checkpoint) -> torch.dtype:
    """The dtype that most of a checkpoint is stored in, in which nothing has to be copied to open it; bfloat16 for what must be anyway."""
    sizes: Counter[torch.dtype] = Counter()
    for name in checkpoint.names:
        sizes[checkpoint.dtype(name)] += prod(checkpoint.shape(name))
    ((most, _),) = sizes.most_common(1)
    return most if most in MAPPED and checkpoint.gguf is None else torch.bfloat16


def compute_in_float32(model: nn.Module) -> None:
    """From now on every module computes in float32, whatever dtype its weights are kept in: they are converted while it runs.

    The answers are those of the model in float32, for the memory of one module at a time, and CPUs are slow in other dtypes.
    """
    for module in model.modules():
        if any(own is not None and own.dtype != torch.float32 for own in module._parameters.values()):
            # Rows that are looked up are the same, converted before or after.
            run = _converted_after if type(module) is nn.Embedding else _converted_before
            module.forward = partial(run, module, module.forward)


def give_back_what_is_freed() -> None:
    """From now on large pieces of memory go back to the system when they are freed, where the C library is glibc.

    It would keep those below 32 MB, put small ones into their places, and take new ones from the system: hundreds of MB over a checkpoint.
    """
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE)


def _converted_after(module: nn.Module, forward: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    return forward(*args, **kwargs).float()


def _converted_before(module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    kept = module._parameters
    module._parameters = {name: own if own is None else own.float() for name, own in kept.items()}
    try:
        return forward(*args, **kwargs)
    finally:
        module._parameters = kept
