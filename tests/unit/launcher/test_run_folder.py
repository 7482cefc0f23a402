"""What happens around a run."""

import logging
import subprocess
import sys

import pytest
import torch
from places import ROOT

import train
from decoder.config import TrainConfig
from decoder.config.compose import compose
from decoder.training.trainer import NARROW, threads_for
from decoder.utils.errors import TERMINATED, UserError
from launcher.attempt import attempt
from launcher.grid import Run
from launcher.run_folder import held, start
from launcher.summary import Clock


@pytest.fixture
def two_threads(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_a_narrow_host_runs_on_one_thread_inside_the_block_only(two_threads, new_host):
    host = new_host("gpt2")
    assert host.hidden_size <= NARROW
    with pytest.raises(KeyError), threads_for(host):
        assert torch.get_num_threads() == 1
        raise KeyError
    assert torch.get_num_threads() == 2


def test_a_wide_host_keeps_its_threads(two_threads, new_host, monkeypatch):
    host = new_host("gpt2")
    monkeypatch.setattr("decoder.training.trainer.NARROW", host.hidden_size - 1)
    with threads_for(host):
        assert torch.get_num_threads() == 2


def test_a_users_choice_is_left_alone(two_threads, new_host, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with threads_for(new_host("gpt2")):
        assert torch.get_num_threads() == 2


@pytest.fixture
def own_handlers():
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield
    for handler in set(root.handlers) - set(before):
        handler.close()
    root.handlers[:] = before
    root.setLevel(level)


def speak(run: Run) -> dict:
    """What a run says: its start, a log line and a stage."""
    start(run)
    logging.getLogger("decoder.swap").warning("a family falls back")
    with Clock()("host"):
        pass
    return {"status": "ok"}


@pytest.mark.parametrize("in_a_grid", [False, True])
def test_what_a_run_says_is_in_its_log_once_and_in_order(tmp_path, capsys, own_handlers, in_a_grid):
    argv = (f"runs={tmp_path}",)
    run = Run(compose(TrainConfig, "train", argv), argv)
    result = attempt(run, lambda run, workspace: speak(run), None) if in_a_grid else speak(run)
    assert result == {"status": "ok"}
    log, shown = (run.folder / "log.txt").read_text(), capsys.readouterr().out
    for said in ("Palimpsest: read rome edits", "Run folder:", "host: 0 s"):
        assert log.count(said) == 1 and shown.count(said) == (0 if in_a_grid else 1)
    assert log.index("Palimpsest") < log.index("a family falls back") < log.index("host: 0 s") and "\x1b" not in log


@pytest.mark.parametrize("in_a_grid", [False, True])
def test_the_log_of_a_run_that_breaks_ends_with_why(tmp_path, monkeypatch, own_handlers, in_a_grid):
    def breaks(*_):
        raise ValueError("training diverged:\n  lower optim.lr_layer")

    monkeypatch.setattr(train, "train", breaks)
    argv = (f"runs={tmp_path}",)
    run = Run(compose(TrainConfig, "train", argv), argv)
    for _ in range(2):  # what held the folder is gone too
        if in_a_grid:
            assert attempt(run, train.run, None)["status"] == "failed"
        else:
            with pytest.raises(ValueError, match="diverged"):
                train.run(run)
        *_, last = (run.folder / "log.txt").read_text(encoding="utf-8").splitlines()
        assert "ERROR" in last and last.endswith("training diverged: lower optim.lr_layer (PALIMPSEST_DEBUG=1 shows the traceback)")


@pytest.mark.parametrize(("ended", "said"), [(KeyboardInterrupt(), "interrupted"), (SystemExit(TERMINATED), "terminated")])
def test_the_log_of_a_run_that_is_ended_says_so_and_it_has_not_failed(tmp_path, monkeypatch, own_handlers, ended, said):
    def ends(*_):
        raise ended

    monkeypatch.setattr(train, "train", ends)
    argv = (f"runs={tmp_path}",)
    run = Run(compose(TrainConfig, "train", argv), argv)
    with pytest.raises(type(ended)):
        train.run(run)
    *_, last = (run.folder / "log.txt").read_text(encoding="utf-8").splitlines()
    assert last.endswith(said) and not (run.folder / "result.json").exists()


def test_a_finished_run_stays_where_the_trainer_refuses_the_settings_of_another(tmp_path, monkeypatch):
    def refuses(*_):
        raise ValueError("no such precision")

    monkeypatch.setattr("decoder.training.module.DecoderModule", lambda *_, **__: None)
    monkeypatch.setattr("decoder.training.trainer.build_trainer", refuses)
    (tmp_path / "decoder").mkdir()
    (tmp_path / "result.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="no such precision"):
        train.fit(compose(TrainConfig, "train", []), tmp_path, None, None)
    assert (tmp_path / "result.json").exists() and (tmp_path / "decoder").exists()


def test_a_run_folder_has_one_writer(tmp_path):
    with held(tmp_path / "run"):
        with pytest.raises(UserError, match="another process is doing this run.*variant=NAME") as refused, held(tmp_path / "run"):
            pass
        assert "\n" not in str(refused.value)
    with held(tmp_path / "run"), held(tmp_path / "other"):
        pass


def test_the_first_words_of_a_run_need_no_torch(tmp_path):
    code = "import sys; from launcher.grid import read_grid; from launcher.run_folder import start; "
    code += f"start(read_grid(['runs={tmp_path}']).runs[0])"
    code += "; print([name for name in ('torch', 'transformers', 'lightning') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "Palimpsest: read rome edits" in done.stdout and done.stdout.endswith("[]\n")
