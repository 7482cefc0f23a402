"""What happens around a run."""

import pytest
import torch

from decoder.session import NARROW, threads_for


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
    monkeypatch.setattr("decoder.session.NARROW", host.hidden_size - 1)
    with threads_for(host):
        assert torch.get_num_threads() == 2


def test_a_users_choice_is_left_alone(two_threads, new_host, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with threads_for(new_host("gpt2")):
        assert torch.get_num_threads() == 2
