"""Counted key statistics and the folder of the cache they are kept in.

Shape letter: F MLP width.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from decoder.host import Host
from decoder.utils.files import whole_file

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class KeyStatistics:
    """The non-centred second moment of the keys (float32) and the number of tokens it is the mean over."""

    moment_FF: Tensor
    count: int


def cache_files(host: Host, layers: Sequence[int], texts: Sequence[str], tokens: int, cache: Path) -> dict[int, Path]:
    """Layer -> file of its statistics, named by all that they depend on."""
    asked = hashlib.sha256(json.dumps([list(texts), tokens]).encode()).hexdigest()[:16]
    folder = Path(cache) / "keys" / f"{host.name}-{host.fingerprint}"
    return {layer: folder / f"layer{layer}-{asked}.safetensors" for layer in layers}


def read(file: Path) -> KeyStatistics | None:
    """The statistics in a file; None if there is none, or none that is whole."""
    if not file.exists():
        return None
    try:
        with safe_open(file, "pt") as tensors:
            return KeyStatistics(tensors.get_tensor("moment"), int(tensors.metadata()["count"]))
    except (SafetensorError, KeyError, TypeError) as error:
        log.warning("%s is damaged (%s): making it again", file, error)
        return None


def write(file: Path, statistics: KeyStatistics) -> None:
    with whole_file(file) as unfinished:
        save_file({"moment": statistics.moment_FF.contiguous()}, unfinished, metadata={"count": str(statistics.count)})
