"""Names as wrappers leave them."""

import pytest

from decoder.checkpoint.names import find_name

OWN = "model.layers.1.mlp.down_proj.weight"
WRAPPED = {
    "compiled": f"_orig_mod.{OWN}",
    "a compiled block": "model.layers.1._orig_mod.mlp.down_proj.weight",
    "checkpointed": "model.layers.1._checkpoint_wrapped_module.mlp.down_proj.weight",
    "fully sharded": "_fsdp_wrapped_module.model.layers.1._fsdp_wrapped_module.mlp.down_proj.weight",
    "in parallel": f"module.{OWN}",
    "twice": f"module._orig_mod.{OWN}",
    "PEFT": "base_model.model.model.layers.1.mlp.down_proj.base_layer.weight",
    "PEFT, compiled": "_orig_mod.base_model.model.model.layers.1.mlp.down_proj.base_layer.weight",
    "Lightning": f"model.{OWN}",
    "Lightning, compiled": f"model._orig_mod.{OWN}",
    "text part": "language_model.model.layers.1._orig_mod.mlp.down_proj.weight",
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_wrappers_are_dropped_anywhere(kind):
    other = WRAPPED[kind].replace("layers.1", "layers.11")
    name = "model.language_model.layers.1.mlp.down_proj.weight" if kind == "text part" else OWN
    assert find_name(name, {WRAPPED[kind], other, "lm_head.weight"}) == WRAPPED[kind]


def test_the_plain_name_wins_and_two_wrapped_ones_decide_nothing():
    assert find_name(OWN, {f"module.{OWN}", OWN}) == OWN
    assert find_name(OWN, {f"module.{OWN}", f"_orig_mod.{OWN}"}) is None
