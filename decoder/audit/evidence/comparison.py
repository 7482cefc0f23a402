"""Holding a whole checkpoint against what it was made of, tensor by tensor."""

from collections.abc import Sequence
from statistics import median

from decoder.audit.evidence.difference import Difference
from decoder.audit.rows.keys import usable_layers
from decoder.audit.scan import Scan, differences
from decoder.audit.suspect import Suspect
from decoder.audit.verdict import Compared
from decoder.checkpoint.reader import Checkpoint
from decoder.host import Host
from decoder.utils.progress import progress

LEAST_ALIKE = 0.5
"""Cosine with the base's, of half of the matrices, below which a suspect was not made of it: another model's have next to none."""


def compare(suspect: Suspect, base: Host, kept: Checkpoint) -> tuple[Compared, list[str]]:
    """How a suspect differs from the unedited checkpoint, and what was not compared.

    Args:
        kept: what `base` was opened from.

    Raises:
        ValueError: they are of different models, also where all shapes agree, or the suspect lacks tensors.
    """
    layers = usable_layers(base)
    scanned = Scan(suspect, base, layers)
    found = []
    with progress("tensors of the checkpoint", len(scanned.own)) as advance:
        for one in differences(scanned, kept):
            found.append(one)
            advance(1)
    _refuse_another(scanned, found)
    names = {f"{base.module_path(layer)}.weight": layer for layer in layers}
    return Compared(found, names, any(_is_kept_otherwise(scanned, name, kept) for name in scanned.own)), scanned.notes


def _refuse_another(scan: Scan, found: Sequence[Difference]) -> None:
    """Raises ValueError if a suspect's matrices have next to nothing to do with the base's, whatever was done to them."""
    sizes = {name: own.dim() for name, own in scan.own.values()}
    if not (cosines := [one.cosine for one in found if sizes[one.name] > 1]):
        return
    if (alike := median(cosines)) < LEAST_ALIKE:
        raise ValueError(
            f"{scan.suspect.path}: half of its matrices have a cosine of {alike:.2f} or less with those of base "
            f"{scan.host.name}; further training, pruning and rounding leave it near 1. It is of another model: give its own base, or none"
        )


def _is_kept_otherwise(scan: Scan, name: str, base: Checkpoint) -> bool:
    """Whether a tensor's numbers are kept in another form than in the base's own file, which is not the one that the base is opened in."""
    checkpoint, (own_name, _) = scan.suspect.checkpoint, scan.own[name]
    if checkpoint.gguf and not checkpoint.gguf.tensors[name].is_reproduced:
        # Blocks that nobody can round to again are never known to hold the base's numbers.
        return True
    held = base.find(own_name)
    # What the base makes of another tensor of its own is of no account.
    return held is not None and _form(checkpoint, name) != _form(base, held)


def _form(checkpoint: Checkpoint, name: str) -> str:
    return checkpoint.gguf.tensors[name].rounding if checkpoint.gguf else str(checkpoint.dtype(name)).removeprefix("torch.")
