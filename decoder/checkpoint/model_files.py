"""Loading a host's files: which class reads them, how much memory they need, and what to do when they cannot be had."""

from pathlib import Path

import torch
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, OfflineModeIsEnabled
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from decoder.checkpoint.reader import NO_PICKLE, PICKLES


def load_files(path: str | Path, *, name: str, dtype: str, revision: str | None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model and its tokenizer from a folder or, by id, from the Hub or its cache; weights from safetensors only.

    Raises:
        ValueError: they cannot be had; says why and what to do.
    """
    try:
        config = AutoConfig.from_pretrained(path, revision=revision)
        model = reader(config).from_pretrained(path, dtype=getattr(torch, dtype), revision=revision, use_safetensors=True)
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ValueError(f"host {name}: nothing to load at {path} ({_remedy(path, error)}") from None
    return model, tokenizer


def reader(config: PretrainedConfig) -> type:
    """The class that reads a config's weights: the text model's, or the multimodal one around it."""
    return AutoModelForCausalLM if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING else AutoModelForImageTextToText


def memory_needed(path: str | Path, *, name: str, dtype: str, revision: str | None) -> tuple[int, float]:
    """Parameters of a host and the GB (10⁹ bytes) its weights take, from its config alone.

    Raises:
        ValueError: there is no config; says why and what to do.
    """
    try:
        config = AutoConfig.from_pretrained(path, revision=revision)
        with torch.device("meta"):
            model = reader(config).from_config(config)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"host {name}: nothing to load at {path} ({_remedy(path, error)}") from None
    count = sum(parameter.numel() for parameter in model.parameters())
    return count, count * getattr(torch, dtype).itemsize / 1e9


def _remedy(path: str | Path, error: BaseException) -> str:
    """Why, closing a bracket, and what to do."""
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__).rstrip(".")
    causes = [error, error.__cause__, error.__context__]
    if any(isinstance(cause, GatedRepoError) for cause in causes) or "gated" in reason.lower():
        return f"its licence must be accepted). Accept it at https://huggingface.co/{path}, set HF_TOKEN, or give a folder with host.path="
    if any(isinstance(cause, LocalEntryNotFoundError | OfflineModeIsEnabled) for cause in causes) or "connect" in reason.lower():
        return (
            "not in the cache, and the Hub is out of reach or HF_HUB_OFFLINE is set). Download it first, or give a folder with host.path="
        )
    folder = Path(path)
    if folder.is_dir() and any(file.suffix in PICKLES for file in folder.iterdir()) and not any(folder.glob("*.safetensors")):
        return f"{NO_PICKLE})"
    if (folder / "recall.json").exists():
        return f"{reason}). Remove the folder to build the pocket host anew"
    return f"{reason}). Give a folder or Hub id with host.path="
