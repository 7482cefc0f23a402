"""What a setting is: a field of a dataclass with its line of help and its bounds; and walks over settings and what files say of them."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import Field, field, fields, is_dataclass
from typing import Any

from decoder.utils.errors import UserError


def option(
    default: Any, help: str, kind: str | Callable[[], str] | None = None, *, least: float | None = 0, most: float | None = None
) -> Any:
    """A dataclass field with its line of help; mutable defaults are copied for every instance.

    Args:
        kind: describes an `Any`.
        least, most: bounds of a number; None for none.
    """
    return _field(default, help=help, kind=kind, least=least, most=most, path=False)


def place(default: Any, help: str) -> Any:
    """A text that names a place on this machine, or a list of them: a leading `~` is the home folder. Hub ids may be given too."""
    return _field(default, help=help, kind=None, least=None, most=None, path=True)


def _field(default: Any, **metadata: Any) -> Any:
    if isinstance(default, (list, dict)):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def group(config_class: type) -> Any:
    """A nested group of settings."""
    return field(default_factory=config_class)


def expanded(path: str | list[str]) -> str | list[str]:
    """A path, or a list of them, with the home folder in place of a leading `~`."""
    return [os.path.expanduser(one) for one in path] if isinstance(path, list) else os.path.expanduser(path)


def settings(config: Any, prefix: str = "") -> Iterator[tuple[str, Field]]:
    """Every key of a config, or of a class with its defaults, in its dotted form, with its dataclass field, in order of declaration."""
    config = config() if isinstance(config, type) else config
    for entry in fields(config):
        if is_dataclass(below := getattr(config, entry.name)):
            yield from settings(below, f"{prefix}{entry.name}.")
        else:
            yield prefix + entry.name, entry


def typed(value: Any) -> str:
    """A value as it would be typed."""
    if isinstance(value, list):
        return f"[{','.join(map(typed, value))}]"
    return {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else str(value)


def as_list(value: Any) -> list[Any]:
    """What is written as one, or as a list of several."""
    return value if isinstance(value, list) else [value]


def one_or_list(values: list[Any]) -> Any:
    """A list, or what it holds if that is one: as records have it that were made when there could be one only."""
    return values[0] if len(values) == 1 else values


def layers_text(layer: Any) -> str:
    """Layers as they are read: `1`, or `0, 1`."""
    return ", ".join(map(str, as_list(layer)))


def layers_of(key: str, value: Any) -> list[int]:
    """The layers that a setting names, one or several.

    Raises:
        UserError: they are no layers, or not in order.
    """
    layers = as_list(value)
    if not layers or not all(type(layer) is int and layer >= 0 for layer in layers) or layers != sorted(set(layers)):
        raise UserError(f"{key}={typed(value)}: expected a layer as 1, or several as [0,1], the lowest first; a grid has -m in front")
    return layers


def spelled(key: str) -> str:
    """A key whose split was written as scores name it: `splits.minimum.val/id` is `splits.minimum.val_id`."""
    return key.replace("/", "_")


def sections(keys: Iterable[str]) -> set[str]:
    """Every group that some key lies in, in its dotted form."""
    return {key[:index] for key in keys for index, letter in enumerate(key) if letter == "."}


def leaves(body: Mapping[Any, Any], groups: set[str], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of everything in nested mappings; a mapping that is no group is a value."""
    for name, value in body.items():
        key = f"{prefix}{name}"
        if key in groups and isinstance(value, Mapping):
            yield from leaves(value, groups, f"{key}.")
        else:
            yield key, value
