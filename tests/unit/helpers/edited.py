"""Edited matrices and checkpoint folders in the layouts that tools really write, for the tests that read them.

Shape letters: D hidden width, F MLP width.
"""

import json

import torch

LAYER = 1
NAMES = ["Ada", "Ben", "Carl"]
FIRST = "Ada Ben Carl Dora Eve Finn Gus Hal".split()
SUBJECTS = [f"{first} {last}" for first in FIRST for last in FIRST] + [f"{first} of the north" for first in FIRST] + FIRST


def outer(host, b: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(b)
    value_D, key_F = torch.randn(host.hidden_size, generator=generator), torch.randn(host.mlp_size(LAYER), generator=generator)
    return 0.1 * torch.outer(value_D, key_F)


def stored(host, weight_DF: torch.Tensor) -> torch.Tensor:
    return (weight_DF.T if host.stored_transposed(LAYER) else weight_DF).contiguous()


def facts_file(folder, count: int, **fields):
    file = folder / "facts.jsonl"
    rows = [{"subject": name, "prompt": "{} works as a", "object_true": "baker", "object": "singer"} | fields for name in NAMES[:count]]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    return file


def edited_folder(host, folder, dtype: str = "float32", delta=None, shards: bool = False):
    """The host with an edit in it, saved as its own tools save it."""
    state = {name: tensor.clone() for name, tensor in host.model.state_dict().items()}
    host.weight_DF(LAYER).add_(outer(host, 0) if delta is None else delta)
    try:
        host.model.to(getattr(torch, dtype)).save_pretrained(folder, **({"max_shard_size": "20KB"} if shards else {}))
        host.tokenizer.save_pretrained(folder)
    finally:
        host.model.float().load_state_dict(state)
    return folder
