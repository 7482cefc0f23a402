"""Nulls: checkpoints of a host that nobody edited, and how many of them look as much edited as a suspect does.

`python -m data.perturb nulls=120` makes and audits them; here is what is kept of that.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import FiniteFloat, TypeAdapter
from typing_extensions import NotRequired, TypedDict

from decoder.host import Host
from decoder.utils.files import cache_root
from decoder.utils.json_files import Count, FromOne, read_described, write_json

FORMAT = 2
REMEDY = "make the nulls again with `python -m data.perturb nulls=120`"


class Shape(TypedDict):
    """What a checkpoint must share with the host that nulls are of."""

    family: str
    hidden_size: FromOne
    layers: FromOne
    tokens: FromOne


class Null(TypedDict):
    """One of them: what was done to it, the strength of both kinds of evidence, 1 at the threshold from which an edit is named, and the
    probability of what decoders answer, by `evidence.readings.reader_of`."""

    kind: str
    precision: str
    known: FiniteFloat
    unknown: FiniteFloat
    read: NotRequired[dict[str, FiniteFloat]]


class _Described(TypedDict):
    format: int
    host: str
    shape: Shape
    subjects: Count
    nulls: list[Null]


_DESCRIPTION = TypeAdapter(_Described)


@dataclass(frozen=True)
class Nulls:
    """Nulls of one host, audited with lists of `subjects` names."""

    host: str
    shape: Shape
    subjects: int
    nulls: Sequence[Null]

    def save(self, path: Path) -> None:
        write_json(path, {"format": FORMAT} | asdict(self))

    def read_by(self, reader: str, but: str = "") -> list[float]:
        """Probabilities of what a decoder answers, to all kinds but one; empty if it did not read all of them."""
        if not all(reader in one.get("read", {}) for one in self.nulls):
            return []
        return [one["read"][reader] for one in self.nulls if one["kind"] != but]

    def against(self, base: str, strength: float, read: Sequence[float] = ()) -> dict[str, Any]:
        """How many nulls reach a strength, of how many, and the p-value of that; `base` is `known` or `unknown`.

        Args:
            read: of each null what decoders that had a say in it read there, in thresholds.
        """
        reached = [one for n, one in enumerate(self.nulls) if max([one[base], *read[n : n + 1]]) >= strength]
        kinds = sorted({one["kind"] for one in reached})
        return {
            "host": self.host,
            "n": len(self.nulls),
            "reached": len(reached),
            "p": (len(reached) + 1) / (len(self.nulls) + 1),
            "kinds": kinds,
        }


def read_nulls(path: Path) -> Nulls:
    """What `Nulls.save` wrote.

    Raises:
        ValueError: it is missing or damaged, or holds none.
    """
    try:
        said = read_described(path, FORMAT, _DESCRIPTION, REMEDY)
    except OSError as error:
        raise ValueError(f"nulls={path} cannot be read ({error.strerror}); {REMEDY}") from None
    if not said["nulls"]:
        raise ValueError(f"{path}: no nulls came, expected one or more; {REMEDY}")
    return Nulls(**{name: value for name, value in said.items() if name != "format"})


def shape_of(host: Host) -> Shape:
    return {"family": host.model_type, "hidden_size": host.hidden_size, "layers": host.layers, "tokens": len(host.tokenizer)}


def place_of(host: Host, cache_dir: str | None) -> Path:
    """Where a host's nulls lie in the cache."""
    return cache_root(cache_dir) / "nulls" / f"{host.name}-{host.fingerprint}.json"


def nulls_for(host: Host, given: str | None, cache_dir: str | None, base: Host | None = None) -> Nulls | None:
    """The nulls to hold a suspect against: those that are given, else the cache's, of its base or of a host that looks like it; else none.

    Raises:
        ValueError: those that are given cannot be read, or are of another model.
    """
    if given:
        found = read_nulls(Path(given).expanduser())
        if found.shape != shape_of(host):
            raise ValueError(
                f"nulls={given} are of {found.host}, {_told(found.shape)}; the suspect is {_told(shape_of(host))}. Make its own"
            )
        return found
    own = base.fingerprint if base is not None else ""
    files = sorted((cache_root(cache_dir) / "nulls").glob("*.json"), key=lambda file: (not file.stem.endswith(f"-{own}"), file.name))
    for file in files:
        # What another version or a killed program left there is of no account to who did not ask for it.
        with suppress(ValueError):
            if (found := read_nulls(file)).shape == shape_of(host):
                return found
    return None


def _told(shape: Mapping[str, Any]) -> str:
    return f"{shape['family']} of width {shape['hidden_size']}, {shape['layers']} layers, {shape['tokens']} tokens"
