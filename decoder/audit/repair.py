"""A suspect without its edits, written as a checkpoint of its own: one tensor of each edited layer is another, all else is copied.

Shape letters: N rows and M columns of a matrix as its file has it, D hidden width, F MLP width, R rank.
"""

import json
import math
import os
import shutil
import struct
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from decoder.audit.suspect import Suspect
from decoder.checkpoint.folders import PICKLES
from decoder.checkpoint.gguf_header import SOURCE
from decoder.checkpoint.reader import FLOATS, Checkpoint
from decoder.dense import DenseEdit
from decoder.edit import LowRankEdit, RankOneEdit
from decoder.host import Host, tensor_bytes
from decoder.utils.files import whole_folder
from decoder.utils.json_files import write_json

NOTE = "repaired.json"
FORMAT = 1
WEIGHTS = (*PICKLES, ".bin.index.json", ".safetensors", ".gguf", ".npz", ".onnx", ".h5", ".msgpack", ".ot")

Reversal = RankOneEdit | LowRankEdit | DenseEdit


@dataclass(frozen=True)
class Changed:
    """A tensor that is another one, the file of the folder that holds it, and its Frobenius norms."""

    layer: int
    file: str
    tensor: str
    norm_before: float
    norm_after: float


@dataclass(frozen=True)
class Repaired:
    """What was written.

    Attributes:
        changed: one a layer.
        left_out: weights beside those that are read: nobody repaired them.
        notes: what a reader should know besides.
    """

    folder: Path
    changed: list[Changed]
    left_out: list[str]
    notes: list[str]


def repair(
    suspect: Suspect, host: Host, reversals: Mapping[int, Reversal], folder: str | Path, said: Mapping[str, Any] | None = None
) -> Repaired:
    """Writes a suspect with the matrices of some layers repaired as `folder`, whole or not at all; the suspect is only read.

    Matrices are read and written by rows, in the dtype they are stored in. Config, tokenizer and all other files are copied. Of a GGUF file
    the folder that its host was opened from is repaired. `repaired.json` says what was changed.

    Args:
        host: the suspect itself, opened; of a file with one matrix the host that this is of.
        reversals: layer -> one edit that takes its edits out, or the unedited matrix.
        said: entries for the note, beside what is known here.

    Raises:
        ValueError: the folder exists or lies in the suspect, or a matrix is not one of floats in a safetensors file, or an adapter's.
    """
    checkpoint, folder, notes = suspect.checkpoint, Path(folder).expanduser(), []
    if checkpoint.gguf is not None:
        notes.append(f"{suspect.path} is a GGUF file: what was repaired is its host in {str(host.dtype).removeprefix('torch.')}.")
        checkpoint = Checkpoint(host.path)
    places = {layer: _place(suspect, checkpoint, host, layer) for layer in reversals}
    refuse(suspect, folder)
    with whole_folder(folder) as unfinished:
        left_out, changed = _copy(checkpoint, unfinished), []
        for layer, (file, name) in places.items():
            norms = _write(unfinished / file, name, _repaired(checkpoint, name, host, layer, reversals[layer]))
            changed.append(Changed(layer, file, name, *norms))
        tensors = [asdict(one) for one in changed]
        # What there is of a single one stands where it stood before there could be several. Of several nothing does: one is not all.
        single = tensors[0] if len(tensors) == 1 else {}
        rest = {"tensors": tensors, "left_out": left_out, "notes": notes} | dict(said or {})
        write_json(unfinished / NOTE, {"format": FORMAT, "suspect": str(suspect.path)} | single | rest)
    return Repaired(folder, changed, left_out, notes)


