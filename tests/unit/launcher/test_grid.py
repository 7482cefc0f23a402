"""One command line that stands for many runs, without a single run: expansion, folders, what counts as finished, SLURM, workers."""

import os
import subprocess
import sys

import pytest
from fabricated_runs import finished_run
from places import ROOT

from decoder.config import TrainConfig
from decoder.config.compose import compose, to_dict
from decoder.config.grids import values
from decoder.config.identity import with_effect
from decoder.utils.errors import UserError
from launcher.grid import read_grid, refuse_to_replace
from launcher.launch import launch


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1", ["1"]),
        ("0,1,2", ["0", "1", "2"]),
        ("range(3)", ["0", "1", "2"]),
        ("range(0,48,16)", ["0", "16", "32"]),
        ("range( 3, 0, -1 )", ["3", "2", "1"]),
        ("range(0,2),7", ["0", "1", "7"]),
        ("[0,1],2", ["[0,1]", "2"]),
        ("[0,1]", ["[0,1]"]),
        ("'a,b',c", ["'a,b'", "c"]),
        ("rangefinder,range", ["rangefinder", "range"]),
    ],
)
def test_values(text, expected):
    assert values(text) == expected


@pytest.mark.parametrize("text", ["range(3,0)", "range(0,4,0)", "range(a,b)", "range(0,4", "range()"])
def test_a_range_without_members_is_refused(text):
    with pytest.raises(UserError, match="decoder.layer=.*range\\(0,48,4\\)"):
        values(text, "decoder.layer")


def test_grid_is_the_product_and_each_run_has_its_command():
    grid = read_grid(["-m", "decoder.layer=0,1", "seed=range(0,3)", "optim.epochs=3"])
    assert not grid.is_one_run and list(grid.axes) == ["decoder.layer", "seed"]
    assert [(run.config.decoder.layer, run.config.seed) for run in grid.runs] == [(t, s) for t in (0, 1) for s in (0, 1, 2)]
    for run in grid.runs:
        alone = read_grid(run.argv)
        assert alone.is_one_run and to_dict(alone.runs[0].config) == to_dict(run.config) and run.config.optim.epochs == 3


def test_runs_on_the_same_edits_are_neighbours():
    edited = [run.config.edits.layer for run in read_grid(["-m", "seed=0,1", "edits.layer=2,0", "decoder.layer=0,1"]).runs]
    assert edited == [2, 2, 2, 2, 0, 0, 0, 0]


def test_one_run_is_no_grid():
    assert read_grid(["seed=1"]).is_one_run and read_grid([]).is_one_run
    assert read_grid(["decoder.layer=[0,1]"]).runs[0].config.decoder.layer == [0, 1]
    with pytest.raises(UserError, match="-m in front"):
        read_grid(["decoder.layer=0,1"])


def test_layers_is_a_grid_without_m_and_gives_way_to_the_command_line():
    grid = read_grid(["experiment=layers"])
    layers = TrainConfig().host.pocket.layers
    assert len(grid.runs) == 3 * layers and {run.config.decoder.layer for run in grid.runs} == set(range(layers))
    assert all(run.folder.parts[:3] == ("runs", "layers", "pocket") and run.config.grid == {} for run in grid.runs)
    assert len(read_grid(["experiment=layers", "seed=0"]).runs) == layers
    argv = ["-m", "experiment=layers", "decoder.layer=range(0,48,4)", "edits.layer=0,1", "host.pocket.layers=48"]
    assert len(read_grid(argv).runs) == 12 * 3 * 2
    assert read_grid(["experiment=layers", "seed=0", "decoder.layer=1"]).is_one_run


def test_settings_that_no_folder_shows_are_named_in_it():
    grid = read_grid(["-m", "optim.lr_layer=1e-4,2e-4", "seed=0,1"])
    assert len({run.folder for run in grid.runs}) == 4
    assert grid.runs[0].folder.name == "rome-e1-t1-s0-lr_layer=0.0001"
    assert read_grid(grid.runs[0].argv).runs[0].folder == grid.runs[0].folder
    long = read_grid(["-m", *(f"edits.{key}=0.1,0.2" for key in ("lr", "decay", "kl", "stop_loss", "clamp", "ridge"))])
    assert len({run.folder for run in long.runs}) == 64 and max(len(run.folder.name) for run in long.runs) < 100


@pytest.mark.parametrize(
    ("setting", "ends"),
    [
        ("optim.lr_layer=5e-3,1e-3", ["", "-lr_layer=0.001"]),
        ("optim.lr_layer=0.0050,0.0010", ["", "-lr_layer=0.001"]),
        ("edits.lr=1,2", ["-edits.lr=1", "-edits.lr=2"]),
        ("splits.seed=0,1", ["", "-splits.seed=1"]),
    ],
)
def test_a_setting_has_one_name_however_it_is_typed_and_none_where_it_is_the_configs_own(setting, ends):
    assert [run.folder.name for run in read_grid(["-m", setting]).runs] == [f"rome-e1-t1-s0{end}" for end in ends]


