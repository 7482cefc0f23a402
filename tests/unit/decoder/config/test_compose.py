"""The composer: precedence, values, --cfg, and one line for every bad input."""

import os
import subprocess
import sys

import pytest
from omegaconf import OmegaConf
from places import ROOT

import decoder.config.compose
from decoder.config import TrainConfig
from decoder.config.commands import EvaluateConfig
from decoder.config.compose import compose, to_dict, to_yaml
from decoder.utils.errors import UserError, run_command


def train(*argv):
    return compose(TrainConfig, "train", argv)


@pytest.fixture
def configs(tmp_path, monkeypatch):
    """A folder of configs whose files all set optim.epochs or host.seed, to see which one wins."""
    files = {
        "train.yaml": "defaults: [{host: a}, _self_, {experiment: main}]\noptim: {epochs: 11, patience: 12}\nhost: {name: own}\n",
        "host/a.yaml": "name: a\nseed: 1\nrevision: a\n",
        "host/b.yaml": "name: b\nseed: 2\n",
        "experiment/main.yaml": "",
        "experiment/big.yaml": "optim: {epochs: 21}\nseed: 5\nhost: {seed: 3}\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(decoder.config.compose, "_folder", lambda: tmp_path)
    return tmp_path


def test_later_wins(configs):
    cfg = train("experiment=big", "host=b", "seed=7")
    assert cfg.optim.clip == TrainConfig().optim.clip  # nobody set it
    assert cfg.host.revision is None  # set by host/a only, which was not chosen
    assert cfg.host.name == "own"  # the file's own value over the group file
    assert cfg.optim.patience == 12  # own value, left alone by the experiment
    assert (cfg.optim.epochs, cfg.host.seed) == (21, 3)  # the experiment over own values and over the group file
    assert (cfg.seed, cfg.experiment) == (7, "big")  # the command line over the experiment
    assert train().host.seed == 1
    assert train("host=b", "host.seed=9").host.seed == 9


def test_experiment_wins_without_self_and_wherever_it_stands(configs):
    (configs / "train.yaml").write_text("defaults: [{experiment: main}, {host: a}]\noptim: {epochs: 11}\nhost: {name: own}\n")
    cfg = train("experiment=big")
    assert (cfg.optim.epochs, cfg.host.seed, cfg.host.name) == (21, 3, "own")


def test_group_that_is_not_a_default_stays_below_the_file(configs):
    (configs / "train.yaml").write_text("host: {name: own}\n")
    assert train("host=b").host.name == "own"
    assert train("host=b").host.seed == 2


def test_self_first_lets_the_group_win(configs):
    (configs / "train.yaml").write_text("defaults: [_self_, {host: a}]\nhost: {name: own}\n")
    assert train().host.name == "a"


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("decoder.layer=[0,1]", [0, 1]),
        ("decoder.layer=3", 3),
        ("optim.clip=null", None),
        ("optim.lr_layer=2e-5", 2e-5),
        ("optim.betas=[0.8,0.9]", [0.8, 0.9]),
        ("wandb.tags=[a,b]", ["a", "b"]),
        ("edits.ridge=identity", "identity"),
        ("host.terminator=", None),
        ("host.path=a=b", "a=b"),
        ("host.revision=00123", "00123"),
        ("host.revision=12e4", "12e4"),
        ('host.terminator="null"', "null"),
        ("host.terminator=#", "#"),
        ("host.revision=${seed}", "0"),
        ("resume=True", True),
        ("trainer.devices=[3]", [3]),
        ("trainer.devices=2", 2),
        ("trainer.num_nodes=4", 4),
        ("trainer.strategy=ddp_find_unused_parameters_true", "ddp_find_unused_parameters_true"),
        ("resume=true", True),
        ("resume=null", None),
    ],
)
def test_values_arrive_as_typed(argument, expected):
    value = train(argument)
    for part in argument.partition("=")[0].split("."):
        value = getattr(value, part)
    assert value == expected and type(value) is type(expected)