def _place(suspect: Suspect, checkpoint: Checkpoint, host: Host, layer: int) -> tuple[str, str]:
    """The file that holds W_V, and the tensor's name there."""
    if suspect.adapter.names or suspect.form == "update":
        raise ValueError(f"{suspect.path} holds what is added to W_V, not W_V itself: leave it off, or merge it first and repair that")
    name = suspect.name_of(host, layer) if checkpoint is suspect.checkpoint else checkpoint.find_weight(host.module_path(layer))
    file = next((file for file in checkpoint.files if file.suffix == ".safetensors" and name in _names(file)), None)
    if file is None:
        raise ValueError(f"{suspect.path}: only safetensors files can be repaired. Save it as one")
    if (dtype := checkpoint.dtype(name)) not in FLOATS:
        raise ValueError(f"{suspect.path}: {name} is {dtype}, expected floats of 16, 32 or 64 bits. Save it in bfloat16")
    return file.name, name


def _names(file: Path) -> list[str]:
    with safe_open(file, "pt") as opened:
        return list(opened.keys())


def refuse(suspect: Suspect, folder: Path, base: str | Path | None = None) -> None:
    """Raises ValueError if a repaired suspect must not be written there; not in the checkpoint as it was before either."""
    if folder.exists() or folder.is_symlink():
        raise ValueError(f"repair={folder}: exists already, and nothing is written over. Give another folder")
    above = next(part for part in folder.absolute().parents if part.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise ValueError(f"repair={folder}: {above} is no folder that can be written in. Give another folder")
    for name, own in (("suspect", suspect.checkpoint.path), ("base", base)):
        if own is not None and folder.resolve().is_relative_to(Path(own).expanduser().resolve()):
            raise ValueError(f"repair={folder}: lies in the {name}, which is only read. Give a folder elsewhere")


def _copy(checkpoint: Checkpoint, folder: Path) -> list[str]:
    """Copies the files that are read, and all that are no weights; the names of other weights."""
    if not checkpoint.path.is_dir():
        shutil.copyfile(checkpoint.path, folder / checkpoint.path.name)
        return []
    left_out = []
    for path in sorted(checkpoint.path.rglob("*")):
        name = path.relative_to(checkpoint.path)
        # Who finds the note on a GGUF file reads that file, edit and all.
        if path.is_dir() or name.parts[0].startswith(".") or str(name) == SOURCE:
            continue
        if name.name.endswith(WEIGHTS) and path not in checkpoint.files:
            left_out.append(str(name))
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / name)
    return left_out


def _repaired(checkpoint: Checkpoint, name: str, host: Host, layer: int, reversal: Reversal) -> Iterator[tuple[Tensor, Tensor]]:
    """The matrix as its file has it and as it is to be, some rows at a time."""
    transposed, row = host.stored_transposed(layer), 0
    if isinstance(reversal, DenseEdit):
        base_NM = reversal.weight_BDF[0].T if transposed else reversal.weight_BDF[0]
    else:
        low_rank = isinstance(reversal, LowRankEdit)
        factors = (reversal.value_BRD[0], reversal.key_BRF[0]) if low_rank else (reversal.value_BD, reversal.key_BF)
        left_RN, right_RM = (factor.double().cpu() for factor in (factors[::-1] if transposed else factors))
    for part_NM in checkpoint.parts(name):
        rows = slice(row, row + len(part_NM))
        changed_NM = base_NM[rows] if isinstance(reversal, DenseEdit) else part_NM.double() + left_RN[:, rows].T @ right_RM
        yield part_NM, changed_NM.to(part_NM)
        row += len(part_NM)


def _write(file: Path, name: str, parts: Iterator[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """Puts rows in the place of a tensor's own in a safetensors file, whose header stays; Frobenius norms before and after.

    Raises:
        ValueError: some of the rows are not finite in the file's dtype.
    """
    squares = [0.0, 0.0]
    with file.open("r+b") as opened:
        length = struct.unpack("<Q", opened.read(8))[0]
        opened.seek(8 + length + json.loads(opened.read(length))[name]["data_offsets"][0])
        for found_NM, repaired_NM in parts:
            if not torch.isfinite(repaired_NM).all():
                raise ValueError(f"{name} without the edit is too large for {found_NM.dtype}. Save the suspect in float32")
            opened.write(tensor_bytes(repaired_NM))
            squares = [square + float(part.double().square().sum()) for square, part in zip(squares, (found_NM, repaired_NM), strict=True)]
    return math.sqrt(squares[0]), math.sqrt(squares[1])