def test_the_configs_own_is_that_of_the_chosen_host():
    names = [run.folder.name for run in read_grid(["-m", "host=pocket,gpt2-xl", "edits.steps=20,21"]).runs]
    own = {name: read_grid([f"host={name}"]).runs[0].config.edits.steps for name in ("pocket", "gpt2-xl")}
    assert sum("steps" not in name for name in names) == sum(steps in (20, 21) for steps in own.values())


def test_a_grid_does_not_replace_finished_runs_of_other_settings(tmp_path, capsys):
    run = finished_run(tmp_path, "seed=1", "optim.epochs=7")
    argv = [f"runs={tmp_path}", "seed=0,1"]
    for launcher in ("local", "slurm"):
        with pytest.raises(
            UserError, match="rome-e1-t1-s1 holds .*other settings: optim.epochs: 7 there, optim.epochs: 8 now.*resume=false"
        ) as refused:
            launch(read_grid(["-m", *argv, "optim.epochs=8", f"launcher={launcher}"]), lambda *_: 1 / 0, ROOT)
        assert "\n" not in str(refused.value) and capsys.readouterr().out == ""
    refuse_to_replace(read_grid(["-m", *argv, "optim.epochs=8", "resume=false"]).runs)
    refuse_to_replace(read_grid(["-m", *argv, "optim.epochs=8", "variant=eight"]).runs)
    refuse_to_replace(read_grid(["-m", *argv, "optim.epochs=7"]).runs)
    assert run.would_replace() is None


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["-m", "seed=0,0"], "two runs of the grid would write to .*rome-e1-t1-s0.*Drop one"),
        (["-m", "optim.epochs=1,2", "variant=mine"], "two runs"),
        (["-m", "optim.lr_layer=1e-3,0.001"], "two runs of the grid would write to .*lr_layer=1e-3.*lr_layer=0.001"),
        (["-m", "wandb.mode=offline,disabled"], "two runs of the grid would be the same"),
        (["-m", "seed=1", "seed=2,3"], "seed came twice; several values of a setting are written seed=A,B"),
        (["-m", "seed=range(0,999999999999)"], "999999999999 values, a grid has at most 10000 runs"),
        (["-m", "seed=range(0,999)", "host.seed=range(0,999)"], "998001 runs .seed, host.seed., expected at most 10000"),
        (["-m", "seed=0,1", "variant=../x"], "variant=../x: .*without slashes"),
        (["-m", "decoder.layr=0,1"], "did you mean 'decoder.layer'"),
        (["-m", "seed=0,x"], "seed=x: expected int"),
        (["-m", "experiment=layers,smoke"], "experiment=layers,smoke: layers has a grid of its own; give one experiment"),
        (["-m", "experiment=smoke,layers"], "experiment=smoke,layers: layers has a grid of its own; give one experiment"),
        (["-m", "experiment=sequential,smoke"], "sequential has a grid of its own"),
        (["-m", "experiment=smoke,sequential"], "sequential has a grid of its own"),
        (["seed=0,1"], "expected int"),
    ],
)
def test_bad_grids_are_one_line(argv, message):
    with pytest.raises(UserError, match=message):
        read_grid(argv)


def test_finished_is_a_result_of_the_same_settings(tmp_path):
    run = finished_run(tmp_path, "seed=3")
    assert run.finished()
    for same in ("wandb.mode=disabled", "launcher.jobs=2", "trainer.progress=none", "resume=true"):
        assert read_grid([f"runs={tmp_path}", "seed=3", same]).runs[0].finished()
    for other in ("optim.epochs=2", "edits.ridge=0", "trainer.precision=bf16-mixed"):
        assert not read_grid([f"runs={tmp_path}", "seed=3", other]).runs[0].finished()
    for damaged in ("{", '{"schema": 1, "status": "ok"}', '{"schema": 1, "status": "ok", "config": null}', "[]"):
        (run.folder / "result.json").write_text(damaged)
        assert not run.finished()


def test_a_failed_run_is_not_finished(tmp_path):
    assert not finished_run(tmp_path, "seed=4", status="failed").finished()


def test_results_of_before_a_setting_without_effect_existed_still_count(tmp_path):
    config = to_dict(compose(TrainConfig, "train", []))
    older = {key: value for key, value in config.items() if key not in ("launcher", "grid", "variant")}
    assert with_effect(older) == with_effect(config)


def test_nothing_heavy_is_imported_when_all_runs_are_finished(tmp_path):
    for seed in (0, 1):
        finished_run(tmp_path, f"seed={seed}", status="ok")
    code = f"import sys, train; train.main(['-m', 'seed=0,1', 'runs={tmp_path}'])"
    code += "; print([m for m in ('torch', 'pandas', 'lightning', 'wandb', 'matplotlib') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.stdout.splitlines()[-1] == "[]" and "Nothing to run" in done.stdout, done.stderr
