"""One suspect: a matrix in a file, or a checkpoint folder, opened once for every decoder that reads it.

Shape letters: D hidden width, F MLP width.
"""

import json
from collections.abc import Iterable
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from decoder.checkpoint.reader import CHUNK, Checkpoint
from decoder.dense import DenseEdit
from decoder.host import Host


class Suspect:
    """W'_V of any layer, out of what a stranger saved. Nothing but headers is read before it is asked for.

    Args:
        path: safetensors or npz file, or checkpoint folder.
        tensor: the matrix's name, if a file holds several and not under the host's own name.

    Raises:
        ValueError: there is nothing to read (pickles are never loaded).
    """

    def __init__(self, path: str | Path, tensor: str | None = None) -> None:
        self.path, self.tensor = path, tensor
        self.checkpoint = Checkpoint(path)
        self._last: tuple[str, Tensor] | None = None

    @property
    def is_folder(self) -> bool:
        return self.checkpoint.path.is_dir()

    @cached_property
    def matrices(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of what may be W'_V of a layer."""
        return {name: shape for name, shape in self.checkpoint.matrices.items() if self.tensor in (None, name)}

    @cached_property
    def config(self) -> dict[str, Any]:
        """What `config.json` of a folder says.

        Raises:
            ValueError: it is missing, or not whole JSON.
        """
        file = self.checkpoint.path / "config.json"
        try:
            return dict(json.loads(file.read_text(encoding="utf-8")).items())
        except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
            raise ValueError(f"{file}: missing or not whole JSON ({type(error).__name__}). Copy the whole folder") from None

    @cached_property
    def vocabulary(self) -> dict[str, int] | None:
        """Tokens and their numbers; None where a folder has no tokenizer.

        Raises:
            ValueError: it cannot be read.
        """
        folder = self.checkpoint.path
        if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
            return None
        # The class that does not ask `config.json` which one is meant.
        reader = PreTrainedTokenizerFast if (folder / "tokenizer.json").exists() else AutoTokenizer
        try:
            return reader.from_pretrained(folder, local_files_only=True).get_vocab()
        except Exception as error:  # a dozen kinds, from JSON to the tokenizers library
            raise ValueError(f"{folder}: its tokenizer cannot be read ({' '.join(str(error).split())[:150]})") from None

    def edit(self, host: Host, layer: int) -> DenseEdit:
        """What stands in W_V's place.

        Raises:
            ValueError: as `weight_DF`.
        """
        return DenseEdit(self.weight_DF(host, layer).unsqueeze(0).to(host.device))

    def weight_DF(self, host: Host, layer: int) -> Tensor:
        """W'_V of a layer, in canonical orientation and the dtype it is stored in (float64: float32).

        Raises:
            ValueError: no or several 2-D tensors, or the matrix has another shape, is not of floats, or holds NaN or infinity.
        """
        name, expected = self.name_of(host, layer), tuple(host.down_proj(layer).weight.shape)
        if self._last is None or self._last[0] != name or self._last[1].shape != expected:
            self._last = (name, self.checkpoint.matrix(name, expected, f"{host.module_path(layer)} of {host.name}"))
        matrix = self._last[1]
        return matrix.T if host.stored_transposed(layer) else matrix

    def parts(self, name: str) -> Iterable[Tensor]:
        """A tensor in pieces along its first dimension, as it is stored; the matrix read last is not read again."""
        if self._last and self._last[0] == name:
            return self._last[1].split(max(1, CHUNK // self._last[1].shape[1]))
        return self.checkpoint.parts(name)

    def name_of(self, host: Host, layer: int) -> str:
        """What W_V of a layer is called here: as was said, by the host's name for it, or it is the only matrix."""
        checkpoint = self.checkpoint
        if self.tensor:
            if self.tensor not in checkpoint.names:
                raise ValueError(f"{self.path} has no tensor {self.tensor!r}; it has {', '.join(checkpoint.names[:20])}")
            return self.tensor
        if found := checkpoint.find_weight(host.module_path(layer)):
            return found
        if self.is_folder:
            raise ValueError(
                f"{self.path} has no {host.module_path(layer)}.weight; is it a checkpoint of {host.name}? Name it with tensor=NAME"
            )
        if len(self.matrices) != 1:
            found = ", ".join([*self.matrices][:20]) or "none"
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
