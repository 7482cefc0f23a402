"""The help page: complete, aligned, and readable in a terminal as in a pipe."""

import dataclasses
import os
import pty
import re
import shlex
import subprocess
import sys
from operator import attrgetter

import pytest
from places import ROOT

from decoder.config import TrainConfig
from decoder.config.commands import EvaluateConfig, PerturbConfig, ProduceConfig, SequentialConfig, TraceConfig, TracingConfig
from decoder.config.compose import compose
from decoder.config.help import PAGES, READ, kind
from decoder.config.options import settings, typed
from decoder.utils.errors import UserError
from launcher.grid import read_grid

PROGRAMS = {name: program.split()[1:] for name, (_, program, _) in PAGES.items()}
HEAVY = {"torch", "transformers", "lightning", "datasets", "pandas", "scipy", "wandb", "ray"}


def answer(capsys, *argv, config_class=TrainConfig, name="train", page=None):
    with pytest.raises(SystemExit) as stop:
        compose(config_class, name, argv, page)
    assert stop.value.code == 0
    return capsys.readouterr().out


def leaves(value, prefix=""):
    for field in dataclasses.fields(value):
        below = getattr(value, field.name)
        if dataclasses.is_dataclass(below):
            yield from leaves(below, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", field


@pytest.mark.parametrize(("config_class", "name"), [(TrainConfig, "train"), (EvaluateConfig, "evaluate")])
def test_help_lists_every_key(config_class, name, capsys):
    page = answer(capsys, "--help", config_class=config_class, name=name)
    told = " ".join(page.split())
    for key, field in leaves(config_class()):
        assert re.search(rf" {re.escape(key)}=\S* {re.escape(kind(field))} {re.escape(field.metadata['help'])} ", told), key
    assert page.count(f"  python {name}.py ") == len(PAGES[name][2])


SHARING = {
    "produce": ProduceConfig,
    "keys": TrainConfig,
    "causal_trace": TraceConfig,
    "sequential": SequentialConfig,
    "tracing": TracingConfig,
}


@pytest.mark.parametrize("name", READ)
def test_a_command_lists_what_it_reads_of_the_settings_of_training(name, capsys):
    page = answer(capsys, "--help", config_class=SHARING[name], page=name)
    keys = set(re.findall(r"(?m)^  ([a-z_.]+)=", page.partition("\nSettings")[2]))
    own = {key for key, _ in settings(SHARING[name])} - {key for key, _ in settings(TrainConfig)}
    assert own | {"host.name", "facts.source", "cache_dir"} <= keys
    assert not {key.partition(".")[0] for key in keys} & {"decoder", "optim", "data", "wandb", "resume", "variant"}
    assert "experiment=" in page and ("  edits=" in page) == (name in ("produce", "sequential"))
    assert ("launcher" in page) == (name == "produce")


def test_help_names_groups_types_and_defaults(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    page = answer(capsys, "-h", "--nonsense")
    assert (
        "edited-layers, layers, main, paper, quick, sequential, smoke" in " ".join(page.split())
        and "optim.betas=[0.9,0.98]" in page
        and "factors|dense" in page
    )
    columns = {len(found.group()) for found in re.finditer(r"(?m)^  [a-z_.]+=\S* +(?=int )", page)}
    texts = {len(found.group()) for found in re.finditer(r"(?m)^  [a-z_.]+=\S* +(?:int|text) +", page)}
    assert len(columns) == len(texts) == 1


@pytest.mark.parametrize("width", ["80", "100", None])
@pytest.mark.parametrize(
    ("config_class", "name", "page"),
    [(TrainConfig, "train", None), (TrainConfig, "train", "keys"), (EvaluateConfig, "evaluate", None), (PerturbConfig, "perturb", None)],
)
def test_no_line_is_wider_than_the_terminal(config_class, name, page, width, capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    if width:
        monkeypatch.setenv("COLUMNS", width)
    shown = answer(capsys, "--help", config_class=config_class, name=name, page=page)
    assert max(map(len, shown.splitlines())) <= int(width or 120)


def test_an_example_too_long_for_a_line_can_still_be_pasted(capsys):
    page = answer(capsys, "--help", page="keys")
    pasted = shlex.split(page.partition("\nExamples\n")[2].replace("\\\n", ""))
    assert pasted == [word for example in PAGES["keys"][2] for word in [*shlex.split(PAGES["keys"][1]), *shlex.split(example)]]


def defaults(page):
    return dict(re.findall(r"(?m)^  ([a-z_.]+)=(\S*)", page))


def test_the_defaults_are_those_of_the_rest_of_the_command_line(capsys):
    argv = ["host=smollm2-135m", "edits=memit", "experiment=quick", "optim.epochs=3", "splits.minimum.val/id=7"]
    shown = defaults(answer(capsys, *argv, "--help"))
    composed = compose(TrainConfig, "train", argv)
    for key, _ in settings(composed):
        assert shown[key] == typed(attrgetter(key)(composed)).partition(" ")[0], key
    assert shown["host.name"] == "smollm2-135m" and shown["edits.layer"] != "1" and shown["optim.epochs"] == "3"
    assert defaults(answer(capsys, *argv, "--help", config_class=ProduceConfig, page="produce"))["splits.train_per_relation"] == "11"
    shown = defaults(answer(capsys, "device=cuda", "--help", config_class=EvaluateConfig, name="evaluate"))
    assert shown["device"] == "cuda" and shown["top"] == "4"
    with pytest.raises(UserError, match="host=smolm: no such file in configs/host; did you mean 'smollm2-135m'"):
        compose(TrainConfig, "train", ["host=smolm", "--help"])
    with pytest.raises(SystemExit):
        read_grid(["-m", "host=smollm2-135m", "seed=0,1", "--help"])
    assert defaults(capsys.readouterr().out)["host.name"] == "smollm2-135m"


def test_help_in_a_terminal_keeps_brackets_and_keys(tmp_path):
    leader, follower = pty.openpty()
    code = "from decoder.config.compose import compose; from decoder.config import TrainConfig as T; compose(T, 'train', ['--help'])"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "140"}
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=env, stdout=follower) as process:
        os.close(follower)
        page = b""
        while chunk := _read(leader):
            page += chunk
    os.close(leader)
    assert (
        process.returncode == 0
        and b"\x1b[" in page
        and b"optim.betas=[0.9,0.98]" in page
        and b"several as [0,1]" in b" ".join(page.split())
    )


def _read(descriptor):
    try:
        return os.read(descriptor, 4096)
    except OSError:  # Linux reports the other end's close as an error
        return b""


@pytest.mark.parametrize(("config_class", "name"), [(TrainConfig, "train"), (EvaluateConfig, "evaluate")])
def test_examples_compose(config_class, name):
    for example in PAGES[name][2]:
        words = [word for word in shlex.split(example) if word != "--cfg"]
        assert read_grid(words).runs if name == "train" else compose(config_class, name, words)


def test_every_command_has_a_page():
    files = [file for place in ("*.py", "data/**/*.py", "decoder/**/*.py") for file in ROOT.glob(place)]
    commands = {str(file.relative_to(ROOT)) for file in files if "\n@run_command\n" in file.read_text(encoding="utf-8")}
    assert commands == {words[0] if len(words) == 1 else f"{words[1].replace('.', '/')}/__main__.py" for words in PROGRAMS.values()}


ANSWERS = [("--help", 0, "Usage: "), ("nonsense=1", 2, "error: nonsense=1: no such setting")]
MISTAKES = [
    ("produce", "shard=4/3", "PART/PARTS"),
    ("import_edits", "edited=a", "facts= is missing"),
    ("evaluate", "decoder=absent", "no decoder"),
    ("perturb", "kind=prune", "out= is missing"),
    ("relations", "out=a", "store= and out= are both needed"),
    ("gate", "out=a", "decoder=, stores= and out= are all needed"),
    ("evaluate", "gate=a", "a gate chooses among several decoders"),
]


@pytest.mark.parametrize(
    ("name", "argument", "code", "said"),
    [(name, *answer) for name in PROGRAMS for answer in ANSWERS] + [(name, argument, 2, said) for name, argument, said in MISTAKES],
)
def test_a_command_line_is_answered_before_anything_heavy_is_imported(name, argument, code, said):
    line = [sys.executable, "-X", "importtime", *PROGRAMS[name], argument]
    done = subprocess.run(line, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60)
    imported = set(re.findall(r"(?m)^import time: .*\| +(\w+)", done.stderr))
    assert done.returncode == code and said in done.stdout + done.stderr and "omegaconf" in imported
    assert not HEAVY & imported
