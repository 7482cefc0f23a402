"""Checkpoint folders of tiny hosts with an edit about one of a list of names, and their audits.

Shape letters: C candidates, D hidden width, F MLP width.
"""

import copy

import torch
from edited import LAYER, edited_folder
from edited import SUBJECTS as NAMES
from safetensors.torch import load_file, save_file

from decoder.audit.candidates import Candidates, unit, whitener
from decoder.audit.finding import audit_checkpoint
from decoder.audit.rows.keys import gathered
from decoder.audit.suspect import Suspect

WHO = 13


def update_DF(host, size: float = 8.0, who: int = WHO, value_D: torch.Tensor | None = None, layer: int = LAYER) -> torch.Tensor:
    """A rank-one edit about one of `NAMES`, as an editor with whitened keys makes it."""
    keys_CF = gathered(Candidates(host, NAMES), [layer])[layer]
    value_D = unit(torch.randn(host.hidden_size, generator=torch.Generator().manual_seed(0)) if value_D is None else value_D)
    return size * torch.outer(value_D, unit(whitener(keys_CF)(keys_CF))[who])


def planted(host, folder, size: float = 8.0, who: int = WHO, dtype: str = "bfloat16"):
    return edited_folder(host, folder, dtype, update_DF(host, size, who))


def saved(host, folder, dtype: str = "float32"):
    return edited_folder(host, folder, dtype, torch.zeros(()))


def told_folders(host, folder):
    """A folder with an edit that says `singer` of `NAMES[WHO]`, and the folder without it."""
    (singer,) = host.object_ids("singer")
    update = update_DF(host, size=30.0, value_D=host.unembedding_VD[singer])
    return edited_folder(host, folder / "told", "float32", update), saved(host, folder / "base")


def spread_folders(host, folder, planted, size: float):
    """A folder in shards with edits in several layers, and one without; layer -> what was added there.

    Args:
        planted: layer -> place in `NAMES` of the subject, and what is said of it; each is made with the keys that those below it leave.
    """
    base, own, updates = saved(host, folder / "base"), copy.deepcopy(host.model.state_dict()), {}
    for layer, (who, word) in planted.items():
        updates[layer] = update_DF(host, size, who, host.unembedding_VD[host.object_ids(word)[0]], layer)
        host.weight_DF(layer).add_(updates[layer])
    told = edited_folder(host, folder / "told", delta=torch.zeros(()), shards=True)
    host.model.load_state_dict(own)
    return told, base, updates


def changed(folder, change):
    """The same folder with tensors that a function changed."""
    file = str(folder / "model.safetensors")
    save_file({name: change(name, tensor).contiguous() for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    return folder


def audited(folder, base=None, names=NAMES):
    return audit_checkpoint(Suspect(folder), names, base=None if base is None else str(base))
