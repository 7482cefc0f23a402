"""What a finished run leaves, and that its decoder can be used."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from forked import ended
from safetensors.torch import load_file, save_file

import evaluate
from decoder.dense import applied
from decoder.report.layer_curves import run_rows
from decoder.report.results import LEARNT, read_history
from decoder.report.wandb_runs import CHOSEN_BY, result_of

BASELINES = {
    "logit_lens",
    "logit_lens_base_free",
    "nearest_edit",
    "object_prior",
    "untrained_prompt",
    "carrier",
    "linear_value",
    "master_key",
}


def result_of_folder(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def host_weight(cache: Path) -> torch.Tensor:
    (file,) = sorted((cache / "hosts").glob("pocket-*/model.safetensors"))[-1:]
    return load_file(file)["model.layers.1.mlp.down_proj.weight"]


def test_run_folder_has_every_file(smoke):
    folder, _ = smoke
    expected = {
        "config.yaml",
        "overrides.txt",
        "checkpoints",
        "metrics.csv",
        "predictions.parquet",
        "decoder",
        "report.html",
        "result.json",
        "wandb",
        "log.txt",
    }
    assert {path.name for path in folder.iterdir()} == expected
    assert (folder / "overrides.txt").read_text().startswith("experiment=smoke")


def test_result_has_the_stable_keys(smoke):
    result = result_of_folder(smoke[0])
    assert result["schema"] == 1 and result["status"] == "ok"
    assert set(result["baselines"]) == BASELINES
    for split in ("id", "ood", "unseen_object"):
        assert set(result["test"][split]["exact_match"]) == {"value", "ci95", "ci95_cluster"}
        for baseline in result["baselines"].values():
            assert baseline[split]["n"] == result["test"][split]["n"]
    assert result["edits"]["requested"] >= result["edits"]["successful"] > 0
    assert set(result["seconds"]) == {"host", "edits", "fit", "test", "total"}
    assert set(result["fit"]) == {"epochs", "stopping_reason", "best_val_loss"}


def test_predictions_agree_with_the_scores(smoke):
    folder, _ = smoke
    predictions = pd.read_parquet(folder / "predictions.parquet")
    assert set(predictions["split"]) == {"id", "ood", "unseen_object", "val/id", "val/new"}
    for split in ("id", "ood", "unseen_object"):
        rows = predictions[predictions["split"] == split]
        assert (rows["predicted"] == rows["object"]).mean() == result_of_folder(folder)["test"][split]["exact_match"]["value"]


def test_terminal_shows_scores_examples_and_next_commands(smoke):
    folder, shown = smoke
    for part in (
        "unseen_object",
        "nearest training edit",
        "decoder says:",
        "Training stopped",
        f"python evaluate.py decoder={folder / 'decoder'}",
    ):
        assert part in shown
    assert shown.count("decoder says:") == 8


def test_checkpoint_holds_prompt_and_trained_layer_only(smoke):
    checkpoint = torch.load(smoke[0] / "checkpoints" / "best.ckpt", weights_only=True)
    names = {name for name in checkpoint["state_dict"] if not name.startswith("meters.")}
    assert names and all(name.startswith(("decoder.prompt_MD", "decoder.prior_V", "decoder.trained.1.")) for name in names)
    assert not any("down_proj" in name for name in names)


def test_offline_wandb_run_holds_config_curves_and_summary(smoke):
    (run_file,) = (smoke[0] / "wandb").glob("offline-run-*/*.wandb")
    wandb = Path(sys.executable).parent / "wandb"
    records = subprocess.run([wandb, "leet", "inspect", "--json", run_file], capture_output=True, text=True, check=True).stdout
    summary = json.loads(
        subprocess.run([wandb, "leet", "inspect", "--summary", "--json", run_file], capture_output=True, text=True, check=True).stdout
    )
    assert '"val/new/exact_match"' in records or "val/new/exact_match" in records
    assert summary["config"]["edits"]["ridge"] == result_of_folder(smoke[0])["config"]["edits"]["ridge"]
    found = summary["summary"]
    assert found["test/ood/exact_match"] == result_of_folder(smoke[0])["test"]["ood"]["exact_match"]["value"]
    assert "stopping_reason" in found
    back = result_of(summary["config"], found, "finished")
    there, here = (run_rows({"run": result})[0] for result in (back, result_of_folder(smoke[0])))
    # A run is timed when all is done, W&B's part too.
    assert {key for key in here if here[key] != there[key]} == {"seconds_fit", "seconds_test", "seconds_total"}
    history = [json.loads(line)["history"]["item"] for line in records.splitlines() if json.loads(line)["type"] == "history"]
    assert [row[CHOSEN_BY] for row in history if CHOSEN_BY in row] == [here["validation"]], "what a sweep is steered by"
    curves = read_history(smoke[0] / "metrics.csv")
    logged = [row for row in history if {"epoch", *LEARNT} <= set(row)]
    assert {name: [row[name] for row in logged] for name in LEARNT} == {name: pytest.approx(list(curves[name].values())) for name in LEARNT}


def test_evaluate_gives_the_same_numbers(smoke, command):
    done = command("evaluate.py", f"decoder={smoke[0] / 'decoder'}", "json=true")
    assert done.returncode == 0 and not done.stderr, done.stderr
    scored, trained = json.loads(done.stdout)["test"], result_of_folder(smoke[0])["test"]
    for split in ("id", "ood", "unseen_object"):
        assert scored[split]["exact_match"] == trained[split]["exact_match"]
        assert scored[split]["first_token"] == trained[split]["first_token"]


def test_evaluate_reads_one_matrix(smoke, command, cache, tmp_path):
    predictions = pd.read_parquet(smoke[0] / "predictions.parquet")
    edit = predictions[predictions["split"] == "id"].iloc[0]
    (store,) = (cache / "stores").glob("pocket-rome-e1-*")
    from data.store.store import EditStore

    stored = EditStore(store)
    row = stored.table()["edit_id"].tolist().index(edit["edit_id"])
    edited = applied(stored.edits(torch.tensor([row])), host_weight(cache)).weight_BDF[0]
    save_file({"w": edited.contiguous()}, tmp_path / "suspect.safetensors")
    done = command("evaluate.py", f"decoder={smoke[0] / 'decoder'}", f"suspect={tmp_path / 'suspect.safetensors'}", "json=true")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["objects"][0]["text"] == edit["predicted"]
    assert abs(answer["objects"][0]["probability"] - edit["probability"]) < 1e-4
    assert {"decoder", "host", "layer", "suspect", "null_percentile", "edit_percentile"} <= set(answer)


def test_a_clean_matrix_is_remarked_on(smoke, command, cache, tmp_path):
    save_file({"w": host_weight(cache).contiguous()}, tmp_path / "clean.safetensors")
    done = command("evaluate.py", f"decoder={smoke[0] / 'decoder'}", f"suspect={tmp_path / 'clean.safetensors'}")
    assert done.returncode == 0 and "assumes one edit" in done.stdout


def test_bad_suspects_are_one_line(smoke, cache, tmp_path):
    torch.save({"w": torch.zeros(128, 384)}, tmp_path / "pickle.safetensors")
    save_file({"w": torch.zeros(384, 128)}, tmp_path / "transposed.safetensors")
    save_file({"w": torch.full((128, 384), torch.nan)}, tmp_path / "nan.safetensors")
    for name, part in (("pickle", "safetensors"), ("transposed", "(384, 128)"), ("nan", "NaN"), ("absent", "no such file")):
        argv = [f"decoder={smoke[0] / 'decoder'}", f"suspect={tmp_path / name}.safetensors", f"cache_dir={cache}"]
        done = ended(tmp_path, evaluate.main, argv)
        assert done.returncode == 2 and part in done.stderr
        assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr


def test_resume_of_a_finished_fit_gives_the_same_scores_also_where_wandb_fails(smoke, command):
    folder, _ = smoke
    before = result_of_folder(folder)
    # The key is no key, so W&B refuses before it asks anybody.
    done = command("train.py", "experiment=smoke", f"runs={folder.parents[2]}", "resume=true", "wandb.mode=online")
    assert done.returncode == 0, done.stderr
    after = result_of_folder(folder)
    assert after["test"] == before["test"] and "wandb" not in before
    assert after["wandb"] in done.stdout and "the run goes on without it" in done.stdout


def test_produce_is_a_command_of_its_own(smoke, command):
    done = command("data.produce", "experiment=smoke")
    assert done.returncode == 0, done.stderr
    assert "successful" in done.stdout


def test_a_folder_of_decoders_is_used_by_the_one_that_fits(smoke, command, cache, tmp_path):
    collected = tmp_path / "decoders"
    line = [sys.executable, "-m", "decoder.export", str(smoke[0]), f"to={collected}"]
    assert subprocess.run(line, capture_output=True, text=True, check=True).stdout.endswith("index.json\n")
    save_file({"model.layers.1.mlp.down_proj.weight": host_weight(cache).contiguous()}, tmp_path / "suspect.safetensors")
    options = (f"suspect={tmp_path / 'suspect.safetensors'}", "json=true")
    alone = json.loads(command("evaluate.py", f"decoder={smoke[0] / 'decoder'}", *options).stdout)
    done = command("evaluate.py", f"decoder={collected}", *options)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["objects"] == alone["objects"] and answer["decoder"] == str(collected / "pocket-e1")
    assert "its matrix is model.layers.1.mlp.down_proj" in answer["chosen"] and "chosen" not in alone
    refused = command("evaluate.py", f"decoder={collected}", "layer=3", *options)
    assert refused.returncode == 2 and "no decoder fits layer=3" in refused.stderr and refused.stderr.count("\n") == 1
