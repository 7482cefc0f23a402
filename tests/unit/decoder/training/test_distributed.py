"""Which process of a run this is, told from the environments that Lightning, torchrun and SLURM give."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from places import ROOT

from decoder.config import TrainConfig
from decoder.training.distributed import gathered, is_distributed, is_first, own_device
from decoder.utils.errors import UserError
from launcher.grid import refuse_several

RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID", "SLURM_LOCALID", "GROUP_RANK", "WORLD_SIZE")


def config(devices=2, num_nodes=1) -> TrainConfig:
    cfg = TrainConfig()
    cfg.trainer.devices, cfg.trainer.num_nodes = devices, num_nodes
    return cfg


@pytest.fixture()
def environment(monkeypatch):
    for name in RANKS:
        monkeypatch.delenv(name, raising=False)
    return lambda **values: [monkeypatch.setenv(name, str(value)) for name, value in values.items()]


@pytest.mark.parametrize(
    ("devices", "num_nodes", "expected"),
    [(1, 1, False), ([3], 1, False), (2, 1, True), ([0, 1], 1, True), ("auto", 1, True), (-1, 1, True), (1, 2, True)],
)
def test_several_processes_may_be_asked_for(devices, num_nodes, expected):
    assert is_distributed(config(devices, num_nodes)) is expected


@pytest.mark.parametrize(
    ("values", "first", "device"),
    [
        ({}, True, 0),
        ({"LOCAL_RANK": 0, "NODE_RANK": 0}, True, 0),
        ({"LOCAL_RANK": 1, "NODE_RANK": 0}, False, 1),
        ({"NODE_RANK": 1}, False, 0),
        ({"RANK": 0, "LOCAL_RANK": 0}, True, 0),
        ({"RANK": 2, "LOCAL_RANK": 0, "GROUP_RANK": 1}, False, 0),
        # torchrun, one task a node: it counts nodes in an order of its own.
        ({"RANK": 0, "LOCAL_RANK": 0, "SLURM_PROCID": 1}, True, 0),
        ({"SLURM_PROCID": 3, "SLURM_LOCALID": 1}, False, 1),
        ({"SLURM_PROCID": 0, "SLURM_LOCALID": 0}, True, 0),
    ],
)
def test_the_first_process_is_known_before_they_meet(environment, values, first, device):
    environment(**values)
    assert is_first(config()) is first and own_device(config()) == device
    assert own_device(config([4, 6])) == [4, 6][device]


def test_a_run_on_one_device_is_its_own_first_process(environment):
    environment(SLURM_PROCID=5, SLURM_LOCALID=3, LOCAL_RANK=3)
    assert is_first(config(1)) and own_device(config(1)) == 0 and own_device(config([3])) == 3


def test_grids_with_several_devices_are_refused():
    refuse_several([SimpleNamespace(config=config(1)), SimpleNamespace(config=config([2]))])
    with pytest.raises(UserError, match=r"trainer.devices=2 trainer.num_nodes=1: each run of a grid gets one device.*launcher.jobs"):
        refuse_several([SimpleNamespace(config=config(1)), SimpleNamespace(config=config(2))])


MEET = """
import sys
from torch import distributed
from decoder.training.distributed import gathered
rank = int(sys.argv[1])
distributed.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
assert gathered([(rank, "a")] * (2 - rank)) == [(0, "a"), (0, "a"), (1, "a")]
assert gathered([] if rank else [7]) == [7]
distributed.destroy_process_group()
"""


def test_every_process_gets_what_all_have(tmp_path):
    assert gathered([1, 2]) == [1, 2], "alone, its own"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    processes = [subprocess.Popen([sys.executable, "-c", MEET, str(rank), str(tmp_path / "meet")], env=environment) for rank in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
