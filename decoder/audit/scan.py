"""How far a suspect's tensors are from the host's: each is read once, and W_V's go to whoever asked for them.

Shape letters: D rows, F columns.
"""

from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from decoder.audit.evidence.difference import Difference, difference
from decoder.audit.suspect import Suspect
from decoder.checkpoint.reader import Checkpoint
from decoder.edit import Edit
from decoder.host import Host
from decoder.utils.errors import listed

TRAINED = 1e-3  # relative distance of a tensor above which somebody has trained it further
SIZES = ("model_type", "hidden_size", "n_embd", "num_hidden_layers", "n_layer")


class Scan:
    """A suspect held against one host: config, tokenizer, names and shapes of a checkpoint at once, its tensors by `read_once`.

    Attributes:
        layers: those whose W'_V is wanted, by its name in the suspect.
        own: the host's name and tensor for each in the suspect; none if there is no checkpoint around the matrix.
        distance: of every tensor from the host's, relative to the host's own length, by the host's name.
        notes: what was not compared, and why that is no fault.

    Raises:
        ValueError: the folder is of another family, size or tokenizer, or lacks tensors of the host.
    """

    def __init__(self, suspect: Suspect, host: Host, layers: Collection[int]) -> None:
        self.suspect, self.host, self.notes = suspect, host, []
        self.own: dict[str, tuple[str, Tensor]] = {}
        self.distance: dict[str, float] = {}
        if suspect.is_whole:
            self._compare_config()
            self._compare_tokenizer()
        self.layers = {suspect.name_of(host, layer): layer for layer in layers}
        if suspect.is_whole:
            self._compare_shapes({self._edited(layer) for layer in layers})

    def _edited(self, layer: int) -> str:
        return f"{self.host.module_path(layer)}.weight"

    def _compare_shapes(self, edited: Collection[str]) -> None:
        """Fills `own`. Of embeddings that were padded or cut the shared rows are kept."""
        suspect, host = self.suspect, self.host
        tied = host.model.get_output_embeddings().weight is host.model.get_input_embeddings().weight
        for name, tensor in host.model.state_dict().items():
            found = suspect.checkpoint.find(name)
            fused = host.family.fused and host.family.fused in name
            absent_by_right = fused or (tied and name == "lm_head.weight")
            if found is None and not absent_by_right and name not in edited:
                raise ValueError(f"{suspect.path} has no tensor {name}; it is no whole checkpoint of {host.name}")
            if found is None:
                continue
            shape = suspect.checkpoint.shape(found)
            if shape == tuple(tensor.shape) or (name in self._vocabulary_tensors and shape[1:] == tuple(tensor.shape[1:])):
                self.own[found] = (name, tensor)
                self._compare_rows(found, shape, tensor, name)
            elif found not in self.layers:
                raise ValueError(f"{suspect.path}: {found} is {shape}, {host.name} has {tuple(tensor.shape)}. It is of another model")

    @cached_property
    def _vocabulary_tensors(self) -> set[str]:
        """Names of what has a row a token."""
        embeddings, model = self.host.model.get_input_embeddings(), self.host.model
        return {f"{path}.weight" for path, module in model.named_modules() if module is embeddings} | {
            f"lm_head.{kind}" for kind in ("weight", "bias")
        }

    def _compare_rows(self, found: str, shape: tuple[int, ...], tensor: Tensor, name: str) -> None:
        said = self.suspect.config.get("vocab_size", shape[0])
        if name in self._vocabulary_tensors and said != shape[0] and shape[0] == len(tensor):
            raise ValueError(f"{self.suspect.path}: vocab_size is {said}, {found} has {shape[0]} rows. It is of another model")
        if shape[:1] != tuple(tensor.shape[:1]):
            self.notes.append(
                f"{found} has {shape[0]} rows, the host's {len(tensor)}: the {min(shape[0], len(tensor))} of both were compared."
            )

    def _compare_config(self) -> None:
        config, own, file = self.suspect.config, self.host.model.config.to_dict(), self.suspect.checkpoint.gguf
        if file and file.family.gguf != self.host.family.gguf:
            raise ValueError(
                f"{self.suspect.path}: a file of {file.model_type}, the host {self.host.name} is of {self.host.model_type}. "
                "It is of another model"
            )
        for field in SIZES:
            if field in config and field in own and config[field] != own[field]:
                code = self.suspect.code
                raise ValueError(
                    f"{self.suspect.path}: {field} is {config[field]}, the host {self.host.name} has {own[field]}. "
                    "It is of another model" + (f"; its own code ({code}) is never run" if code else "")
                )

    def _compare_tokenizer(self) -> None:
        """Words of the same number must be the same; what was added to either is a note."""
        if (theirs := self.suspect.vocabulary) is None:
            return
        found, own, added = theirs[0], self.host.tokenizer.get_vocab(), theirs[1] | set(self.host.tokenizer.get_added_vocab())
        words = [{number: token for token, number in tokens.items() if token not in added} for tokens in (found, own)]
        if any(words[0][number] != words[1][number] for number in words[0].keys() & words[1].keys()):
            raise ValueError(
                f"{self.suspect.path}: its tokenizer has other tokens than that of {self.host.name} ({len(found)}). It is of another model"
            )
        for more, fewer, what in ((found, own, "that the host's has not"), (own, found, "of the host's fewer")):
            if extra := sorted(more.keys() - fewer.keys(), key=more.__getitem__):
                self.notes.append(f"Its tokenizer has {len(extra)} token{'s' * (len(extra) > 1)} {what}: {listed(extra)}.")

    def summary(self, *layers: int) -> dict[str, Any]:
        """The tensors but W_V of some layers: how many, which is farthest, which were trained further, farthest first."""
        edited = {self._edited(layer) for layer in layers}
        rest = {name: far for name, far in self.distance.items() if name not in edited}
        trained = sorted((name for name, far in rest.items() if not far <= TRAINED), key=lambda name: -rest[name])
        farthest = max(rest, key=rest.__getitem__, default=None)
        return {
            "compared": len(rest),
            "farthest": farthest,
            "distance": rest[farthest] if farthest else 0.0,
            "further_trained": trained[:10],
            "further_trained_count": len(trained),
        }


