"""Values that no run can mean, refused before anything is loaded. Nothing here imports torch."""

import json
import math
import os
import re
from collections.abc import Container
from operator import attrgetter
from pathlib import Path
from typing import Any

from decoder.config.commands import (
    EvaluateConfig,
    ExportConfig,
    ImportConfig,
    PerturbConfig,
    ProduceConfig,
    ReportConfig,
    SequentialConfig,
    TraceConfig,
    TracingConfig,
)
from decoder.config.editors import FineTuneConfig
from decoder.config.options import layers_of, settings, typed
from decoder.config.schema import HostConfig, TrainConfig
from decoder.utils.errors import UserError

GGUF = b"GGUF"  # the first bytes of such files
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
LAYERS = ("num_hidden_layers", "n_layer", "num_layers")  # what the configs of hosts call the number of their blocks


def check(
    config: TrainConfig | EvaluateConfig | ImportConfig | PerturbConfig | ReportConfig | ExportConfig, given: Container[str] | None = None
) -> None:
    """Raises UserError on the first value out of range; what needs torch or a host is checked where that is at hand.

    Args:
        given: settings that the command line has; all others are of files. None where that is not known.
    """
    for key, field in settings(config):
        value, least, most = attrgetter(key)(config), field.metadata["least"], field.metadata["most"]
        if least is None or not _is_number(value):
            continue
        if not math.isfinite(value) or value < least or (most is not None and value > most):
            raise UserError(f"{key}={value}: expected a number from {least} " + ("up" if most is None else f"to {most}"))
    if isinstance(config, TrainConfig | ImportConfig):
        _check_recipe(config.host)
    if isinstance(config, TrainConfig):
        _check_train(config)
    if isinstance(config, TraceConfig):
        _check_one_layer(config, given, "the layer that is suggested is put beside one")
    if isinstance(config, TraceConfig) and not config.noise:
        raise UserError("noise=0: without noise nothing is lost that restoring could bring back. Give more than 0, as 3")
    if isinstance(config, SequentialConfig):
        _check_sequential(config)
        _check_one_layer(config, given, "here facts follow one another in one layer")
    if isinstance(config, ProduceConfig) and config.parquet and (each := config.edits.facts_per_host) > 1:
        raise UserError(f"edits.facts_per_host={each}: several facts a host are read from their own store only. Leave out parquet=")
    if isinstance(config, ImportConfig) and config.layer is not None:
        layers_of("layer", config.layer)
    if isinstance(config, EvaluateConfig) and config.suspect and (config.store or config.precision != "factors"):
        raise UserError("suspect= reads one matrix as it is: leave out store= and precision=, which are for scoring")


def _check_train(config: TrainConfig) -> None:
    layers = config.decoder.layers
    if not layers or not all(_is_index(layer) for layer in layers) or len(set(layers)) < len(layers):
        raise UserError(
            f"decoder.layer={config.decoder.layer}: expected a layer as 1, or different layers as [0,1]; a grid has -m in front"
        )
    config.edits.check()
    count = _layers_of(config.host)
    for key, layer in (*(("edits.layer", layer) for layer in config.edits.layers), *(("decoder.layer", layer) for layer in layers)):
        if count is not None and layer >= count:
            raise UserError(f"{key}={layer}: {config.host.name} has layers 0 to {count - 1}")
    devices = config.trainer.devices
    is_text = isinstance(devices, str) and (devices == "auto" or re.fullmatch(r"\d+(,\d+)*,?", devices))
    if not is_text and not isinstance(devices, list) and devices != -1 and not (_is_index(devices) and devices > 0):
        raise UserError(f"trainer.devices={devices}: expected auto, a count from 1 up, -1 for all, or indices as [0,1]")
    cores = os.cpu_count() or 1
    if config.launcher.name == "local" and config.trainer.accelerator in ("auto", "cpu") and _is_index(devices) and devices > cores:
        raise UserError(
            f"trainer.devices={devices}: this machine has {cores} cores, and every device is a process. Ask for as many at most"
        )
    strategy = config.trainer.strategy
    if strategy != "auto" and (not strategy.startswith("ddp") or any(way in strategy for way in ("spawn", "fork", "notebook"))):
        raise UserError(
            f"trainer.strategy={strategy}: expected auto, ddp or ddp_find_unused_parameters_true; every process holds the frozen host whole"
        )
    if config.variant and (set(config.variant) & set("/\\") or config.variant in (".", "..")):
        raise UserError(f"variant={config.variant}: it is the end of a folder's name; write it without slashes")
    if (gpus := config.launcher.gpus) != int(gpus) and (gpus > 1 or config.launcher.name == "slurm"):
        raise UserError(
            f"launcher.gpus={gpus:g}: expected a whole number" + ("" if config.launcher.name == "slurm" else ", or a part of one")
        )
    if len(config.optim.betas) != 2 or not all(0 <= beta < 1 for beta in config.optim.betas):
        raise UserError(f"optim.betas={config.optim.betas}: expected two numbers from 0 to below 1, as [0.9,0.98]")
    if not isinstance(config, ProduceConfig | SequentialConfig | TraceConfig | TracingConfig):
        _check_training(config)
    kept = config.splits.val_subjects + config.splits.test_subjects
    if kept >= 1:
        raise UserError(f"splits.val_subjects + splits.test_subjects = {kept:g}: expected less than 1, the rest is trained on")


