"""Opening a whole checkpoint as a host: one that is audited, or what it was made of."""

from math import prod
from pathlib import Path

import torch

from decoder.audit.suspect import Suspect
from decoder.checkpoint.gguf_host import host_folder
from decoder.checkpoint.reader import Checkpoint
from decoder.checkpoint.streamed import compute_in_float32, dtype_kept, give_back_what_is_freed
from decoder.export.opened import check_device
from decoder.host import Host

LIGHT = 4 << 30
"""Bytes that a host may take in float32. The weights of a larger one stay in its files on a CPU; a GPU has it in bfloat16."""

WEIGHTS = (".weight", "_proj")
"""What the names of weights end in, those of fused experts the latter."""


def open_checkpoint(path: str | Path, cache_dir: str | None, device: str = "cpu", setting: str = "suspect") -> Host:
    """A folder or GGUF file as a host; `setting` gave the path.

    Raises:
        ValueError: it cannot be loaded, its tokenizer is of another model, a weight is an integer, NaN or infinite, or there is no such
            device.
    """
    check_device(device)
    name, checkpoint = Path(path).name, Suspect(path).checkpoint
    refuse_integers(checkpoint)
    entries = sum(prod(checkpoint.shape(tensor)) for tensor in checkpoint.names)
    is_light, on_cpu = 4 * entries <= LIGHT, torch.device(device).type == "cpu"
    dtype = "float32" if is_light else str(dtype_kept(checkpoint)).removeprefix("torch.") if on_cpu else "bfloat16"
    asked = {"name": name, "dtype": dtype, "setting": setting}
    host = Host.load(host_folder(path, **asked, cache_dir=cache_dir, shown=True), **asked, device=device)
    _refuse_tokenizer(host, path)
    if not is_light and on_cpu:
        give_back_what_is_freed()
        compute_in_float32(host.model)
    for weights, tensor in host.model.state_dict().items():
        if not all(bool(piece.isfinite().all()) for piece in tensor.split(1 << 14)):
            raise ValueError(f"{path}: {weights} holds NaN or infinity; expected finite numbers")
    return host


def refuse_integers(checkpoint: Checkpoint) -> None:
    """Raises ValueError if weights were quantised to integers and nothing in the files says how; masks and positions are no weights."""
    for name in checkpoint.names:
        if name.endswith(WEIGHTS) and not (dtype := checkpoint.dtype(name)).is_floating_point:
            came = f"{name} is {str(dtype).removeprefix('torch.')}"
            raise ValueError(f"{checkpoint.path}: {came}, expected floating point. Multiply its scale out, and save it in bfloat16")


def _refuse_tokenizer(host: Host, path: str | Path) -> None:
    """Raises ValueError if text becomes tokens that the embedding has no rows for.

    Rows without tokens pad many embeddings. Tokens that were added without a row, as some models do for pictures, are in no name.
    """
    rows, added = len(host.model.get_input_embeddings().weight), host.tokenizer.get_added_vocab()
    highest = max((number for token, number in host.tokenizer.get_vocab().items() if token not in added), default=0)
    if highest >= rows:
        raise ValueError(
            f"{path}: its tokenizer has tokens up to number {highest}, its embedding {rows} rows. "
            "The tokenizer is of another model: copy tokenizer.json and tokenizer_config.json of its own"
        )
