"""Hosts, edits and slow twins that tests of every folder ask for.

Shape letters: B edits, D hidden width, F MLP width.
"""

import copy
import hashlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_hosts import TINY, build_host
from torch import nn

from decoder.dense import DenseEdit
from decoder.edit import Edit, RankOneEdit
from decoder.host import Host, tensor_bytes
from decoder.utils.cores import THREADS, available_cores, worker_environment


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """A process a core; one for named files, which start sooner so, and for slow tests, which start several and kill by the clock."""
    named = all(Path(argument.partition("::")[0]).suffix == ".py" for argument in config.args)
    return 0 if named or config.option.markexpr == "slow" else available_cores()


def pytest_xdist_setupnodes(specs: list) -> None:
    """Each process, and what its tests start, has its share of the cores."""
    share = worker_environment(0, len(specs))
    os.environ.update({name: share[name] for name in THREADS})


@pytest.fixture(autouse=True)
def same_numbers_every_run() -> None:
    """What a test draws without a generator of its own does not depend on the tests before it in its process."""
    torch.manual_seed(0)


def weights_digest(module: nn.Module) -> str:
    return hashlib.sha256(b"".join(bytes(tensor_bytes(tensor)) for tensor in module.state_dict().values())).hexdigest()


class Shared:
    """A host that tests share, and what it was when it was built."""

    def __init__(self, host: Host) -> None:
        self.host, self.parameters = host, list(host.model.parameters())
        self.built, self.seen = self.whole(), self.glance()

    def glance(self) -> tuple[Any, ...]:
        """What a change shows in, as far as it can be had after every test."""
        places = [(parameter._version, parameter.data_ptr()) for parameter in self.parameters]
        # Saving a model writes both of its config.
        config = self.host.model.config
        return self.host.terminator_id, self.host.memory_budget, config.architectures, config.dtype, places

    def whole(self) -> tuple[Any, ...]:
        model = self.host.model
        # Frequencies of rotary positions are in no state_dict.
        frequencies = [tensor.tolist() for tensor in model.buffers()]
        return weights_digest(model), frequencies, model.config.to_json_string(), self.host.terminator_id, self.host.memory_budget

    def check(self) -> None:
        assert self.whole() == self.built, f"a test changed host {self.host.name}, which others share: take new_host"
        self.seen = self.glance()


@pytest.fixture(scope="session")
def shared() -> Iterator[dict[str, Shared]]:
    found: dict[str, Shared] = {}
    yield found
    for one in found.values():
        one.check()


@pytest.fixture(autouse=True)
def shared_hosts_stay_as_they_are(shared) -> Iterator[None]:
    yield
    for name, one in list(shared.items()):
        if one.glance() != one.seen:
            del shared[name]  # the tests that follow have one that is as it was
            one.check()
            shared[name] = one


@pytest.fixture(scope="session")
def host_of(shared) -> Callable[[str], Host]:
    """A tiny host by name, built once: for tests that leave it as it is."""

    def named(name: str) -> Host:
        if name not in shared:
            shared[name] = Shared(build_host(name))
        return shared[name].host

    return named


@pytest.fixture(scope="session")
def host_names() -> list[str]:
    return list(TINY)


@pytest.fixture(scope="session")
def new_host() -> Callable[..., Host]:
    """A tiny host of the test's own, with other settings if it likes."""
    return build_host


@pytest.fixture(scope="session", params=list(TINY))
def any_host(request, host_of) -> Host:
    """One host after the other: every family, and the layouts that have traps."""
    return host_of(request.param)


@pytest.fixture(scope="session")
def random_edits() -> Callable[..., RankOneEdit]:
    def make(host: Host, count: int, seed: int = 0, size: float = 0.3) -> RankOneEdit:
        generator = torch.Generator().manual_seed(seed)
        key_BF = torch.randn(count, host.mlp_size(1), generator=generator)
        return RankOneEdit(key_BF, size * torch.randn(count, host.hidden_size, generator=generator))

    return make


@pytest.fixture(scope="session")
def in_place() -> Callable[[Host, Edit, int, int], Host]:
    """The slow twin of the swap: a copy of the host with edit b written into its weights."""

    def edited(host: Host, edits: Edit, b: int, layer: int) -> Host:
        twin = Host(copy.deepcopy(host.model), host.tokenizer, name=host.name)
        weight_DF = twin.weight_DF(layer)
        if isinstance(edits, DenseEdit):
            weight_DF.copy_(edits.weight_BDF[b])
        else:
            weight_DF.add_(torch.outer(edits.value_BD[b], edits.key_BF[b]))
        return twin

    return edited


@pytest.fixture(scope="session")
def weights_hash() -> Callable[[nn.Module], str]:
    return weights_digest


@pytest.fixture(scope="session")
def hooks() -> Callable[[nn.Module], int]:
    """How many hooks of any kind a model carries."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return lambda model: sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


@pytest.fixture(scope="session", autouse=True)
def heard_signals():
    """A shell starts what goes to its background with SIGINT ignored, and programs hand that on to those they start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
