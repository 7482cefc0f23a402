"""What `manifest.json` says of a store: who made it of what, with which settings, and the hashes of its files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter
from typing_extensions import NotRequired, TypedDict

from data.store.disagreement import disagreement
from decoder.utils.files import sha256_of, short_hash
from decoder.utils.json_files import Count, read_described

FORMAT = 1
IMPORTED = "imported"  # the editor of edits that other tools made


class MadeOn(TypedDict):
    id: NotRequired[str]
    fingerprint: str


class MadeBy(TypedDict):
    name: str
    settings: NotRequired[dict[str, Any]]


class Requests(TypedDict):
    count: Count


class Manifest(TypedDict):
    """`manifest.json` of a store of edits, as far as any store is used. Edits of several layers have `layers` in place of `layer`."""

    host: MadeOn
    layer: NotRequired[Count]
    layers: NotRequired[Annotated[list[Count], Field(min_length=2)]]
    editor: MadeBy
    files: dict[str, str]
    facts: NotRequired[dict[str, str]]
    requests: NotRequired[Requests]
    parquet: NotRequired[dict[str, Count]]


MANIFEST = TypeAdapter(Manifest)


def fingerprint_of(files: Mapping[str, str]) -> str:
    """12 hex digits over the hashes of a store's data files."""
    return short_hash({name: digest for name, digest in files.items() if name.endswith((".arrow", ".safetensors"))})


def layers_of(manifest: Mapping[str, Any]) -> list[int]:
    return manifest["layers"] if "layers" in manifest else [manifest["layer"]]


class Described:
    """A store as its manifest describes it, however its edits are read."""

    path: str | Path
    manifest: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        return fingerprint_of(self.manifest["files"])

    @property
    def layers(self) -> list[int]:
        """The edited layers of every host, the lowest first."""
        return layers_of(self.manifest)

    def check(self, asked: Mapping[str, Any]) -> None:
        """Raises ValueError, naming all settings that differ, if the manifest is not what is asked."""
        if found := disagreement(self.manifest, asked):
            raise ValueError(f"store {self.path}: made with {', '.join(found)}. Give these settings, another store=, or make it anew")


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a store.

    Raises:
        ValueError: there is none, it is of another format, or an entry is missing or of a wrong kind; the file is named.
    """
    file = path / "manifest.json"
    if not file.exists():
        raise ValueError(f"{path} is no store of edits: there is no manifest.json. Give a folder made by `python -m data.produce`")
    remedy = "make the store anew, or copy it whole"
    manifest = read_described(file, FORMAT, MANIFEST, remedy)
    if "layer" not in manifest and "layers" not in manifest:
        raise ValueError(f"{file}: it lacks layer; {remedy}")
    return manifest


def check_files(path: Path, files: Mapping[str, str]) -> None:
    """Raises ValueError, naming the file, if one is missing or is not the one that was hashed."""
    for name, expected in files.items():
        if not (path / name).exists():
            raise ValueError(f"store {path}: {name} is missing. The other files are as they were; make the store anew to complete it")
        if sha256_of(path / name) != expected:
            raise ValueError(f"store {path}: {name} is cut short or changed (its sha256 is not the manifest's). Make the store anew")