@pytest.mark.parametrize(
    ("argument", "parts"),
    [
        ("decoder.lay=3", ["did you mean 'decoder.layer'"]),
        ("layer=3", ["decoder.layer", "edits.layer"]),
        ("decoder=3", ["group of settings", "decoder.layer=VALUE"]),
        ("nothing=3", ["--help"]),
        ("host=pocet", ["configs/host", "did you mean 'pocket'"]),
        ("host=", ["known: ", "pocket"]),
        ("experiment=papr", ["did you mean 'paper'", "smoke"]),
        ("optim.clip=abc", ["expected float|null"]),
        ("optim.betas=[a,b]", ["expected list of float"]),
        ("seed=1.5", ["expected int"]),
        ("seed=null", ["expected int"]),
        ("seed=true", ["expected int"]),
        ("resume=maybe", ["expected true|false"]),
        ("decoder.scope=promt", ["expected prompt|all"]),
        ("wandb.mode=off", ["expected online|offline|disabled"]),
        ("host.path=${nope}", ["nope"]),
        ("host.path=${", ["expected text|null"]),
        ("decoder.layer=[0", ["not readable"]),
        ("--decoder.layer=3", ["write decoder.layer=3"]),
        ("+decoder.layer=3", ["write decoder.layer=3"]),
        ("decoder.layer==3", ["write decoder.layer=3"]),
        ("decoder.layer", ["KEY=VALUE"]),
        ("=3", ["KEY=VALUE"]),
        ("", ["KEY=VALUE"]),
        ("--hlp", ["did you mean '--help'"]),
        ("--resolve", ["--cfg --resolve"]),
        ("decoder.layer=0,5", ["[0,1]"]),
        ("decoder.layer=[]", ["[0,1]"]),
        ("decoder.layer=[1,1]", ["[0,1]"]),
        ("decoder.layer=[0,a]", ["[0,1]"]),
        ("decoder.layer=-1", ["from 0 up"]),
        ("decoder.layer=1.0", ["[0,1]"]),
        ("decoder.layer={a: 1}", ["[0,1]"]),
        ("edits.ridge=identiy", ["`identity`"]),
        ("edits.ridge=true", ["`identity`"]),
        ("edits.ridge=-1", ["from 0 up"]),
        ("splits.ood_relations=-1", ["from 0 up"]),
        ("splits.held_out_objects=1.5", ["from 0 to 1"]),
        ("splits.test_subjects=0.95", ["less than 1"]),
        ("decoder.beams=0", ["from 1 up"]),
        ("decoder.prompt_length=0", ["from 1 up"]),
        ("data.form=dense", ["optim.recombined=0 optim.value_noise=0"]),
        ("edits.editor=ft", ["whole matrices", "optim.recombined=0 optim.value_noise=0"]),
        ("edits.threshold=0.02", ["no such setting"]),
        ("data.batch_size=0", ["from 1 up"]),
        ("edits.steps=0", ["from 1 up"]),
        ("optim.lr_layer=nan", ["from 0 up"]),
        ("optim.betas=[0.9]", ["two numbers"]),
        ("trainer.devices=0", ["[0,1]"]),
        ("trainer.devices=abc", ["[0,1]"]),
        ("trainer.accelerator=foo", ["cuda"]),
        ("trainer.devices=9999", ["cores, and every device is a process"]),
        ("trainer.num_nodes=0", ["from 1 up"]),
        ("trainer.strategy=fsdp", ["auto, ddp", "frozen host whole"]),
        ("trainer.strategy=ddp_spawn", ["auto, ddp"]),
        ("data.prefetch=0", ["from 1 up"]),
    ],
)
def test_bad_argument_is_one_line_and_exit_2(argument, parts, capsys):
    with pytest.raises(SystemExit) as stop:
        run_command(train)(argument)
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and out == ""
    assert "PALIMPSEST_DEBUG" not in err  # an error of ours, not a foreign ValueError
    assert err.count("\n") == 1 and all(part in err for part in [*parts, argument.partition("=")[0]])


