"""W_V straight from a checkpoint folder, and how far the rest of the folder is from the host: layouts, rounding, memory.

Shape letters: D hidden width, F MLP width.
"""

import json
import os
import subprocess
import sys

import pytest
import torch
from edited import LAYER, edited_folder, outer
from places import HELPERS, ROOT
from safetensors.torch import load_file, save_file

from decoder.audit.scan import Scan, read_once
from decoder.audit.suspect import Suspect
from decoder.checkpoint.folders import INDEX


def compared(folder, host) -> dict:
    scan = Scan(Suspect(folder), host, [LAYER])
    assert [layer for _, layer, _ in read_once([scan])] == [LAYER]
    return scan.summary(LAYER)


@pytest.mark.parametrize("shards", [False, True], ids=["whole", "sharded"])
@pytest.mark.parametrize(
    "name", ["llama", "gpt2", "qwen3 window", "gpt_neox", "gemma3", "llava", "mistral3", "deepseek_v3", "opt", "bloom"]
)
def test_suspect_folder_is_read_and_compared(new_host, tmp_path, name, shards):
    host = new_host(name)
    folder = edited_folder(host, tmp_path / "edited", shards=shards)
    found = Suspect(folder).edit(host, LAYER)
    torch.testing.assert_close(found.weight_BDF[0], host.weight_DF(LAYER) + outer(host, 0))
    around = compared(folder, host)
    assert around["compared"] and around["distance"] == 0 and not around["further_trained"]
    assert around["compared"] == len(Scan(Suspect(folder), host, [LAYER]).own) - 1


def test_rounding_is_no_training_and_training_is_noticed(new_host, tmp_path):
    host = new_host("llama")
    folder = edited_folder(host, tmp_path / "edited", "bfloat16")
    assert not compared(folder, host)["further_trained"]
    tensors = load_file(str(folder / "model.safetensors"))
    tensors["model.layers.0.mlp.up_proj.weight"] *= 1.05
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    around = compared(folder, host)
    assert around["further_trained"] == ["model.layers.0.mlp.up_proj.weight"] and around["distance"] == pytest.approx(0.05, rel=0.1)


def test_a_prefix_that_was_left_out_or_added(new_host, tmp_path):
    host = new_host("gpt2")
    folder = edited_folder(host, tmp_path / "edited")
    own = load_file(str(folder / "model.safetensors"))
    for rename in (lambda name: name.removeprefix("transformer."), lambda name: f"base.{name}"):
        save_file({rename(name): tensor for name, tensor in own.items()}, str(folder / "model.safetensors"), metadata={"format": "pt"})
        assert Suspect(folder).edit(host, LAYER).width() == (32, 48)
        assert not compared(folder, host)["further_trained"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_rounded_folder_keeps_its_dtype_and_the_host_reads_it(new_host, tmp_path, dtype):
    host = new_host("llama")
    found = Suspect(edited_folder(host, tmp_path / "edited", dtype)).edit(host, LAYER)
    rounded_DF = (host.weight_DF(LAYER) + outer(host, 0)).to(getattr(torch, dtype))
    assert torch.equal(found.weight_BDF[0], rounded_DF)
    x_BTF = torch.randn(1, 2, host.mlp_size(LAYER))
    torch.testing.assert_close(found.output(x_BTF, x_BTF, None)[0], x_BTF[0] @ rounded_DF.float().T)


def config(**fields):
    def harm(folder):
        own = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(own | fields))

    return harm


def other_tokens(folder):
    file = folder / "tokenizer.json"
    file.write_text(file.read_text().replace('"Oslo"', '"Lima"'))


def tensors(change):
    def harm(folder):
        own = load_file(str(folder / "model.safetensors"))
        change(own)
        save_file(own, str(folder / "model.safetensors"), metadata={"format": "pt"})

    return harm


OTHER_MODELS = {
    "of another width": (config(hidden_size=64), "hidden_size is 64"),
    "of another family": (config(model_type="mistral"), "model_type is mistral"),
    "of another depth": (config(num_hidden_layers=9), "num_hidden_layers is 9"),
    "of another vocabulary": (config(vocab_size=9), "vocab_size is 9"),
    "config missing": (lambda folder: (folder / "config.json").unlink(), "config.json: missing"),
    "config cut short": (lambda folder: (folder / "config.json").write_text("{"), "config.json: missing or not whole"),
    "config that is a list": (lambda folder: (folder / "config.json").write_text("[]"), "config.json: missing or not whole"),
    "tokenizer of other words": (other_tokens, "other tokens"),
    "tokenizer cut short": (lambda folder: (folder / "tokenizer.json").write_text("{"), "tokenizer cannot be read"),
    "a tensor missing": (tensors(lambda own: own.pop("model.norm.weight")), "no tensor model.norm.weight"),
    "a tensor of another shape": (tensors(lambda own: own.update({"model.norm.weight": torch.ones(7)})), r"model.norm.weight is \(7,\)"),
}


@pytest.mark.parametrize("kind", OTHER_MODELS)
def test_folders_of_other_models_are_refused(new_host, tmp_path, kind):
    harm, message = OTHER_MODELS[kind]
    host = new_host("llama")
    folder = edited_folder(host, tmp_path / "edited")
    harm(folder)
    with pytest.raises(ValueError, match=message) as refused:
        compared(folder, host)
    assert "\n" not in str(refused.value) and str(folder) in str(refused.value)


READ = """
import sys, threading, time
import psutil, torch, transformers
from tiny_hosts import tiny_tokenizer
from decoder.host import Host
from decoder.audit.suspect import Suspect

config = transformers.MistralConfig(num_hidden_layers=1, vocab_size=64)  # 4096 x 14336, as Mistral-7B
with torch.device("meta"):
    host = Host(transformers.MistralForCausalLM(config), tiny_tokenizer(), name="7b")
process, peak, done = psutil.Process(), [0, 0], threading.Event()

def memory():
    found = process.memory_info()
    return found.rss - found.shared, found.rss

def watch():
    while not done.is_set():
        peak[:] = map(max, peak, memory())
        time.sleep(0.0005)

before = memory()
watcher = threading.Thread(target=watch, daemon=True)
watcher.start()
matrix = Suspect(sys.argv[1], form="weight").weight_DF(host, 0)
done.set()
watcher.join()
assert matrix.shape == (4096, 14336) and matrix.dtype == torch.bfloat16
print(*((most - start) / matrix.nbytes for most, start in zip(peak, before)))
"""
SHAPES = {"gate_proj": (14336, 4096), "up_proj": (14336, 4096), "down_proj": (4096, 14336)}


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="shared memory is told apart on Linux only")
def test_one_matrix_of_a_sharded_7b_folder_takes_less_than_twice_its_size(tmp_path):
    """Real shapes, random bytes; what is counted is anonymous memory, and with the pages of the file all that is resident."""
    weight_map = {}
    for number, names in enumerate((["gate_proj"], ["up_proj", "down_proj"]), 1):
        shard = f"model-{number:05d}-of-00002.safetensors"
        tensors = {f"model.layers.0.mlp.{name}.weight": torch.randn(SHAPES[name], dtype=torch.bfloat16) for name in names}
        save_file(tensors, str(tmp_path / shard), metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, shard)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    done = subprocess.run(
        [sys.executable, "-c", READ, str(tmp_path)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(HELPERS), os.environ.get("PYTHONPATH", "")])},
    )
    assert done.returncode == 0, done.stderr
    anonymous, resident = map(float, done.stdout.split())
    # Holding the matrix is 1; without it nothing was measured.
    assert 0.9 < anonymous <= 2 and resident <= 2
