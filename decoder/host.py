"""The host: the frozen causal language model whose weights were edited.

Shape letters: T tokens, N rows, D hidden width, F MLP width, V vocabulary.
"""

import hashlib
import inspect
import json
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from decoder.checkpoint.model_files import load_files
from decoder.edit import MEMORY_BUDGET
from decoder.families import FAMILIES, Family
from decoder.utils.errors import did_you_mean

OPENING = "a"  # a word that objects are tokenised behind, where a tokenizer cannot be given a leading space


class Host:
    """A frozen causal language model and what the method asks of it.

    The weights never change: every parameter has `requires_grad=False` and the model stays in eval mode.

    Raises:
        ValueError: the model's family or layout is not supported, or `terminator` is not one token.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str,
        path: str = "",
        revision: str | None = None,
        terminator: str | None = None,
    ) -> None:
        self.model_type = model.config.model_type
        if self.model_type not in FAMILIES:
            raise ValueError(f"host {name}: family {self.model_type!r} is not supported; {did_you_mean(self.model_type, FAMILIES)}")
        self.family: Family = FAMILIES[self.model_type]
        self.text_config = model.config.get_text_config()
        if reason := self.family.refuse(self.text_config):
            raise ValueError(f"host {name}: {reason}")
        self.model = model.eval().requires_grad_(False)
        # None until the swap's self-check has run.
        self.batch_grows_at_edit: bool | None = None if self.family.batch_grows_at_edit else False
        # Bytes that copies of edits' whole matrices may take beside the host.
        self.memory_budget = MEMORY_BUDGET
        self.tokenizer = tokenizer
        self.name, self.path, self.revision = name, path, revision
        self.terminator_id = self._single_token(terminator) if terminator else None

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        name: str,
        dtype: str = "float32",
        revision: str | None = None,
        terminator: str | None = None,
        device: str = "cpu",
        setting: str = "host.path",
    ) -> "Host":
        """Loads a host from a folder or, by id, from the Hub's cache; weights are from safetensors only. `setting` gave the path."""
        model, tokenizer = load_files(path, name=name, dtype=dtype, revision=revision, setting=setting)
        resolved = getattr(model.config, "_commit_hash", None) or revision
        return cls(model.to(device), tokenizer, name=name, path=str(path), revision=resolved, terminator=terminator)

    # Layout

    @cached_property
    def blocks(self) -> nn.ModuleList:
        return attrgetter(self.family.blocks)(self.model)

    @property
    def entry(self) -> nn.Module:
        """The module whose input is the model's and which holds the blocks."""
        return self.model.get_submodule(self.family.blocks.rpartition(".")[0])

    @property
    def layers(self) -> int:
        return len(self.blocks)

    @property
    def hidden_size(self) -> int:
        return self.text_config.hidden_size

    def mlp_size(self, layer: int) -> int:
        """Width F of a block's MLP; mixtures of experts have several."""
        return self.weight_DF(layer).shape[1]

    @property
    def longest_input(self) -> int | None:
        """Positions the host can read, if it says so."""
        return getattr(self.text_config, "max_position_embeddings", None)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    def check_layer(self, layer: int, key: str) -> None:
        """Raises ValueError that names the setting `key` if the host has no such layer."""
        if not 0 <= layer < self.layers:
            raise ValueError(f"{key}={layer}: {self.name} has layers 0 to {self.layers - 1}")

    def down_proj(self, layer: int) -> nn.Module:
        """The module of W_V in a block.

        Raises:
            ValueError: no such layer, or its experts are fused into one tensor.
        """
        return attrgetter(self.down_proj_path(layer))(self.blocks[layer])

    def down_proj_path(self, layer: int) -> str:
        """Path of W_V's module inside a block."""
        self.check_layer(layer, "layer")
        if path := self._path_in(self.blocks[layer]):
            return path
        usable = [n for n, block in enumerate(self.blocks) if self._path_in(block)]
        raise ValueError(
            f"layer={layer}: the experts of {self.name} layer {layer} are fused in one tensor, and no down-projection serves every token; "
            f"layers that have one: {', '.join(map(str, usable)) or 'none'}"
        )

    def _path_in(self, block: nn.Module) -> str | None:
        paths = (self.family.down_proj, self.family.shared_expert)
        return next((path for path in paths if path and _submodule(block, path)), None)

    def module_path(self, layer: int) -> str:
        return f"{self.family.blocks}.{layer}.{self.down_proj_path(layer)}"

    def stored_transposed(self, layer: int) -> bool:
        """Whether the file layout of W_V is (F, D). Decided by type: shapes are ambiguous for a square matrix."""
        return isinstance(self.down_proj(layer), Conv1D)

    def weight_DF(self, layer: int) -> Tensor:
        """W_V in canonical orientation (D, F), a view of the frozen weight."""
        weight = self.down_proj(layer).weight.detach()
        return weight.T if self.stored_transposed(layer) else weight

    @property
    def unembedding_VD(self) -> Tensor:
        """The output head's rows, one a token; a view of the frozen weight."""
        return self.model.get_output_embeddings().weight.detach()

    # Running it

    def with_cache(self, cache: DynamicCache | None) -> dict[str, Any]:
        """Arguments of a forward that goes on from a cache and adds to it; None: of one that keeps nothing."""
        return {self._cache_name: cache, "use_cache": cache is not None}

    @cached_property
    def _cache_name(self) -> str:
        # Renamed in transformers 5, release by release.
        return "cache" if "cache" in inspect.signature(self.model.forward).parameters else "past_key_values"

    def head(self, hidden_ND: Tensor) -> Tensor:
        """Logits (N, V) of hidden states that went through the final norm already, as the base model returns them."""
        logits_NV = self.model.get_output_embeddings()(hidden_ND)
        cap = getattr(self.text_config, "final_logit_softcapping", None)
        return logits_NV if cap is None else cap * torch.tanh(logits_NV / cap)

    def unembed(self, hidden_ND: Tensor) -> Tensor:
        """Logits (N, V) of residual-stream vectors: final norm, then output head."""
        norm = attrgetter(self.family.final_norm)(self.model)
        hidden_ND = hidden_ND.to(self.dtype)
        return self.head(hidden_ND if norm is None else norm(hidden_ND)).float()

    # Tokens

    def object_ids(self, text: str) -> list[int]:
        """Tokens of an object as it continues a prompt: with a leading space, without special tokens or terminator."""
        if not self._space_is_doubled:
            return self._plain_ids(" " + text.strip())
        opening = self._plain_ids(OPENING)
        return self._plain_ids(f"{OPENING} {text.strip()}")[len(opening) :] if text.strip() else []

    def _plain_ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    @cached_property
    def _space_is_doubled(self) -> bool:
        """Whether the tokenizer puts a space before every text, also before one that has it, as Llama 2's own file does."""
        return self._plain_ids(f"{OPENING} {OPENING}") != self._plain_ids(OPENING) + self._plain_ids(f" {OPENING}")

    def text_ids(self, text: str) -> list[int]:
        return self.tokenizer(text)["input_ids"]

    def prompt_ids(self, template: str, subject: str) -> tuple[list[int], int]:
        """Tokens of `template` filled with `subject`, and the index of the subject's last token; raises as `subject_tokens` does."""
        ids, places = self.subject_tokens(template, subject)
        return ids, places[-1]

    def subject_tokens(self, template: str, subject: str) -> tuple[list[int], range]:
        """Tokens of `template` filled with `subject`, and the indices of the subject's.

        The filled text is tokenised whole and the subject is found by character offsets, so neighbours of the subject
        ("'s", a comma) and special tokens cannot shift the index.

        Raises:
            ValueError: the template has not exactly one `{}`, or no token covers the subject.
        """
        if template.count("{}") != 1:
            raise ValueError(f"prompt {template!r}: expected exactly one {{}} for the subject")
        subject = subject.strip()
        start = template.index("{}")
        end = start + len(subject)
        encoding = self.tokenizer(template.replace("{}", subject), return_offsets_mapping=True)
        covering = [i for i, (a, b) in enumerate(encoding["offset_mapping"]) if a < end and b > start and b > a]
        if not subject or not covering:
            raise ValueError(f"prompt {template!r}: no token covers the subject {subject!r}")
        return encoding["input_ids"], range(covering[0], covering[-1] + 1)

    def _single_token(self, text: str) -> int:
        ids = self.object_ids(text)
        if len(ids) != 1:
            raise ValueError(f"host.terminator={text!r} is {len(ids)} tokens of {self.name}; expected one")
        return ids[0]

    # Identity

    @cached_property
    def fingerprint(self) -> str:
        """12 hex digits over all weights (names, dtypes, shapes, bytes) and the vocabulary."""
        digest = hashlib.sha256(json.dumps(sorted(self.tokenizer.get_vocab().items())).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor_bytes(tensor))
        return digest.hexdigest()[:12]

    def base_sha256(self, layer: int) -> str:
        """sha256 of W_V's bytes in the dtype the host was loaded in, canonical orientation."""
        return hashlib.sha256(tensor_bytes(self.weight_DF(layer))).hexdigest()


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The raw bytes of a tensor, row-major, whatever its dtype."""
    return tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data


def _submodule(module: nn.Module, path: str) -> nn.Module | None:
    """The module at a path that has a matrix, or None."""
    for name in path.split("."):
        module = getattr(module, name, None)
    return module if getattr(getattr(module, "weight", None), "ndim", 0) == 2 else None