def test_a_key_given_twice_names_both(capsys):
    with pytest.raises(UserError, match="seed=2: .*seed=1"):
        train("seed=1", "seed=2")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim: {epoch: 3}\n", "configs/experiment/big.yaml: optim.epoch=3: no such setting; did you mean 'optim.epochs'"),
        ("optim: {epochs: many}\n", "configs/experiment/big.yaml: optim.epochs=many: expected int"),
        ("host: {revision: 00123}\n", "configs/experiment/big.yaml: host.revision=83: expected text"),
        ("optim: 3\n", "configs/experiment/big.yaml: optim=3: optim is a group"),
        ("defaults: [x]\n", "configs/experiment/big.yaml: defaults=.*no such setting"),
        ("optim: {epochs: [\n", "experiment/big.yaml: not readable as YAML"),
        ("- 1\n", "experiment/big.yaml: expected keys"),
        ("seed: 1\nseed: 2\n", "experiment/big.yaml: not readable as YAML"),
    ],
)
def test_bad_file_is_named(configs, text, message):
    (configs / "experiment" / "big.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        train("experiment=big")


def test_bad_defaults_entry_is_named(configs):
    (configs / "train.yaml").write_text("defaults: [{hots: a}]\n")
    with pytest.raises(UserError, match="configs/train.yaml: defaults: .*hots"):
        train()


def answer(capsys, *argv):
    with pytest.raises(SystemExit) as stop:
        train(*argv)
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_cfg_prints_yaml_that_composes_to_the_same(capsys, configs):
    argv = ["seed=3", "host.revision='00123'", "wandb.name=1e-3", "wandb.group=${experiment}", "decoder.layer=[0,1]"]
    assert OmegaConf.create(answer(capsys, "--cfg", *argv))["wandb"]["name"] == "1e-3"
    assert "group: ${experiment}" in answer(capsys, "--cfg", *argv)
    resolved = answer(capsys, "--cfg", "--resolve", *argv)
    assert "group: main" in resolved
    (configs / "experiment" / "main.yaml").write_text(resolved)
    assert to_dict(train()) == to_dict(train(*argv))


def test_plain_values_only():
    cfg = train("decoder.layer=[0,1]", "wandb.group=${experiment}")
    assert type(cfg.decoder.layer) is list and type(to_dict(cfg)["optim"]["betas"]) is list
    assert to_dict(cfg)["wandb"]["group"] == "main"
    assert OmegaConf.to_container(OmegaConf.create(to_yaml(cfg))) == to_dict(cfg)


def test_configs_inside_the_package_come_first(tmp_path, monkeypatch):
    (tmp_path / "decoder" / "configs").mkdir(parents=True)
    (tmp_path / "configs").mkdir()
    monkeypatch.setattr(decoder.config.compose, "__file__", str(tmp_path / "decoder" / "config" / "compose.py"))
    assert decoder.config.compose._folder() == tmp_path / "decoder" / "configs"
    (tmp_path / "decoder" / "configs").rmdir()
    assert decoder.config.compose._folder() == tmp_path / "configs"
    (tmp_path / "configs").rmdir()
    with pytest.raises(UserError, match="install the package again"):
        decoder.config.compose._folder()


def test_torch_is_not_imported(tmp_path):
    code = "import sys; import decoder.config.compose as c; from decoder.config import TrainConfig as T; c.compose(T, 'train', [])"
    code += "; assert not {'torch', 'rich', 'transformers', 'lightning'} & set(sys.modules)"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, timeout=60).returncode == 0


@pytest.mark.parametrize("scoring", ["store=there", "precision=int8"])
def test_what_is_for_scoring_is_not_ignored_beside_a_suspect(scoring):
    with pytest.raises(UserError, match="leave out store= and precision="):
        compose(EvaluateConfig, "evaluate", ["decoder=d", "suspect=s.safetensors", scoring])
    assert compose(EvaluateConfig, "evaluate", ["decoder=d", scoring]).suspect is None
