"""Checkpoints whose weights were quantised: by which method, and the 8-bit floats among them made numbers again.

Shape letters: D rows, F columns.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from decoder.checkpoint.folders import read_json

FLOATS_OF_8_BITS = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)
SCALES = ("_scale_inv", "_scale")  # what the name of a scale adds to that of its tensor; either is multiplied with


def method_of(config: Mapping[str, Any], folder: Path | None = None) -> str | None:
    """The method that a checkpoint's weights were quantised with, None where they are plain numbers.

    Args:
        config: entries of `config.json`.
        folder: where older tools leave files of their own beside it.
    """
    for key in ("quantization_config", "compression_config", "quantization"):
        if isinstance(found := config.get(key), Mapping):
            method = found.get("quant_method") or ("mlx" if key == "quantization" else "bitsandbytes" if _is_bnb(found) else "unknown")
            return f"{method} ({found['format']})" if isinstance(found.get("format"), str) else str(method)
    if isinstance(text := config.get("text_config"), Mapping) and (method := method_of(text)):
        return method
    for file, method in (("quantize_config.json", "gptq"), ("quant_config.json", "awq"), ("hf_quant_config.json", "modelopt")):
        if folder and read_json(folder / file) is not None:
            return method
    return None


def _is_bnb(config: Mapping[str, Any]) -> bool:
    return any(key.startswith(("load_in_", "bnb_", "llm_int8_")) for key in config)


def refuse(method: str | None, where: str = "") -> None:
    """Raises ValueError, which names the method, unless its weights are plain numbers or 8-bit floats with scales."""
    if method and not (method in ("fp8", "fbgemm_fp8") or (method.startswith("compressed-tensors") and "float-quantized" in method)):
        raise ValueError(
            f"{where}its weights are quantised with {method}, which cannot be undone here. "
            "Give the checkpoint before that, or one saved after model.dequantize()"
        )


def spread(scale: Tensor, shape: tuple[int, ...], block: tuple[int, int] | None, start: int, stop: int) -> Tensor | None:
    """The scale of every entry of some rows of a matrix, None if it does not fit: one for all, one a row, or one a block.

    Args:
        block: rows and columns of a block, where the config says so; else as many as make the blocks even.
        start, stop: the rows.
    """
    scale = scale.float().reshape(scale.shape if scale.dim() == 2 else (-1, 1))
    steps = []
    for axis, (count, length) in enumerate(zip(scale.shape, shape, strict=True)):
        step = block[axis] if block and -(-length // block[axis]) == count else -(-length // count)
        if -(-length // step) != count:
            return None
        steps.append(step)
    rows, columns = torch.arange(start, stop) // steps[0], torch.arange(shape[1]) // steps[1]
    return scale[rows][:, columns]
