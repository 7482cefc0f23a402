"""One suspect: a matrix in a file, or a checkpoint folder, opened once for every decoder that reads it.

Shape letters: D hidden width, F MLP width.
"""

from collections.abc import Iterable
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from decoder.checkpoint.adapter import Adapter
from decoder.checkpoint.folders import ADAPTER, code_named_in
from decoder.checkpoint.reader import CHUNK, Checkpoint
from decoder.dense import DenseEdit
from decoder.edit import Edit, LowRankEdit
from decoder.host import Host
from decoder.utils.errors import listed

LEAST_SHARE = 0.5
"""Of W_V, what a W' has at least along it: 1, give or take what the edit itself has. An update has next to none."""


class Suspect:
    """W'_V of any layer, out of what a stranger saved. Nothing but headers is read before it is asked for.

    Args:
        path: safetensors, npz or GGUF file, checkpoint folder, or folder of a LoRA adapter.
        tensor: the matrix's name, if a file holds several and not under the host's own name.
        form: what the tensors are: `weight` (W'), `update` (W' - W), or `auto`: weights, and what looks like an update is refused.

    Raises:
        ValueError: there is nothing to read (pickles are never loaded).
    """

    def __init__(self, path: str | Path, tensor: str | None = None, form: str = "auto") -> None:
        self.path, self.tensor, self.form = path, tensor, form
        self.checkpoint = Checkpoint(path)
        self.adapter = Adapter(self.checkpoint)
        self._last: tuple[str, Tensor] | None = None

    @property
    def is_checkpoint(self) -> bool:
        """Whether it is a checkpoint or adapter, not a single matrix."""
        return self.checkpoint.path.is_dir() or self.checkpoint.gguf is not None

    @property
    def is_whole(self) -> bool:
        """Whether there is a checkpoint around the matrix that can be held against a host."""
        return self.is_checkpoint and self.checkpoint.files[0].name != ADAPTER

    @cached_property
    def matrices(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of what may be W'_V of a layer, or is added to it."""
        sides = {name for names in self.adapter.names.values() for name in names.values()}
        found = {name: shape for name, shape in self.checkpoint.matrices.items() if self.tensor in (None, name) and name not in sides}
        return found if self.tensor else {f"{module}.weight": shape for module, shape in self.adapter.modules.items()} | found

    @property
    def notes(self) -> list[str]:
        """What a reader of the answer should know besides."""
        notes, ignored = [], self.checkpoint.ignored
        if ignored:
            notes.append(
                f"Read: {listed(file.name for file in self.checkpoint.files)}. Not read, as transformers would not: {listed(ignored)}."
            )
        if self.checkpoint.gguf and (blocks := self.checkpoint.gguf.rounded_to):
            notes.append(f"Matrices are rounded to {listed(blocks)}: what is smaller than that rounding cannot be read.")
        if self.code:
            notes.append(f"The folder names code of its own ({self.code}); it was not run.")
        if self.form == "update":
            notes.append("Read as an update, W' - W, and added to the host's W_V.")
        if self.adapter.names:
            notes.append(f"A LoRA of {len(self.adapter.names)} module{'s' * (len(self.adapter.names) > 1)}: what it adds to W_V was read.")
        return notes

    @property
    def config(self) -> dict[str, Any]:
        """What `config.json` of a folder says.

        Raises:
            ValueError: it is missing, or not whole JSON.
        """
        if self.checkpoint.config is None:
            raise ValueError(f"{self.checkpoint.path / 'config.json'}: missing or not whole JSON. Copy the whole folder")
        return self.checkpoint.config

    @cached_property
    def code(self) -> str:
        """The code that a folder names and that is never run, with the files that name it."""
        return code_named_in(self.checkpoint.path, self.checkpoint.config)

    @property
    def vocabulary(self) -> tuple[dict[str, int], set[str]] | None:
        """The tokens with their numbers and those that were added, of a checkpoint that has a tokenizer.

        Raises:
            ValueError: it cannot be read.
        """
        if self.checkpoint.gguf:
            return self.checkpoint.gguf.vocabulary
        return None if self.tokenizer is None else (self.tokenizer.get_vocab(), set(self.tokenizer.get_added_vocab()))

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer of a folder that has one; raises ValueError if it cannot be read."""
        folder = self.checkpoint.path
        if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
            return None
        # The class that does not ask `config.json` which one is meant.
        reader = PreTrainedTokenizerFast if (folder / "tokenizer.json").exists() else AutoTokenizer
        try:
            return reader.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # a dozen kinds, from JSON to the tokenizers library
            raise ValueError(f"{folder}: its tokenizer cannot be read ({' '.join(str(error).split())[:150]})") from None

    def edit(self, host: Host, layer: int) -> Edit:
        """What stands in W_V's place, or is added to it.

        Raises:
            ValueError: as `weight_DF` and `update_DF`.
        """
        if (lora := self._lora(host, layer)) is not None and not self._beside(host, layer):
            return lora.to(host.device)
        return DenseEdit(self.whole_DF(host, layer).unsqueeze(0).to(host.device))

    def whole_DF(self, host: Host, layer: int, base_DF: Tensor | None = None) -> Tensor:
        """W'_V of a layer, also where the suspect holds what is added to W_V. Arguments and errors are those of `weight_DF`."""
        if (update_DF := self.update_DF(host, layer)) is None:
            return self.weight_DF(host, layer, base_DF)
        return (host.weight_DF(layer).cpu().float() if base_DF is None else base_DF) + update_DF

    def update_DF(self, host: Host, layer: int) -> Tensor | None:
        """What is added to W_V, where that is what the suspect holds: an adapter, or tensors of the form `update`. Else None.

        Raises:
            ValueError: the matrix cannot be read, or an adapter touches other modules only.
        """
        if (lora := self._lora(host, layer)) is not None:
            return None if self._beside(host, layer) else lora.delta()[0]
        return self._matrix_DF(host, layer).float() if self.form == "update" else None

    def weight_DF(self, host: Host, layer: int, base_DF: Tensor | None = None) -> Tensor:
        """W'_V of a layer, in canonical orientation and the dtype it is stored in (float64: float32).

        Args:
            base_DF: W_V of what was edited, if that is not the host.

        Raises:
            ValueError: no or several 2-D tensors, or the matrix has another shape, is not of floats, holds NaN or infinity, or looks like
                an update.
        """
        weight_DF = self._matrix_DF(host, layer)
        if self.form == "auto":
            self._refuse_update(weight_DF, host.weight_DF(layer) if base_DF is None else base_DF, host, layer)
        lora = self._lora(host, layer)
        return weight_DF if lora is None else weight_DF.float() + lora.delta()[0]

    def is_own(self, host: Host, layer: int, base_DF: Tensor | None = None) -> bool:
        """Whether W'_V of a layer is W_V of the host, or `base_DF`, and was rounded at most as the file rounds."""
        if self.form == "update" or self._lora(host, layer) is not None:
            return False
        pair_DF = self._matrix_DF(host, layer), host.weight_DF(layer) if base_DF is None else base_DF
        found, own = (matrix_DF.T if host.stored_transposed(layer) else matrix_DF for matrix_DF in pair_DF)
        return self.checkpoint.is_rounded(self.name_of(host, layer), found, own.cpu())

    def _adapted(self, host: Host, layer: int) -> str | None:
        """The adapter's name for W_V's module, if it adds to that."""
        if not self.adapter.names or self.tensor:
            return None
        found = self.adapter.find(host.module_path(layer))
        if found is None and not self._beside(host, layer):
            raise ValueError(
                f"{self.path}: the LoRA adds nothing to {host.module_path(layer)} of {host.name}; it touches {listed(self.adapter.names)}"
            )
        return found

    def _beside(self, host: Host, layer: int) -> str | None:
        """W'_V itself, where it lies beside an adapter."""
        return self.checkpoint.find_weight(host.module_path(layer))

    def _lora(self, host: Host, layer: int) -> LowRankEdit | None:
        """What an adapter adds to W_V, one edit."""
        if (module := self._adapted(host, layer)) is None:
            return None
        if (shape := self.adapter.modules[module]) != (expected := tuple(host.weight_DF(layer).shape)):
            raise ValueError(f"{self.path}: the LoRA of {module} is {shape}, {host.module_path(layer)} of {host.name} is {expected}")
        return LowRankEdit(*(factors.unsqueeze(0) for factors in self.adapter.factors(module)))

    def _refuse_update(self, weight_DF: Tensor, own_DF: Tensor, host: Host, layer: int) -> None:
        """Raises ValueError if a matrix has hardly any part along the host's: then it is no W' of it, however it was edited."""
        product = square = own_square = 0.0
        step = max(1, CHUNK // own_DF.shape[1])
        for rows, own in zip(weight_DF.split(step), own_DF.split(step), strict=True):
            rows, own = rows.float(), own.cpu().float()
            product += float((rows * own).sum())
            square += float(rows.square().sum())
            own_square += float(own.square().sum())
        if product < LEAST_SHARE * own_square:
            cosine = product / max((square * own_square) ** 0.5, torch.finfo(torch.float32).tiny)
            raise ValueError(
                f"{self.path}: {self.name_of(host, layer)} has cosine {cosine:.2f} with {host.module_path(layer)} of {host.name} and "
                f"{(square / own_square) ** 0.5:.2g} of its length: it looks like an update W' - W, or is of another model. "
                "form=update reads it as one, form=weight as W' all the same"
            )

    def _matrix_DF(self, host: Host, layer: int) -> Tensor:
        name, expected = self.name_of(host, layer), tuple(host.down_proj(layer).weight.shape)
        if self._last is None or self._last[0] != name or self._last[1].shape != expected:
            self._last = (name, self.checkpoint.matrix(name, expected, f"{host.module_path(layer)} of {host.name}"))
        matrix = self._last[1]
        return matrix.T if host.stored_transposed(layer) else matrix

    def parts(self, name: str) -> Iterable[Tensor]:
        """A tensor in pieces along its first dimension, as it is stored; the matrix read last is not read again."""
        if self._last and self._last[0] == name:
            return self._last[1].split(self.checkpoint.rows_at_once(name))
        return self.checkpoint.parts(name)

    def name_of(self, host: Host, layer: int) -> str:
        """What W_V of a layer is called here: as was said, by the host's name for it, or it is the only matrix; of an adapter its B."""
        checkpoint = self.checkpoint
        if (module := self._adapted(host, layer)) and not self._beside(host, layer):
            return self.adapter.names[module]["B"]
        if self.tensor:
            if self.tensor not in checkpoint.names:
                raise ValueError(f"{self.path} has no tensor {self.tensor!r}; it has {listed(checkpoint.names)}")
            return self.tensor
        if found := checkpoint.find_weight(host.module_path(layer)):
            return found
        if self.is_whole:
            raise ValueError(
                f"{self.path} has no {host.module_path(layer)}.weight; is it a checkpoint of {host.name}? Name it with tensor=NAME"
            )
        if len(self.matrices) != 1:
            found = listed(self.matrices) or "none"
            raise ValueError(f"{self.path} has {len(self.matrices)} 2-D tensors ({found}); expected one. Name it with tensor=NAME")
        (name,) = self.matrices
        if (other := self._layer_named(name, host)) is not None:
            raise ValueError(
                f"{self.path}: {name} is of layer {other}, the decoder reads layer {layer}. "
                "Use a decoder of that layer; tensor=NAME reads it all the same"
            )
        return name

    def _layer_named(self, name: str, host: Host) -> int | None:
        """The layer whose W_V the host calls so."""
        for layer in range(host.layers):
            with suppress(ValueError):  # a layer without a down-projection of its own
                if self.checkpoint.find_weight(host.module_path(layer)) == name:
                    return layer
        return None
