"""Headers of files that others saved: names and shapes without the numbers."""

import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from decoder.checkpoint.reader import Checkpoint


def test_names_and_shapes_of_matrices(tmp_path):
    save_file({"w": torch.zeros(3, 4), "bias": torch.zeros(3), "half": torch.zeros(2, 2, dtype=torch.bfloat16)}, tmp_path / "a.safetensors")
    found = Checkpoint(tmp_path / "a.safetensors")
    assert found.matrices == {"half": (2, 2), "w": (3, 4)} and found.dtype("half") == torch.bfloat16 and found.shape("bias") == (3,)
    np.savez(tmp_path / "c.npz", w=np.zeros((3, 4)), bias=np.zeros(3))
    assert Checkpoint(tmp_path / "c.npz").matrices == {"w": (3, 4)}
    (tmp_path / "d.npz").write_bytes((tmp_path / "c.npz").read_bytes()[:-40])
    with pytest.raises(ValueError, match="not a whole npz file"):
        Checkpoint(tmp_path / "d.npz")


def test_an_array_whose_header_is_no_python_is_no_whole_file(tmp_path):
    """numpy parses headers, and a bracket that stays open is no ValueError of its own."""
    np.save(tmp_path / "w.npy", np.zeros((3, 4)))
    damaged = (tmp_path / "w.npy").read_bytes().replace(b"(3, 4), }", b"(3, 4 \0\0\0")
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
        archive.writestr("w.npy", damaged)
    with pytest.raises(ValueError, match="not a whole npz file"):
        Checkpoint(tmp_path / "w.npz")
    with zipfile.ZipFile(tmp_path / "open.npz", "w") as archive:
        archive.writestr("w.npy", (tmp_path / "w.npy").read_bytes().replace(b"(3, 4), }", b"(3, 4,,, "))
    with pytest.raises(ValueError, match="not a whole npz file"):
        Checkpoint(tmp_path / "open.npz")
