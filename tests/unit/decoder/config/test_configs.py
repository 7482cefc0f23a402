"""Every shipped YAML composes, and the experiments hold what they promise."""

import dataclasses

import pytest
import yaml
from places import ROOT

from decoder.config import TrainConfig
from decoder.config.commands import EvaluateConfig
from decoder.config.compose import compose
from decoder.config.editors import EDITORS, SearchConfig
from decoder.config.options import settings
from decoder.utils.errors import UserError

CONFIGS = ROOT / "configs"
FILES = sorted(file for group in ("host", "edits", "launcher", "experiment") for file in CONFIGS.glob(f"{group}/*.yaml"))
BROUGHT_BY_HOSTS = {  # what a host's file changes: an experiment may want the default back
    f"{group}.{key}"
    for file in CONFIGS.glob("host/*.yaml")
    for group, brought in (yaml.safe_load(file.read_text()).get("also") or {}).items()
    for key in brought
}
CHOICES = [f"{file.parent.name}={file.stem}" for file in FILES]


def test_every_group_is_seen():
    assert {
        "host=pocket",
        "edits=rome",
        "experiment=main",
        "experiment=paper",
        "experiment=smoke",
        "experiment=layers",
        "launcher=slurm",
    } <= set(CHOICES)


@pytest.mark.parametrize("choice", CHOICES)
def test_choice_composes(choice):
    assert isinstance(compose(TrainConfig, "train", [choice]), TrainConfig)


def test_evaluate_composes():
    assert compose(EvaluateConfig, "evaluate", []) == EvaluateConfig()


def test_main_is_the_dataclass_defaults_on_the_pocket_host():
    defaults = TrainConfig()
    defaults.host.terminator = "."
    assert compose(TrainConfig, "train", []) == defaults


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_only_differences_are_written_down(file):
    body = yaml.safe_load(file.read_text()) or {}
    also = body.pop("also", {})
    written = {} if not body else (body if file.parent.name == "experiment" else {file.parent.name: body} | also)
    defaults = TrainConfig()
    for key, _ in settings(TrainConfig):
        found, default = written, defaults
        for part in key.split("."):
            found = found.get(part, ...) if isinstance(found, dict) else ...
            default = getattr(default, part)
        again = file.parent.name == "experiment" and key in BROUGHT_BY_HOSTS
        assert found is ... or found != default or again, f"{file.name}: {key} is the default already"


def test_paper_is_the_papers_recipe():
    cfg = compose(TrainConfig, "train", ["experiment=paper"])
    splits, decoder, optim = cfg.splits, cfg.decoder, cfg.optim
    assert (splits.train_relations, splits.val_relations, splits.ood_relations) == (20, 0, 11)
    assert dataclasses.asdict(splits.minimum) == {
        "train": 600, "val_id": 100, "val_new": 0, "id": 300, "ood": 320, "unseen_object": 0
    }  # fmt: skip
    assert (decoder.prompt_length, decoder.train_prompt, decoder.scope, decoder.target) == (5, False, "all", "first_token")
    assert (optim.lr_layer, optim.weight_decay, optim.betas, optim.schedule, optim.clip) == (2e-5, 0.01, [0.9, 0.98], "constant", None)
    assert (optim.epochs, optim.patience, cfg.data.batch_size, cfg.data.max_train) == (100, 3, 16, 600)
    assert splits.train_per_relation * splits.train_relations >= 600


@pytest.mark.parametrize(("experiment", "objects", "spelt"), [("main", "mixed", 60), ("quick", "mixed", 0), ("paper", "relation", 0)])
def test_paper_plants_what_the_paper_plants_and_quick_no_more_than_a_fifth(experiment, objects, spelt):
    cfg = compose(TrainConfig, "train", [f"experiment={experiment}", "host=smollm2-135m"])
    assert (cfg.edits.objects, cfg.splits.spelt_per_relation) == (objects, spelt)


@pytest.mark.parametrize("experiment", ["main", "paper", "quick", "smoke"])
def test_minima_can_be_reached(experiment):
    cfg = compose(TrainConfig, "train", [f"experiment={experiment}"])
    splits, minimum = cfg.splits, cfg.splits.minimum
    assert splits.train_per_relation * splits.train_relations >= minimum.train
    assert splits.val_per_relation * splits.train_relations >= minimum.val_id
    assert splits.id_per_relation * splits.train_relations >= minimum.id
    assert splits.unseen_per_relation * splits.train_relations >= minimum.unseen_object
    assert splits.other_per_relation * splits.val_relations >= minimum.val_new
    assert splits.other_per_relation * splits.ood_relations >= minimum.ood


def test_smoke_is_small_and_offline():
    cfg = compose(TrainConfig, "train", ["experiment=smoke"])
    assert (cfg.edits.steps, cfg.optim.epochs, cfg.wandb.mode) == (8, 2, "offline")
    assert max(cfg.splits.train_per_relation, cfg.splits.other_per_relation) <= 4


@pytest.mark.parametrize("editor", EDITORS)
def test_every_editor_has_settings_for_the_small_real_host(editor):
    edits = compose(TrainConfig, "train", ["host=smollm2-135m", f"edits={editor}"]).edits
    assert (edits.editor, edits.layers) == (editor, [8])
    if isinstance(edits, SearchConfig):
        assert (edits.steps, edits.lr, edits.clamp, edits.kl, edits.stop_loss) == (20, 1.0, 4, 0.0625, 0.15)


def test_fine_tuning_of_gpt_j_is_as_published():
    cfg = compose(TrainConfig, "train", ["host=gpt-j-6b", "edits=ft"])
    found = (cfg.edits.layer, cfg.decoder.layer, cfg.edits.loss, cfg.edits.steps, cfg.edits.lr)
    assert found == (21, 21, "last", 25, 5e-4)
    assert compose(TrainConfig, "train", ["host=gpt-j-6b", "edits=ft-l"]).edits.layer == 0


def test_an_editor_without_settings_for_a_host_names_the_nearest_that_has_some():
    with pytest.raises(UserError, match="edits=ft host=llama-3.2-1b: .*nearest by name is llama-3-8b .*configs/edits/ft.yaml") as refusal:
        compose(TrainConfig, "train", ["edits=ft", "host=llama-3.2-1b"])
    assert "\n" not in str(refusal.value)
    assert compose(TrainConfig, "train", ["edits=ft", "host=llama-3.2-1b", "edits.lr=1e-4"]).edits.lr == 1e-4
