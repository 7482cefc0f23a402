"""Checkpoints that were edited in several layers.

Shape letters: D hidden width, F MLP width.
"""

import pytest
import torch
from edited import edited_folder, facts_file, outer
from safetensors.torch import load_file, save_file

from data.import_edits.sources import import_edits
from decoder.config.commands import ImportConfig


def importing(host, edited, facts, store, **settings):
    return import_edits(ImportConfig(edited=str(edited), facts=str(facts), store=str(store), **settings), host)


def second_change(host) -> torch.Tensor:
    return 0.05 * torch.randn(host.weight_DF(2).shape, generator=torch.Generator().manual_seed(5))


def in_two_layers(host, folder):
    edited_folder(host, folder)
    tensors = load_file(str(folder / "model.safetensors"))
    tensors["model.layers.2.mlp.down_proj.weight"] += second_change(host)
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})


@pytest.mark.parametrize("first", [0, 1])
def test_several_changed_layers_are_one_row(new_host, tmp_path, first):
    """Beside a checkpoint of one changed layer, whichever comes first; the second layer's update is of full rank."""
    host, several = new_host("llama"), tmp_path / "m" / str(first)
    in_two_layers(host, several)
    edited_folder(host, tmp_path / "m" / str(1 - first), delta=outer(host, 1))
    store = importing(host, tmp_path / "m", facts_file(tmp_path, 2), tmp_path / "store")
    notes, weights = store.manifest["imported"], {layer: host.weight_DF(layer) for layer in (1, 2)}
    assert store.layers == [1, 2] and (notes[first]["rank"], notes[1 - first]["rank"]) == ([1, None], [1, 0])
    assert list(store.matrix_of) == [(first, 2)] and notes[first]["dtype"] == ["float32", "float32"]
    whole = store.whole_edits(torch.tensor([first, 1 - first]), weights)
    changes = {layer: whole.by_layer[layer].weight_BDF - weights[layer] for layer in weights}
    for found_DF, delta_DF in zip(changes[1], (outer(host, 0), outer(host, 1)), strict=True):
        assert (found_DF - delta_DF).norm() <= 1e-4 * delta_DF.norm()
    assert torch.equal(whole.by_layer[2].weight_BDF[0], weights[2] + second_change(host)) and not changes[2][1].any()
    shown = store.table()["delta_norm_ratio"].tolist()[first]
    norm = (
        torch.stack([outer(host, 0).norm(), second_change(host).norm()]).norm() / torch.stack([*map(torch.norm, weights.values())]).norm()
    )
    assert shown == pytest.approx(float(norm), rel=1e-3)
    assert importing(host, several, facts_file(tmp_path, 1), tmp_path / "one", layer=1).manifest["layer"] == 1
    assert importing(host, several, facts_file(tmp_path, 1), tmp_path / "both", layer=[1, 2]).layers == [1, 2]