def _check_one_layer(config: TrainConfig, given: Container[str] | None, why: str) -> None:
    layers = config.edits.layers
    if len(layers) == 1:
        return
    told = f"edits.layer={typed(config.edits.layer)}"
    if given is None or "edits.layer" in given:
        raise UserError(f"{told}: {why}. Give one")
    of = "which the experiment or" if "experiment" in given else "which"
    raise UserError(
        f"{told}, {of} configs/edits/{config.edits.editor}.yaml has for {config.host.name}: {why}. Give one, as edits.layer={layers[-1]}"
    )


def _check_sequential(config: SequentialConfig) -> None:
    at = config.at
    if not at or not all(_is_index(count) and count for count in at) or at != sorted(set(at)):
        raise UserError(f"at={typed(at)}: expected numbers of facts from 1 up, ascending, as [1,10,100]")
    if uneven := [count for count in at if count % config.edits.facts_per_host]:
        each = config.edits.facts_per_host
        raise UserError(f"at={typed(at)}: edits.facts_per_host={each} plants {each} facts at a time, {uneven[0]} is no multiple of it")
    if config.launcher.name != "local":
        raise UserError(f"launcher={config.launcher.name}: chains of facts run here, one after the other. Leave it out")


def _check_training(config: TrainConfig) -> None:
    """What training asks of the splits, and of edits that are no rank-one factors."""
    for name in ("train_relations", "train_per_relation", "val_per_relation"):
        if not getattr(config.splits, name):
            raise UserError(f"splits.{name}=0: training has nothing to learn from or to stop by; expected a number from 1 up")
    edits, fixed = config.edits, ""
    if config.data.form == "dense":
        fixed = "data.form=dense: whole matrices"
    elif isinstance(edits, FineTuneConfig):
        fixed = f"edits.editor={edits.editor}: whole matrices"
    if config.data.also and (config.data.streaming or config.data.form == "dense"):
        raise UserError(
            "data.also joins stores that are mapped, each in the form of its editor. Leave out data.streaming and data.form=dense"
        )
    # Of several stores those that can be varied are.
    if fixed and not config.data.also and (config.optim.recombined or config.optim.value_noise):
        raise UserError(f"{fixed} cannot be varied in training. Add optim.recombined=0 optim.value_noise=0")


def _check_recipe(host: HostConfig) -> None:
    """Raises UserError for another model that would be edited and read with the settings of the pocket host, and bear its name."""
    if host.path and host.name == HostConfig.name and _is_other(host):
        raise UserError(
            f"host.path={host.path} is no pocket host, and would be given that one's settings (host.terminator={host.terminator!r}, "
            "edits.layer, ...). Give host=NAME beside it if configs/host/ has the model, else host.name=NAME and the settings of its own "
            "that docs/real-hosts.md lists"
        )


def _is_other(host: HostConfig) -> bool:
    """Whether a host that is given is no pocket host; what cannot be read is refused with its reason when it is opened."""
    place, pocket = Path(host.path or ""), host.pocket
    try:
        if not place.exists():
            return HUB_ID.fullmatch(str(host.path)) is not None and place.suffix != ".gguf"
        if place.is_file():
            with place.open("rb") as opened:
                return opened.read(len(GGUF)) == GGUF  # its kind of tokenizer is in no such file
        if (place / "recall.json").exists():
            return False
        if not (place / "config.json").exists():
            return any(place.glob("*.gguf"))
        # One that was edited is of the pocket's sizes still.
        config = json.loads((place / "config.json").read_text(encoding="utf-8"))
        sizes = tuple(config.get(name) for name in ("model_type", "num_hidden_layers", "hidden_size", "intermediate_size"))
    except (OSError, ValueError, AttributeError):
        return False
    return sizes != ("qwen3", pocket.layers, pocket.hidden_size, pocket.mlp_size)


def _layers_of(host: HostConfig) -> int | None:
    """How many blocks a host has, where that is known without loading it: the pocket's, or those of a folder's config.json."""
    if host.is_pocket:
        return host.pocket.layers
    if not host.path:
        return None
    try:
        config = json.loads((Path(host.path) / "config.json").read_text(encoding="utf-8"))
        config = config.get("text_config") or config
        found = next((config[name] for name in LAYERS if name in config), None)
    except (OSError, ValueError, AttributeError, TypeError):
        return None  # no folder, or one that is refused with its reason when it is opened
    return found if _is_index(found) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_index(value: Any) -> bool:
    return _is_number(value) and isinstance(value, int) and value >= 0
