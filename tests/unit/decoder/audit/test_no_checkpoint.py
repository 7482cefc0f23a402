"""Suspects that are no whole checkpoint, and what to do about each."""

import json
import os
import subprocess
import sys

import pytest
import torch
from audited_folders import saved
from places import ROOT
from safetensors.torch import load_file, save_file

import evaluate

FACTORS = {"A": (2, 48), "B": (32, 2)}


def stopped(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as stop:
        evaluate.main([*map(str, arguments)])
    told = "".join(line + "\n" for line in capsys.readouterr().err.splitlines() if line.startswith("error"))
    assert stop.value.code == 2 and told.count("\n") == 1
    return told


def test_what_is_no_whole_checkpoint_is_said_how_to_audit(new_host, tmp_path, capsys):
    host = new_host("llama")
    folder, alone, adapter = saved(host, tmp_path / "folder"), tmp_path / "alone.safetensors", tmp_path / "adapter"
    save_file({"matrix": host.weight_DF(1).contiguous()}, str(alone))
    adapter.mkdir()
    sides = {f"base_model.model.model.layers.1.mlp.down_proj.lora_{side}.weight": torch.ones(shape) for side, shape in FACTORS.items()}
    save_file(sides, str(adapter / "adapter_model.safetensors"))
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}))
    file = folder / "model.safetensors"
    assert f"suspect={file} is one file of a checkpoint: give its folder, suspect={folder}" in stopped(capsys, f"suspect={file}")
    told = stopped(capsys, f"suspect={alone}")
    assert (
        "is no whole checkpoint: give decoder= to read it; or give a folder with config.json, weights and a tokenizer, or a GGUF file"
        in told
    )
    told = stopped(capsys, f"suspect={adapter}", f"report={tmp_path / 'audit.html'}")
    assert "holds a LoRA adapter alone: merge it into its base (merge_and_unload) and give that; or give decoder= to read it" in told
    assert "and leave out report=" in told and "base=" not in told


@pytest.mark.parametrize("setting", ["suspect", "base"])
def test_of_tensors_that_are_missing_a_line_says_which(new_host, tmp_path, setting):
    good, lacking = (saved(new_host("llama"), tmp_path / name) for name in ("good", "lacking"))
    kept = {name: tensor for name, tensor in load_file(str(lacking / "model.safetensors")).items() if "layers.1.mlp" not in name}
    save_file(kept, str(lacking / "model.safetensors"), {"format": "pt"})
    line = [f"suspect={lacking}"] if setting == "suspect" else [f"suspect={good}", f"base={lacking}"]
    # In a process of its own: pytest takes the place of what transformers says it with.
    command = [sys.executable, ROOT / "evaluate.py", *line]
    ended = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    names = ", ".join(f"model.layers.1.mlp.{part}_proj.weight" for part in ("down", "gate", "up"))
    assert ended.returncode == 2 and not ended.stdout and ended.stderr.count("\n") == 1
    assert ended.stderr.startswith(f"error: {setting}={lacking} cannot be loaded (its weights lack {names}, which would be made up.")
