"""Edits of other tools: matrices and checkpoint folders in the layouts they are really saved in.

Shape letters: D hidden width, F MLP width, R rank.
"""

import json
import resource
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from data.import_edits import explain, import_edits, main, match, sources
from data.store import EditStore
from decoder.checkpoint import INDEX, Checkpoint
from decoder.config import ImportConfig
from decoder.suspect import compare_folder, read_suspect

LAYER = 1
NAMES = ["Ada", "Ben", "Carl"]


def outer(host, b: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(b)
    value_D, key_F = torch.randn(host.hidden_size, generator=generator), torch.randn(host.mlp_size(LAYER), generator=generator)
    return 0.1 * torch.outer(value_D, key_F)


def stored(host, weight_DF: torch.Tensor) -> torch.Tensor:
    return (weight_DF.T if host.stored_transposed(LAYER) else weight_DF).contiguous()


def facts_file(folder, count: int, **fields):
    file = folder / "facts.jsonl"
    rows = [{"subject": name, "prompt": "{} works as a", "object_true": "baker", "object": "singer"} | fields for name in NAMES[:count]]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    return file


def edited_folder(host, folder, dtype: str = "float32", delta=None, shards: bool = False):
    """The host with an edit in it, saved as its own tools save it."""
    state = {name: tensor.clone() for name, tensor in host.model.state_dict().items()}
    host.weight_DF(LAYER).add_(outer(host, 0) if delta is None else delta)
    try:
        host.model.to(getattr(torch, dtype)).save_pretrained(folder, **({"max_shard_size": "20KB"} if shards else {}))
        host.tokenizer.save_pretrained(folder)
    finally:
        host.model.float().load_state_dict(state)
    return folder


def importing(host, edited, facts, store, **settings) -> EditStore:
    return import_edits(ImportConfig(edited=str(edited), facts=str(facts), store=str(store), **settings), host)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt2 square"])
@pytest.mark.parametrize("ending", ["safetensors", "npz"])
def test_matrices_become_factors(host_of, tmp_path, name, ending):
    host = host_of(name)
    matrices = tmp_path / "matrices"
    matrices.mkdir()
    for b in range(3):
        matrix = stored(host, host.weight_DF(LAYER) + outer(host, b))
        if ending == "npz":
            np.savez(matrices / f"{b}.npz", weight=matrix.numpy())
        else:
            save_file({"weight": matrix}, str(matrices / f"{b}.safetensors"))
    store = importing(host, matrices, facts_file(tmp_path, 3), tmp_path / "store", layer=LAYER)
    assert [row["rank"] for row in store.manifest["imported"]] == [1, 1, 1] and store.manifest["layer"] == LAYER
    for b in range(3):
        found_DF = torch.outer(store.value_ND[b], store.key_NF[b])
        assert (found_DF - outer(host, b)).norm() <= 1e-4 * outer(host, b).norm()
        assert store.manifest["imported"][b]["residual"] < 1e-4
    assert store.table()["subject"].tolist() == NAMES and set(store.table()["object"]) == {"singer"}


@pytest.mark.parametrize("shards", [False, True], ids=["whole", "sharded"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox"])
def test_checkpoint_folders_tell_their_layer(new_host, tmp_path, name, shards):
    host = new_host(name)
    folder = edited_folder(host, tmp_path / "edited", shards=shards)
    assert (folder / INDEX).exists() is shards
    store = importing(host, folder, facts_file(tmp_path, 1), tmp_path / "store")
    assert store.manifest["layer"] == LAYER
    assert (torch.outer(store.value_ND[0], store.key_NF[0]) - outer(host, 0)).norm() <= 1e-4 * outer(host, 0).norm()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounded_checkpoints_say_how_much_is_left_over(new_host, tmp_path, dtype):
    host = new_host("llama")
    folder = edited_folder(host, tmp_path / "edited", dtype)
    store = importing(host, folder, facts_file(tmp_path, 1), tmp_path / "store")
    (note,) = store.manifest["imported"]
    assert note["rank"] == 1 and note["dtype"] == dtype and 0 < note["residual"] <= note["rounding"]
    found_DF = torch.outer(store.value_ND[0], store.key_NF[0])
    assert (found_DF - outer(host, 0)).norm() <= note["rounding"] * outer(host, 0).norm()


def test_a_base_of_ones_own(new_host, tmp_path):
    """The edit sits on a model that is not the host: only against its own base is it of rank one."""
    host = new_host("llama")
    other = torch.randn(32, 48, generator=torch.Generator().manual_seed(9))
    base = edited_folder(host, tmp_path / "base", delta=other)
    folder = edited_folder(host, tmp_path / "edited", delta=other + outer(host, 0))
    store = importing(host, folder, facts_file(tmp_path, 1), tmp_path / "store", base=str(base))
    assert store.manifest["layer"] == LAYER and store.manifest["imported"][0]["rank"] == 1


def test_updates_of_higher_rank_are_kept_whole(host_of, tmp_path):
    host = host_of("llama")
    full = torch.randn(32, 48, generator=torch.Generator().manual_seed(1))
    deltas = [outer(host, 0), outer(host, 1) + outer(host, 2), full]
    (tmp_path / "m").mkdir()
    for b, delta in enumerate(deltas):
        save_file({"w": stored(host, host.weight_DF(LAYER) + delta)}, str(tmp_path / "m" / f"{b}.safetensors"))
    store = importing(host, tmp_path / "m", facts_file(tmp_path, 3), tmp_path / "store", layer=LAYER)
    assert [note["rank"] for note in store.manifest["imported"]] == [1, 2, None] and len(store) == 1
    whole = load_file(str(store.path / "matrices-00000.safetensors"))
    assert [tensor.shape for tensor in whole.values()] == [(32, 48)] * 2
    assert any(torch.equal(tensor, host.weight_DF(LAYER) + full) for tensor in whole.values())


def test_a_thousand_pocket_matrices():
    """Factors of 1,000 of 1,000 matrices of pocket size come back."""
    generator = torch.Generator().manual_seed(0)
    base_DF = 0.05 * torch.randn(128, 384, generator=generator)
    worst = 0.0
    for _ in range(1000):
        key_F, value_D = torch.randn(384, generator=generator), torch.randn(128, generator=generator)
        delta_DF = torch.outer(value_D, key_F) / key_F.norm()
        update = explain(base_DF + delta_DF, base_DF, torch.float32, 1e-4)
        assert update.rank == 1
        worst = max(worst, float((torch.outer(update.value_RD[0], update.key_RF[0]) - delta_DF).norm() / delta_DF.norm()))
    assert worst <= 1e-4


def test_nothing_changed_and_less_than_rounding(host_of):
    weight_DF = host_of("llama").weight_DF(LAYER)
    with pytest.raises(ValueError, match="same as its base"):
        explain(weight_DF, weight_DF, torch.float32, 1e-4)
    with pytest.raises(ValueError, match="rounding to torch.bfloat16 alone"):
        explain(weight_DF.bfloat16().float(), weight_DF, torch.bfloat16, 1e-4)


def test_bad_sources_are_skipped_and_the_rest_goes_on(host_of, tmp_path):
    host = host_of("llama")
    (tmp_path / "m").mkdir()
    good = host.weight_DF(LAYER) + outer(host, 0)
    nan = good.clone()
    nan[3, 4] = torch.nan
    for b, tensor in enumerate([good, nan, good.T.contiguous()]):
        save_file({"w": tensor}, str(tmp_path / "m" / f"{b}.safetensors"))
    store = importing(host, tmp_path / "m", facts_file(tmp_path, 3), tmp_path / "store", layer=LAYER)
    assert len(store) == 1
    reasons = [reason for _, reason in store.manifest["skipped"]]
    assert "NaN or infinity" in reasons[0] and "looks transposed" in reasons[1]


def pickled(folder):
    torch.save({}, folder / "pytorch_model.bin")


def no_shard(folder):
    next(folder.glob("model-00001*")).unlink()


def cut_shard(folder):
    shard = next(folder.glob("model-00001*"))
    shard.write_bytes(shard.read_bytes()[:100])


def broken_index(folder):
    (folder / INDEX).write_text("{")


def escaping_index(folder):
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": "../model.safetensors"}}))


def no_index(folder):
    (folder / INDEX).unlink()


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (no_shard, "shard model-00001-.* is missing"),
        (cut_shard, "not a whole safetensors file"),
        (broken_index, "no index of shards"),
        (escaping_index, "outside its folder"),
        (no_index, "and no model.safetensors.index.json"),
    ],
)
def test_damaged_folders_are_refused(new_host, tmp_path, harm, message):
    folder = edited_folder(new_host("llama"), tmp_path / "edited", shards=True)
    harm(folder)
    with pytest.raises(ValueError, match=message) as refused:
        Checkpoint(folder)
    assert "\n" not in str(refused.value)


def test_pickles_are_refused(tmp_path, host_of):
    pickled(tmp_path)
    for path in (tmp_path, tmp_path / "pytorch_model.bin"):
        with pytest.raises(ValueError, match="pickles are never loaded"):
            Checkpoint(path)
    np.savez(tmp_path / "objects.npz", w=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="pickled arrays are never loaded"):
        read_suspect(tmp_path / "objects.npz", host_of("llama"), LAYER)
    (tmp_path / "cut.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match="not a whole npz"):
        Checkpoint(tmp_path / "cut.npz")


def test_facts_are_matched_by_name_then_by_order(tmp_path):
    from data.facts import FactsConfig, load_facts

    rows = [{"fact_id": f"P1-{n}", "subject": f"s{n}", "prompt": "{} is", "object_true": "a", "object": "b"} for n in (10, 2, 3)]
    file = tmp_path / "facts.json"
    file.write_text(json.dumps(rows))
    facts = load_facts(FactsConfig(source="plain", path=str(file)))
    (tmp_path / "m").mkdir()
    for name in ("case_2", "case_10", "case_3"):
        (tmp_path / "m" / f"{name}.safetensors").touch()
    paths = sources(tmp_path / "m")
    assert [path.stem for path in paths] == ["case_2", "case_3", "case_10"]
    assert [fact.subject for fact in match(paths, facts)] == ["s2", "s3", "s10"]
    others = [path.with_stem(f"edit{chr(97 + n)}") for n, path in enumerate(paths)]
    assert [fact.subject for fact in match(others, facts)] == ["s10", "s2", "s3"]
    with pytest.raises(ValueError, match="3 facts for 2 edited sources"):
        match(others[:2], facts)


def test_several_changed_layers_ask_which(new_host, tmp_path):
    host = new_host("llama")
    folder = edited_folder(host, tmp_path / "edited")
    tensors = load_file(str(folder / "model.safetensors"))
    tensors["model.layers.2.mlp.down_proj.weight"] += 1
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    with pytest.raises(ValueError, match="layers 1, 2 differ from the base.*layer="):
        importing(host, folder, facts_file(tmp_path, 1), tmp_path / "store")
    assert len(importing(host, folder, facts_file(tmp_path, 1), tmp_path / "store", layer=1)) == 1


def test_what_was_planted_must_be_said(host_of, tmp_path):
    save_file({"w": host_of("llama").weight_DF(LAYER) + 1}, str(tmp_path / "w.safetensors"))
    with pytest.raises(ValueError, match="does not say which object was planted"):
        importing(host_of("llama"), tmp_path / "w.safetensors", facts_file(tmp_path, 1, object=""), tmp_path / "store", layer=LAYER)


def test_command_line(capsys):
    for argv, message in [([], "edited= is missing"), (["edited=a", "fact=b"], "did you mean facts")]:
        with pytest.raises(SystemExit) as stop:
            main(argv)
        err = capsys.readouterr().err
        assert stop.value.code == 2 and message in err and err.count("\n") == 1
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0 and "tolerance=" in capsys.readouterr().out


# A suspect folder


@pytest.mark.parametrize("shards", [False, True], ids=["whole", "sharded"])
@pytest.mark.parametrize(
    "name", ["llama", "gpt2", "qwen3 window", "gpt_neox", "gemma3", "llava", "mistral3", "deepseek_v3", "opt", "bloom"]
)
def test_suspect_folder_is_read_and_compared(new_host, tmp_path, name, shards):
    host = new_host(name)
    folder = edited_folder(host, tmp_path / "edited", shards=shards)
    found = read_suspect(folder, host, LAYER)
    torch.testing.assert_close(found.weight_BDF[0], host.weight_DF(LAYER) + outer(host, 0))
    around = compare_folder(folder, host, LAYER)
    assert around.distance and max(around.distance.values()) == 0 and not around.trained
    assert f"{host.module_path(LAYER)}.weight" not in around.distance


def test_rounding_is_no_training_and_training_is_noticed(new_host, tmp_path):
    host = new_host("llama")
    folder = edited_folder(host, tmp_path / "edited", "bfloat16")
    assert not compare_folder(folder, host, LAYER).trained
    tensors = load_file(str(folder / "model.safetensors"))
    tensors["model.layers.0.mlp.up_proj.weight"] *= 1.05
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    around = compare_folder(folder, host, LAYER)
    assert around.trained == ["model.layers.0.mlp.up_proj.weight"] and around.summary()["distance"] == pytest.approx(0.05, rel=0.1)


def test_a_prefix_that_was_left_out_or_added(new_host, tmp_path):
    host = new_host("gpt2")
    folder = edited_folder(host, tmp_path / "edited")
    own = load_file(str(folder / "model.safetensors"))
    for rename in (lambda name: name.removeprefix("transformer."), lambda name: f"base.{name}"):
        save_file({rename(name): tensor for name, tensor in own.items()}, str(folder / "model.safetensors"), metadata={"format": "pt"})
        assert read_suspect(folder, host, LAYER).width() == (32, 48)
        assert not compare_folder(folder, host, LAYER).trained


def change_config(**fields):
    def harm(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | fields))

    return harm


def drop_config(folder):
    (folder / "config.json").unlink()


def other_tokenizer(folder):
    file = folder / "tokenizer.json"
    file.write_text(file.read_text().replace('"Oslo"', '"Lima"'))


def broken_tokenizer(folder):
    (folder / "tokenizer.json").write_text("{")


def drop_tensor(folder):
    tensors = load_file(str(folder / "model.safetensors"))
    tensors.pop("model.norm.weight")
    save_file(tensors, str(folder / "model.safetensors"))


def other_shape(folder):
    tensors = load_file(str(folder / "model.safetensors"))
    tensors["model.norm.weight"] = torch.ones(7)
    save_file(tensors, str(folder / "model.safetensors"))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (change_config(hidden_size=64), "hidden_size is 64"),
        (change_config(model_type="mistral"), "model_type is mistral"),
        (change_config(num_hidden_layers=9), "num_hidden_layers is 9"),
        (drop_config, "config.json: missing"),
        (other_tokenizer, "other tokens"),
        (broken_tokenizer, "tokenizer cannot be read"),
        (drop_tensor, "no tensor model.norm.weight"),
        (other_shape, r"model.norm.weight is \(7,\)"),
    ],
)
def test_folders_of_other_models_are_refused(new_host, tmp_path, harm, message):
    host = new_host("llama")
    folder = edited_folder(host, tmp_path / "edited")
    harm(folder)
    with pytest.raises(ValueError, match=message) as refused:
        compare_folder(folder, host, LAYER)
    assert "\n" not in str(refused.value) and "edited" in str(refused.value)


READ = """
import resource, sys, torch
from decoder.checkpoint import Checkpoint
checkpoint = Checkpoint(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
matrix = checkpoint.matrix("w", (4096, 3584), "w")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / (matrix.numel() * 4))
"""


def test_reading_a_matrix_takes_little_more_memory_than_the_matrix(tmp_path):
    assert resource.getpagesize()
    save_file({"w": torch.zeros(4096, 3584), "other": torch.zeros(4096, 3584)}, str(tmp_path / "w.safetensors"))
    done = subprocess.run([sys.executable, "-c", READ, str(tmp_path / "w.safetensors")], capture_output=True, text=True, check=True)
    # The result once, and the pages of the file that were read, which the system counts too.
    assert float(done.stdout) <= 2.1
