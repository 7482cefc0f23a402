"""Loading a host's files: which class reads them, how much memory they need, and what to do when they cannot be had."""

import logging
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, OfflineModeIsEnabled, StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from decoder.checkpoint.adapter import Adapter
from decoder.checkpoint.folders import ADAPTER_CONFIG, NO_PICKLE, PICKLES, code_named_in, read_json
from decoder.checkpoint.names import unwrapped
from decoder.checkpoint.quantised import method_of, refuse
from decoder.checkpoint.reader import Checkpoint
from decoder.utils.errors import listed

FAULTS = (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError, SafetensorError, StrictDataclassError)
"""What files of others raise in transformers."""
NO_TOKENIZER = "it has no tokenizer: copy tokenizer.json and tokenizer_config.json of the model there"
AUDITED = ("suspect", "base")
"""Settings of checkpoints that are looked at, and never a host of the cache."""

REPORTS = logging.getLogger("transformers.modeling_utils")
"""Where transformers says what it did not find in a checkpoint, or does not know, in several lines."""

log = logging.getLogger(__name__)


def load_files(
    path: str | Path, *, name: str, dtype: str, revision: str | None, setting: str = "host.path"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model and its tokenizer from a folder or, by id, from the Hub or its cache; weights from safetensors only, code from nowhere.

    Args:
        setting: that the path was given with, and another one can be.

    Raises:
        ValueError: they cannot be had, or leave parts of the model open; says why and what to do.
    """
    try:
        config, checkpoint = _config(path, revision), Checkpoint(path) if Path(path).is_dir() else None
        options: dict[str, Any] = {"revision": revision, "use_safetensors": True, "trust_remote_code": False}
        if checkpoint is not None:
            options |= _mended(checkpoint, config, getattr(torch, dtype))
        kind, source = reader(config), path
        if "state_dict" in options:
            classes = MODEL_FOR_CAUSAL_LM_MAPPING if kind is AutoModelForCausalLM else MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
            kind, source = classes[type(config)], None
        model = _loaded(kind, source, config=config, dtype=getattr(torch, dtype), **options)
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=False)
        if tokenizer.get_vocab().keys() <= {*tokenizer.all_special_tokens}:
            raise ValueError(NO_TOKENIZER)
    except FAULTS as error:
        # Who audits a checkpoint gave no name of a host.
        which = f"{setting}={path} cannot be loaded" if setting in AUDITED else f"host {name}: nothing to load at {path}"
        raise ValueError(f"{which} ({_remedy(path, error, setting)}") from None
    return model, tokenizer


def _loaded(kind: type, source: str | Path | None, **options: Any) -> PreTrainedModel:
    """A model whose weights are all there; transformers' report of the load is heard but where tensors are missing, which the error names.

    Raises:
        ValueError: some are missing.
    """
    held: list[logging.LogRecord] = []

    def hold(record: logging.LogRecord) -> bool:
        held.append(record)
        return False

    REPORTS.addFilter(hold)
    absent: list[str] = []
    try:
        model, found = kind.from_pretrained(source, output_loading_info=True, **options)
        absent = sorted(found["missing_keys"])
    finally:
        REPORTS.removeFilter(hold)
        for record in held if not absent else ():
            REPORTS.handle(record)
    if absent:
        raise ValueError(f"its weights lack {listed(absent)}, which would be made up. Save the checkpoint again")
    return model


def _config(path: str | Path, revision: str | None) -> PretrainedConfig:
    """A host's config.

    Raises:
        ValueError: its weights were quantised so that they cannot be had back, or it wants code of its own to be run.
    """
    if (Path(path) / ADAPTER_CONFIG).exists():
        raise ValueError(f"it holds an adapter ({ADAPTER_CONFIG}): merge it into its base (merge_and_unload), or move it away from that")
    config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False)
    refuse(method_of(config.to_dict(), Path(path)))
    return config


def _mended(checkpoint: Checkpoint, config: PretrainedConfig, dtype: torch.dtype) -> dict[str, Any]:
    """What loading a folder takes beside its path: names without wrappers, 8-bit floats multiplied out. Says which weights are not read.

    What has other names only is mapped from its files, as transformers does it, and takes no memory of its own.
    """
    if checkpoint.ignored:
        read = ", ".join(file.name for file in checkpoint.files)
        log.warning("%s: read %s, not %s", checkpoint.path, read, ", ".join(checkpoint.ignored))
    if Adapter(checkpoint).names:
        raise ValueError("it holds a LoRA that is not merged: merge it (merge_and_unload) and save it again")
    plain = {name: unwrapped(name) for name in checkpoint.names}
    if not hasattr(config, "quantization_config") and all(name == own for name, own in plain.items()):
        return {}
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    if any(map(checkpoint.is_scale, plain)):
        numbers = ((own, checkpoint.tensor(name)) for name, own in plain.items() if not checkpoint.is_scale(name))
        return {"state_dict": {own: tensor.to(dtype) if tensor.is_floating_point() else tensor for own, tensor in numbers}}
    return {"state_dict": {plain[name]: tensor for file in checkpoint.files for name, tensor in load_file(file).items()}}


def reader(config: PretrainedConfig) -> type:
    """The class that reads a config's weights: the text model's, or the multimodal one around it."""
    return AutoModelForCausalLM if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING else AutoModelForImageTextToText


def memory_needed(path: str | Path, *, name: str, dtype: str, revision: str | None) -> tuple[int, float]:
    """Parameters of a host and the GB (10⁹ bytes) its weights take, from its config alone.

    Raises:
        ValueError: there is no config; says why and what to do.
    """
    try:
        config = _config(path, revision)
        with torch.device("meta"):
            model = reader(config).from_config(config)
    except FAULTS as error:
        raise ValueError(f"host {name}: nothing to load at {path} ({_remedy(path, error)}") from None
    count = sum(parameter.numel() for parameter in model.parameters())
    return count, count * getattr(torch, dtype).itemsize / 1e9


def give_another(setting: str) -> str:
    """What to do about a place where nothing can be loaded; checkpoints that are audited are files."""
    kinds = "folder or GGUF file" if setting in AUDITED else "folder, GGUF file or Hub id"
    return f"Give a {kinds} with {setting}="


def _remedy(path: str | Path, error: BaseException, setting: str = "host.path") -> str:
    """Why, closing a bracket, and what to do."""
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__).rstrip(".")
    if "backend tokenizer" in reason:
        reason = NO_TOKENIZER
    causes = [error, error.__cause__, error.__context__]
    if any(isinstance(cause, GatedRepoError) for cause in causes) or "gated" in reason.lower():
        return f"its licence must be accepted). Accept it at https://huggingface.co/{path}, set HF_TOKEN, or give a folder with {setting}="
    if any(isinstance(cause, LocalEntryNotFoundError | OfflineModeIsEnabled) for cause in causes) or "connect" in reason.lower():
        return (
            f"not in the cache, and the Hub is out of reach or HF_HUB_OFFLINE is set). Download it first, or give a folder with {setting}="
        )
    if "trust_remote_code" in str(error):
        named = code_named_in(Path(path), read_json(Path(path) / "config.json")) or "auto_map of its config"
        return f"it names code of its own, {named}, which is never run). Give a host of a family that transformers has"
    folder = Path(path)
    if folder.is_dir() and any(file.suffix in PICKLES for file in folder.iterdir()) and not any(folder.glob("*.safetensors")):
        return f"{NO_PICKLE})"
    if (folder / "recall.json").exists() and setting not in AUDITED:
        return f"{reason}). Remove the folder to build the pocket host anew"
    return f"{reason}). {give_another(setting)}"
