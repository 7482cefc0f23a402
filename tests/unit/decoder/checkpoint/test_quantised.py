"""Checkpoints that were quantised: 8-bit floats against a slow twin, and every other method by its name.

Shape letters: D rows, F columns.
"""

import json

import pytest
import torch
from safetensors.torch import save_file

from decoder.checkpoint.reader import Checkpoint

FP8 = torch.float8_e4m3fn
WEIGHT_DF = torch.randn(6, 10, generator=torch.Generator().manual_seed(0))


def blocks(rows: int, columns: int) -> torch.Tensor:
    """Scales of blocks, from the largest number of each; the slow twin of what is spread."""
    return torch.stack(
        [
            torch.stack([WEIGHT_DF[top : top + rows, left : left + columns].abs().max() / 448 for left in range(0, 10, columns)])
            for top in range(0, 6, rows)
        ]
    )


LAYOUTS = {  # rows and columns of a block, shape of the scale if it is another one
    "one for all": (6, 10, (1, 1)),
    "one number": (6, 10, ()),
    "one in a list": (6, 10, (1,)),
    "one a row": (1, 10, None),
    "one a row, in a list": (1, 10, (6,)),
    "blocks": (3, 5, None),
    "blocks with a rest": (4, 4, None),
}


@pytest.mark.parametrize("ending", ["_scale_inv", "_scale"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_eight_bit_floats_are_multiplied_out(tmp_path, layout, ending, monkeypatch):
    rows, columns, shape = LAYOUTS[layout]
    scale = blocks(rows, columns)
    spread_DF = scale.repeat_interleave(rows, 0)[:6].repeat_interleave(columns, 1)[:, :10]
    stored_DF = (WEIGHT_DF / spread_DF).to(FP8)
    save_file({"w": stored_DF, f"w{ending}": scale if shape is None else scale.reshape(shape)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(
        json.dumps({"quantization_config": {"quant_method": "fp8", "weight_block_size": [rows, columns]}})
    )
    monkeypatch.setattr("decoder.checkpoint.reader.CHUNK", 20)  # two rows at a time
    checkpoint = Checkpoint(tmp_path)
    found_DF = checkpoint.matrix("w", (6, 10), "w")
    assert torch.equal(found_DF, stored_DF.float() * spread_DF) and torch.equal(checkpoint.tensor("w"), found_DF)
    assert (found_DF - WEIGHT_DF).norm() < 0.04 * WEIGHT_DF.norm() and checkpoint.dtype("w") == FP8
    assert torch.equal(checkpoint.as_stored("w", WEIGHT_DF[2:4], 2), found_DF[2:4]), "rounding is no difference"
    assert checkpoint.is_scale(f"w{ending}") and not checkpoint.is_scale("w")


def test_scales_that_fit_no_blocks_and_floats_without_a_scale(tmp_path):
    save_file({"w": WEIGHT_DF.to(FP8), "w_scale": torch.ones(7, 1), "v": WEIGHT_DF.to(FP8)}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"w_scale is \(7, 1\), which makes no blocks of \(6, 10\)"):
        Checkpoint(tmp_path / "w.safetensors").matrix("w", (6, 10), "w")
    with pytest.raises(ValueError, match="float8_e4m3fn, expected floats"):
        Checkpoint(tmp_path / "w.safetensors").matrix("v", (6, 10), "v")


METHODS = {
    "bitsandbytes": {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
    "bitsandbytes before it said so": {"quantization_config": {"load_in_8bit": True}},
    "gptq": {"quantization_config": {"quant_method": "gptq", "bits": 4}},
    "awq": {"quantization_config": {"quant_method": "awq"}},
    "compressed-tensors (pack-quantized)": {"quantization_config": {"quant_method": "compressed-tensors", "format": "pack-quantized"}},
    "mlx": {"quantization": {"group_size": 64, "bits": 4}},
    "hqq": {"text_config": {"quantization_config": {"quant_method": "hqq"}}},
    "unknown": {"quantization_config": {}},
}


@pytest.mark.parametrize("method", METHODS)
def test_other_methods_are_refused_by_their_name(tmp_path, method):
    save_file({"w": torch.zeros(2, dtype=torch.uint8)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(METHODS[method]))
    with pytest.raises(ValueError, match="quantised with") as refused:
        Checkpoint(tmp_path)
    assert method.split(" before")[0] in str(refused.value) and "\n" not in str(refused.value)


OLDER = {"gptq": "quantize_config.json", "awq": "quant_config.json", "modelopt": "hf_quant_config.json"}


@pytest.mark.parametrize("method", OLDER)
def test_files_that_older_tools_leave(tmp_path, method):
    save_file({"w": torch.zeros(2)}, tmp_path / "model.safetensors")
    Checkpoint(tmp_path)
    (tmp_path / OLDER[method]).write_text("{}")
    with pytest.raises(ValueError, match=f"quantised with {method}"):
        Checkpoint(tmp_path)
