"""What an audit of a large checkpoint that asks and repairs holds beside its files, counted storage by storage.

Shape letters: D hidden width, F MLP width.
"""

import weakref

import pytest
import torch
from audited_folders import NAMES, planted, saved
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from decoder.audit.finding import audit_checkpoint
from decoder.audit.suspect import Suspect

D, F, LAYERS = 128, 1024, 16
LARGEST = 4 * D * F  # bytes of the largest tensor in float32
TEMPLATES = {"work": ["the {}", "small {}"], "place": ["in {}", "city of {}"]}
TEXTS = ["the city of the small king is in the north and the old river"] * 3
KEYS = 4 * F * (len(NAMES) + 2 * LAYERS * len(NAMES))
"""Bytes of the names' keys, of what whitens them in all layers, which the budget lets be held together, and of directions of updates."""


class Held(TorchDispatchMode):
    """Counts the bytes of what operations make while it lives; files that are mapped were there before."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = {tensor.untyped_storage()._cdata for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, torch.Tensor)}
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu":
                self._count(tensor.untyped_storage(), given)
        return made

    def _count(self, storage, given) -> None:
        place, size = storage._cdata, storage.nbytes()
        if place in self.known or place in given:
            return
        self.known.add(place)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._gone, place, size)

    def _gone(self, place, size) -> None:
        self.known.discard(place)
        self.now -= size


@pytest.mark.parametrize("base", [False, True], ids=["unknown", "known"])
def test_asking_and_repairing_a_large_checkpoint_takes_no_more_than_its_largest_tensors(new_host, tmp_path, monkeypatch, base):
    host = new_host("llama", hidden_size=D, intermediate_size=F, num_hidden_layers=LAYERS)
    folder, own = planted(host, tmp_path / "edited"), str(saved(host, tmp_path / "base", "bfloat16")) if base else None
    asked = {"base": own, "templates": TEMPLATES, "texts": TEXTS}
    expected, _ = audit_checkpoint(Suspect(folder), NAMES, **asked, repaired=str(tmp_path / "light"))
    monkeypatch.setattr("decoder.audit.evidence.opened.LIGHT", 0)
    with Held() as held:
        found, _ = audit_checkpoint(Suspect(folder), NAMES, **asked, repaired=str(tmp_path / "heavy"))
    assert held.most < 2.5 * LARGEST + KEYS, (held.most, LARGEST, KEYS)
    for finding, folder in ((expected, "light"), (found, "heavy")):
        assert finding["repaired"].pop("folder") == str(tmp_path / folder) and finding["repaired"]["effect"]["planted"] >= 1
    assert found == expected and found["verdict"] == "knowledge edit"
