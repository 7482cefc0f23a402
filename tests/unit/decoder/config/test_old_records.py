"""Results of every version stay valid: old names, settings that came later, settings that went.

`recorded_settings.json` holds the config of a run and the manifest of its store as 0.1.0 wrote them.
"""

import copy
import dataclasses
import json

import pytest
import torch
import yaml
from exported_runs import write_run
from fabricated_runs import finished_run, result
from places import ROOT

import decoder.config.compose
import decoder.config.identity
import launcher.grid
import launcher.variant
from data.hosts import pocket_fingerprint
from data.store.disagreement import disagreement
from decoder.config import HostConfig, OptimConfig, PocketConfig, RomeConfig, SplitsConfig, TrainConfig
from decoder.config.compose import compose, to_dict
from decoder.config.editors import EDITORS, own_settings
from decoder.config.identity import as_today, difference, with_effect
from decoder.config.options import group, option, settings
from decoder.config.schema import RENAMED
from decoder.export.best import best_runs
from decoder.report.layer_curves import differences, layer_curves, run_rows
from decoder.report.results import find_runs
from decoder.training.trainer import checkpoint_to_go_on_from
from decoder.utils.errors import UserError
from launcher.grid import read_grid

RECORDED = json.loads((ROOT / "tests/unit/helpers/recorded_settings.json").read_text())


READ_IN_PLACE = "decoder.rekeyed=false"  # as everything was, before there was such a setting


@pytest.fixture
def recorded():
    return copy.deepcopy(RECORDED["config"])


def grown(config_class, **groups):
    """The class with a setting more, and groups that have one more."""
    new = [("novelty", float, option(1, "of a later version"))] if not groups else []
    return dataclasses.make_dataclass(
        config_class.__name__, new + [(name, kind, group(kind)) for name, kind in groups.items()], bases=(config_class,)
    )


@pytest.fixture
def later(monkeypatch):
    """The settings of a later version: one more for training, one for the splits, one for the pocket host and one for ROME."""
    host = grown(HostConfig, pocket=grown(PocketConfig))
    rome = grown(RomeConfig)
    config = grown(TrainConfig, host=host, splits=grown(SplitsConfig), optim=grown(OptimConfig), edits=rome)
    for module in (decoder.config.identity, launcher.grid):
        monkeypatch.setattr(module, "TrainConfig", config)
    for name in ("rome", "r-rome", "p-rome"):
        monkeypatch.setitem(EDITORS, name, rome)
    return config


NEW = ("optim.novelty", "splits.novelty", "host.pocket.novelty", "edits.novelty")


def test_a_recorded_config_is_that_of_the_same_command(recorded):
    assert not set(RENAMED) & as_today(recorded).keys() and len([key for key in RENAMED if key.partition(".")[2] in str(recorded)]) == 11
    assert difference(with_effect(recorded), with_effect(to_dict(compose(TrainConfig, "train", [READ_IN_PLACE])))) is None


def test_a_record_of_edits_read_in_place_is_not_of_todays_default(recorded):
    now = with_effect(to_dict(compose(TrainConfig, "train", [])))
    assert difference(with_effect(recorded), now) == ("decoder.rekeyed: False", "decoder.rekeyed: True")


@pytest.mark.parametrize("key", RENAMED)
def test_a_value_under_an_old_name_counts_under_its_new_one(recorded, key):
    section, _, name = key.partition(".")
    recorded[section][name] += 1
    old, new = difference(with_effect(recorded), with_effect(to_dict(compose(TrainConfig, "train", []))))
    assert old.startswith(f"{RENAMED[key]}: ") and new.startswith(f"{RENAMED[key]}: ")


def test_what_is_gone_counts_for_nothing(recorded):
    recorded["optim"]["gone"] = recorded["gone"] = 3
    now = with_effect(to_dict(compose(TrainConfig, "train", [READ_IN_PLACE])))
    assert difference(with_effect(recorded), now) is None
    assert differences([recorded, to_dict(TrainConfig())]).keys() <= {"host.terminator", "decoder.rekeyed"}


def test_a_path_from_the_home_folder_is_the_same_place(recorded, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    recorded["store"] = "~/edits"
    assert difference(with_effect(recorded), with_effect(to_dict(compose(TrainConfig, "train", ["store=~/edits", READ_IN_PLACE])))) is None


@pytest.mark.parametrize("key", RENAMED)
@pytest.mark.parametrize("program", ["train", "produce"])
def test_an_old_key_names_the_new_one(key, program):
    with pytest.raises(UserError, match=f"^{key}=3: this setting is {RENAMED[key]} now$"):
        compose(TrainConfig, "train", [f"{key}=3"], page=program)
    assert RENAMED[key] in dict(settings(TrainConfig))


def test_an_old_config_file_is_refused_with_all_its_old_keys(recorded, tmp_path, monkeypatch):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "train.yaml").write_text("")
    (tmp_path / "experiment" / "old.yaml").write_text(yaml.safe_dump(recorded))
    monkeypatch.setattr(decoder.config.compose, "_folder", lambda: tmp_path)
    with pytest.raises(UserError) as refused:
        compose(TrainConfig, "train", ["experiment=old"])
    assert all(f"configs/experiment/old.yaml: {key}=" in str(refused.value) and new in str(refused.value) for key, new in RENAMED.items())
    for old, new in RENAMED.items():
        value = recorded[old.partition(".")[0]].pop(old.partition(".")[2])
        place = recorded["splits"].setdefault("minimum", {}) if "minimum" in new else recorded["splits"]
        place[new.rpartition(".")[2]] = value
    (tmp_path / "experiment" / "old.yaml").write_text(yaml.safe_dump(recorded))
    assert compose(TrainConfig, "train", ["experiment=old"]).splits == SplitsConfig()


