"""Every shipped host config, from facts to the answer for a suspect folder, on a tiny random model of its family and real file layout."""

import json
from pathlib import Path

import pytest
import torch

from decoder.compose import compose
from decoder.config import TrainConfig

FAMILY = {
    "gpt2": "gpt2", "gpt2-medium": "gpt2", "gpt2-large": "gpt2", "gpt2-xl": "gpt2", "gpt-j-6b": "gptj", "gpt-neox-20b": "gpt_neox",
    "pythia-1.4b": "gpt_neox", "pythia-6.9b": "gpt_neox", "llama-2-7b": "llama", "llama-3-8b": "llama", "llama-3.2-1b": "llama",
    "mistral-7b": "mistral", "qwen2.5-7b": "qwen2", "qwen3-8b": "qwen3", "gemma-2-9b": "gemma2",
}  # fmt: skip
QUICK = "llama-3-8b"
NAMES = ["Ada", "Ben", "Carl", "Dora", "Eve", "Finn", "Gus", "Hal"]
COLOURS = ["red", "green", "blue", "dark", "light", "small"]  # one a relation: subjects of several relations are never trained on
# The subject stands last: in a random host a value acts on its own position and hardly beyond.
PROMPTS = ["works as {}", "lives in {}", "was born in {}", "is a {}", "the city of {}", "the singer {}"]
OBJECTS = ["Oslo", "Rome", "Paris", "Bonn", "baker", "singer"]
SMALL = (
    "experiment=smoke", "edits.layer=1", "decoder.layer=1", "edits.contexts=2", "edits.steps=40", "edits.clamp=40", "edits.kl=0",
    "edits.decay=0", "edits.key_tokens=500", "optim.epochs=2", "trainer.accelerator=cpu", "splits.train_relations=4",
    "splits.val_relations=1", "splits.ood_relations=1", "splits.min_val_id=1", "splits.min_val_new=0", "splits.min_id=0",
    "splits.min_ood=0", "splits.min_unseen_object=0", "edits.train_per_relation=16",
    "edits.val_per_relation=8", "splits.val_subjects=0.3", "facts.source=plain",
)  # fmt: skip


def facts_file(folder: Path) -> Path:
    file = folder / "facts.jsonl"
    rows = [
        {
            "subject": f"{COLOURS[r]} {name}",
            "relation": f"R{r}",
            "prompt": prompt,
            "object_true": OBJECTS[(s + r) % 6],
            "paraphrases": ["from {}"],
        }
        for r, prompt in enumerate(PROMPTS)
        for s, name in enumerate(NAMES)
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def edited(host, folder: Path) -> Path:
    own = host.weight_DF(1).clone()
    host.weight_DF(1)[:, 0] += 1
    host.model.save_pretrained(folder)
    host.tokenizer.save_pretrained(folder)
    host.weight_DF(1).copy_(own)
    return folder


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name == QUICK else [pytest.mark.slow]) for name in FAMILY])
def test_shipped_host_from_facts_to_suspect_folder(command, new_host, tmp_path, name):
    dtype = compose(TrainConfig, "train", [f"host={name}"]).host.dtype
    host = new_host(FAMILY[name], terminator=None)
    # Real checkpoints come in shards and in their own dtype.
    host.model.to(getattr(torch, dtype)).save_pretrained(tmp_path / "host", max_shard_size="30KB")
    host.tokenizer.save_pretrained(tmp_path / "host")
    facts = facts_file(tmp_path)
    arguments = (f"host={name}", f"host.path={tmp_path / 'host'}", "host.revision=null", f"facts.path={facts}", f"runs={tmp_path / 'runs'}")
    done = command("train.py", *arguments, *SMALL)
    assert done.returncode == 0, done.stderr
    assert f"{name}: " in done.stdout and "GB in" in done.stdout
    run = tmp_path / "runs" / "smoke" / name / "rome-e1-t1-s0"
    result = json.loads((run / "result.json").read_text())
    assert result["status"] == "ok" and result["host"]["name"] == name and result["edits"]["successful"] > 0
    done = command("evaluate.py", f"decoder={run / 'decoder'}", f"suspect={edited(host, tmp_path / 'suspect')}", "json=true")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["objects"] and answer["surroundings"]["compared"] > 10 and answer["surroundings"]["further_trained_count"] == 0
