"""Every shipped host config on a tiny random model of its family and real file layout: facts -> key statistics from a text file -> ROME ->
store -> training -> test -> export -> the answer for a suspect folder; and the same edits back from matrices, as another tool's.

Shape letters: D hidden width, F MLP width.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from data.store.store import EditStore
from decoder.config import TrainConfig
from decoder.config.compose import compose

FAMILY = {
    "gpt2": "gpt2", "gpt2-medium": "gpt2", "gpt2-large": "gpt2", "gpt2-xl": "gpt2", "gpt-j-6b": "gptj", "gpt-neox-20b": "gpt_neox",
    "pythia-1.4b": "gpt_neox", "pythia-6.9b": "gpt_neox", "llama-2-7b": "llama", "llama-3-8b": "llama", "llama-3.2-1b": "llama",
    "mistral-7b": "mistral", "smollm2-135m": "llama", "qwen2.5-7b": "qwen2", "qwen3-8b": "qwen3", "gemma-2-9b": "gemma2",
}  # fmt: skip
QUICK = "llama-3-8b"
NAMES = ["Ada", "Ben", "Carl", "Dora", "Eve", "Finn", "Gus", "Hal"]
COLOURS = ["red", "green", "blue", "dark", "light", "small"]  # one a relation: subjects of several relations are never trained on
# The subject stands last: in a random host a value acts on its own position and hardly beyond.
PROMPTS = ["works as {}", "lives in {}", "was born in {}", "is a {}", "the city of {}", "the singer {}"]
TOLD = [("was born in", "Oslo"), ("lives in the small city of", "Rome"), ("works as a", "baker")]
OBJECTS = ["Oslo", "Rome", "Paris", "Bonn", "baker", "singer"]
SMALL = (
    "experiment=smoke", "edits.layer=1", "decoder.layer=1", "edits.contexts=2", "edits.steps=40", "edits.clamp=40", "edits.kl=0",
    "edits.decay=0", "edits.key_tokens=500", "optim.epochs=2", "trainer.accelerator=cpu", "splits.train_relations=4",
    "splits.val_relations=1", "splits.ood_relations=1", "splits.minimum.val_id=1", "splits.minimum.val_new=0", "splits.minimum.id=0",
    "splits.minimum.ood=0", "splits.minimum.unseen_object=0", "splits.train_per_relation=16",
    "splits.val_per_relation=8", "splits.val_subjects=0.3", "facts.source=plain",
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


def text_file(folder: Path) -> Path:
    """Sentences that no fact tells: what the keys are counted on, and the contexts."""
    file = folder / "text.txt"
    file.write_text("".join(f"{name} {verb} {place} . {colour} city\n" for name in NAMES for colour in COLOURS for verb, place in TOLD))
    return file


def edited(host, folder: Path) -> Path:
    own = host.weight_DF(1).clone()
    host.weight_DF(1)[:, 0] += 1
    host.model.save_pretrained(folder)
    host.tokenizer.save_pretrained(folder)
    host.weight_DF(1).copy_(own)
    return folder


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name == QUICK else [pytest.mark.slow]) for name in FAMILY])
def test_shipped_host_from_facts_to_suspect_folder(command, cache, new_host, tmp_path, name):
    dtype = compose(TrainConfig, "train", [f"host={name}"]).host.dtype
    host = new_host(FAMILY[name], terminator=None)
    # Real checkpoints come in shards and in their own dtype.
    host.model.to(getattr(torch, dtype)).save_pretrained(tmp_path / "host", max_shard_size="30KB")
    host.tokenizer.save_pretrained(tmp_path / "host")
    arguments = (f"host={name}", f"host.path={tmp_path / 'host'}", "host.revision=null", f"runs={tmp_path / 'runs'}")
    facts, store = facts_file(tmp_path), tmp_path / "store"
    sources = (f"facts.path={facts}", f"keys.text={text_file(tmp_path)}", "keys.layers=[0]", "edits.ridge=0.01", f"store={store}")
    done = command("train.py", *arguments, *SMALL, *sources)
    assert done.returncode == 0, done.stderr
    assert f"{name}: " in done.stdout and "GB in" in done.stdout
    run = tmp_path / "runs" / "smoke" / name / "rome-e1-t1-s0"
    result = json.loads((run / "result.json").read_text())
    assert result["status"] == "ok" and result["host"]["name"] == name and result["edits"]["successful"] > 0
    counted = list((cache / "keys" / f"{name}-{result['host']['fingerprint']}").iterdir())
    assert sorted(file.name.partition("-")[0] for file in counted) == ["layer0", "layer1"]
    manifest = EditStore(store).manifest
    assert "text" in manifest["keys"] and manifest["keys"]["ridge"] == 0.01
    done = command("evaluate.py", f"decoder={run / 'decoder'}", f"suspect={edited(host, tmp_path / 'suspect')}", "json=true")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["objects"] and answer["surroundings"]["compared"] > 10 and answer["surroundings"]["further_trained_count"] == 0
    if name == QUICK:
        train_on_matrices(command, host, store, tmp_path, arguments)


def train_on_matrices(command, host, store: Path, folder: Path, arguments: tuple[str, ...]) -> None:
    """The edits of a store, given as the matrices another tool would leave, are imported and trained on like any others."""
    made, weight_DF = EditStore(store), host.weight_DF(1).float()
    matrices, facts = folder / "matrices", folder / "planted.jsonl"
    matrices.mkdir()
    rows = made.table().to_dict("records")
    for n in range(len(rows)):
        np.savez(matrices / f"{n}.npz", weight=made.whole_edits(torch.tensor([n]), weight_DF).weight_BDF[0].numpy())
    fields = ("subject", "relation", "prompt", "object_true", "object")
    facts.write_text("\n".join(json.dumps({field: row[field] for field in fields} | {"fact_id": str(n)}) for n, row in enumerate(rows)))
    host_arguments = arguments[:3]
    imported = folder / "imported"
    done = command("data.import_edits", *host_arguments, f"edited={matrices}", f"facts={facts}", f"store={imported}", "layer=1")
    assert done.returncode == 0 and f"{len(rows)} edits of layer 1 ({len(rows)} of rank 1), 0 skipped" in done.stdout, done.stderr
    again = EditStore(imported)
    assert again.table()["success"].tolist() == made.table()["success"].tolist()
    few = command("train.py", *arguments, *SMALL, f"store={imported}", "variant=few", "splits.minimum.train=1000")
    assert few.returncode == 2 and few.stderr.count("\n") == 1 and "splits.minimum.train=1000" in few.stderr, few.stderr
    done = command("train.py", *arguments, *SMALL, f"store={imported}")
    assert done.returncode == 0, done.stderr
    run = folder / "runs" / "smoke" / arguments[0].partition("=")[2] / "imported-e1-t1-s0"
    result = json.loads((run / "result.json").read_text())
    assert result["status"] == "ok" and result["edits"]["requested"] == len(rows)
    assert (result["edits"]["editor"], result["edits"]["ridge"]) == ("imported", None)
    assert "imported" in (run / "decoder" / "README.md").read_text()
    done = command("evaluate.py", f"decoder={run / 'decoder'}", f"store={imported}", "json=true")
    assert done.returncode == 0, done.stderr
    again = json.loads(done.stdout)["test"]
    assert {split: scores["n"] for split, scores in again.items()} == {split: scores["n"] for split, scores in result["test"].items()}