def test_minima_are_a_table(tmp_path):
    for key in ("splits.minimum.val_id", "splits.minimum.val/id"):
        assert compose(TrainConfig, "train", [f"{key}=7"]).splits.minimum.val_id == 7
    with pytest.raises(UserError, match="splits.minimum.val_i=7: .*did you mean 'splits.minimum.val_id'"):
        compose(TrainConfig, "train", ["splits.minimum.val/i=7"])
    folders = [run.folder.name for run in read_grid(["-m", "splits.minimum.val/id=3,100", f"runs={tmp_path}"]).runs]
    assert folders == ["rome-e1-t1-s0-val_id=3", "rome-e1-t1-s0"]


# A setting that comes later


def test_finished_runs_stay_finished(tmp_path, recorded, request):
    run = finished_run(tmp_path, "seed=0")
    path = run.folder / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"config": recorded}))
    request.getfixturevalue("later")
    (now,) = read_grid([f"runs={tmp_path}", READ_IN_PLACE]).runs
    assert now.config.optim.novelty == 1.0 and now.finished() and now.would_replace() is None
    for key in NEW:
        (other,) = read_grid([f"runs={tmp_path}", READ_IN_PLACE, f"{key}=2"]).runs
        assert not other.finished() and other.would_replace() == (f"{key}: 1.0", f"{key}: 2.0")


def test_a_folder_keeps_its_name(tmp_path, monkeypatch):
    argv = ["-m", "optim.lr_layer=1e-3,2e-3", "splits.minimum.ood=1,2", f"runs={tmp_path}"]
    first = read_grid(argv).runs[0]
    old = first.folder.with_name("rome-e1-t1-s0-lr_layer=0.001-min_ood=1")
    old.mkdir(parents=True)
    assert first.folder.name.endswith("-lr_layer=0.001-ood=1") and read_grid(argv).runs[0].folder == old
    monkeypatch.setitem(launcher.variant.TRAIN_KEYS, "later.lr_layer", None)
    again = [run.folder for run in read_grid(argv).runs]
    assert again[0] == old and old.with_name("rome-e1-t1-s0-optim.lr_layer=0.001-ood=2") in again


def test_old_and_new_runs_are_one_series(recorded, later):
    old, new = (
        result(1, 1, 0) | {"config": recorded},
        result(1, 1, 1) | {"config": to_dict(compose(later, "train", ["seed=1", READ_IN_PLACE]))},
    )
    rows = run_rows({"old": old, "new": new})
    assert len(layer_curves(rows)) == 1 and {row["setting"] for row in rows} == {""}
    other = result(1, 1, 1) | {"config": to_dict(compose(later, "train", ["seed=1", READ_IN_PLACE, "optim.novelty=2"]))}
    assert {row["setting"] for row in run_rows({"old": old, "other": other})} == {"optim.novelty=1.0", "optim.novelty=2.0"}


def test_old_and_new_runs_compete_for_export(host_of, recorded, later, tmp_path):
    edits = {name: recorded[name] for name in ("facts", "keys", "edits", "splits")}
    write_run(tmp_path, host_of("llama"), 1, 0, 0, 0.5, **edits)
    now = to_dict(compose(later, "train", []))
    write_run(tmp_path / "new", host_of("llama"), 1, 0, 1, 0.6, **{name: now[name] for name in edits})
    assert [one.run.parent.parent.name for one in best_runs(find_runs([tmp_path]))] == ["new"]
    now["edits"]["novelty"] = 2.0
    write_run(tmp_path / "other", host_of("llama"), 1, 0, 2, 0.7, **{name: now[name] for name in edits})
    with pytest.raises(UserError, match="edits.novelty: 1.0 in the first, edits.novelty: 2.0"):
        best_runs(find_runs([tmp_path]))


def test_a_killed_run_goes_on(recorded, later, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    torch.save({"hyper_parameters": recorded, "epoch": 3}, tmp_path / "checkpoints" / "last.ckpt")
    assert checkpoint_to_go_on_from(compose(later, "train", [READ_IN_PLACE]), tmp_path) == tmp_path / "checkpoints" / "last.ckpt"
    assert checkpoint_to_go_on_from(compose(later, "train", [READ_IN_PLACE, "optim.novelty=2"]), tmp_path) is None


def asked(config_class, *argv):
    """What today's editor asks of a store that is else as the recorded one."""
    edits = compose(config_class, "train", argv).edits
    return RECORDED["manifest"] | {
        "editor": {"name": edits.editor, "settings": {field.name: getattr(edits, field.name) for field in own_settings(edits)}}
    }


def test_a_recorded_store_is_what_is_asked(later):
    assert {"train_per_relation", "key_tokens", "seed"} <= RECORDED["manifest"]["editor"]["settings"].keys()
    assert not disagreement(RECORDED["manifest"], asked(TrainConfig)) and not disagreement(RECORDED["manifest"], asked(later))
    told = disagreement(RECORDED["manifest"], asked(later, "edits.kl=1", "edits.precision=bf16", "edits.novelty=2"))
    assert told == ["edits.kl=8.0 (here 1.0)", "edits.precision=float32 (here bf16)", "edits.novelty=1.0 (here 2.0)"]


def test_the_pocket_host_stays(later):
    assert pocket_fingerprint(HostConfig(), "ab") == "abd9aa5c46eb"
    now = compose(later, "train", []).host
    assert pocket_fingerprint(now, "ab") == pocket_fingerprint(HostConfig(), "ab")
    now.pocket.steps += 1
    assert pocket_fingerprint(now, "ab") != pocket_fingerprint(HostConfig(), "ab")