def read_once(scans: Sequence[Scan]) -> Iterator[tuple[Scan, int, Edit | ValueError]]:
    """Reads every tensor of a suspect once for all hosts it is held against; gives each W'_V, or why there is none, as it comes."""
    for found in dict.fromkeys(name for scan in scans for name in (*scan.own, *scan.layers)):
        for scan in scans:
            if (layer := scan.layers.get(found)) is not None:
                try:
                    yield scan, layer, scan.suspect.edit(scan.host, layer)
                except ValueError as error:
                    yield scan, layer, error
        held = [(scan, *scan.own[found]) for scan in scans if found in scan.own]
        for (scan, name, _), far in zip(held, _distances(scans[0].suspect, found, [own for *_, own in held]), strict=True):
            scan.distance[name] = far


def _distances(suspect: Suspect, found: str, owns: Sequence[Tensor]) -> list[float]:
    """‖T' - T‖ / ‖T‖ over the rows of both, for each T, which is rounded as T' is: rounding is no training."""
    squares, row = [[0.0, 0.0] for _ in owns], 0
    for part in suspect.parts(found) if owns else ():
        for sums, own in zip(squares, owns, strict=True):
            rows = (own[row : row + len(part)] if part.dim() else own).cpu()
            shared = part[: len(rows)] if part.dim() else part
            rows = suspect.checkpoint.as_stored(found, rows, row).double()
            sums[0] += float((shared.double() - (0 if suspect.form == "update" else rows)).square().sum())
            sums[1] += float(rows.square().sum())
        row += len(part) if part.dim() else 0
    return [(square / own_square) ** 0.5 if own_square else float(square > 0) for square, own_square in squares]


def differences(scan: Scan, base: Checkpoint | None = None) -> Iterator[Difference]:
    """Reads every tensor of a suspect once; what was done to each, by the host's name. Raises ValueError at NaN or infinity.

    Where `base`, what the host was opened from, is coarser than the suspect, what its rounding explains is no difference.
    """
    edited, checkpoint = {scan._edited(layer): layer for layer in scan.layers.values()}, scan.suspect.checkpoint
    for found, (name, own) in scan.own.items():
        # Blocks of few bits hide an edit whose entries are smaller than a step; their noise is another direction everywhere.
        held = coarser_than(scan, found, base)
        is_blocks = own.dim() == 2 and (checkpoint.noise(found) is not None or (held is not None and base.noise(held) is not None))
        is_down, is_matrix = name in edited, own.dim() == 2 and name not in scan._vocabulary_tensors
        transposed, parts = is_down and scan.host.stored_transposed(edited[name]), _parts(scan, found, own, base, held)
        step = torch.finfo(checkpoint.dtype(found)).eps if is_matrix and not is_blocks else 0.0
        yield difference(name, parts, is_matrix=is_matrix, step=step, is_blocks=is_blocks, is_down=is_down, transposed=transposed)


def coarser_than(scan: Scan, found: str, base: Checkpoint | None) -> str | None:
    """The base's name for a tensor of the suspect that the base keeps in fewer bits; else None."""
    if (held := base.find(scan.own[found][0]) if base else None) is None:
        return None
    blocks = base.noise(held) is not None and scan.suspect.checkpoint.noise(found) is None
    return held if blocks or base.dtype(held).itemsize < scan.suspect.checkpoint.dtype(found).itemsize else None


def _parts(scan: Scan, found: str, own: Tensor, base: Checkpoint | None, held: str | None) -> Iterator[tuple[Tensor, ...]]:
    """A tensor piece by piece, as `difference` takes it; `held` is its name in the base, if that is coarser."""
    row = 0
    for part in scan.suspect.parts(found):
        shared = part[: max(0, len(own) - row)] if part.dim() else part
        rows = (own[row : row + len(shared)] if part.dim() else own).cpu()
        if not shared.isfinite().all():
            raise ValueError(f"{scan.suspect.path}: {found} holds NaN or infinity; expected finite numbers")
        stored, explained = scan.suspect.checkpoint.as_stored(found, rows, row).float(), torch.tensor(False)
        if held and part.dim():
            blocks = base.gguf.tensors[held] if base.gguf else None
            explained = blocks.explains(shared, row) if blocks else base.as_stored(held, shared, row).float() == rows.float()
        yield shared.float(), torch.where(explained, shared.float(), stored), rows.float()
        row += len(part) if part.dim() else 0
