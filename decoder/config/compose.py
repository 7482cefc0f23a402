"""Composes a config from the dataclasses, `configs/` and the command line, and answers `--help` and `--cfg`.

Later wins: dataclass defaults, the group files of the `defaults:` list, that file's own values (`_self_`), the experiment file,
dotted overrides. Nothing here imports torch, so that `--help` answers at once.
"""

import difflib
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import Field, asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from decoder.config.commands import EvaluateConfig, ExportConfig, ImportConfig, ProduceConfig, ReportConfig
from decoder.config.help import FLAGS, kind, settings, write_help
from decoder.config.schema import TrainConfig
from decoder.config.validate import check
from decoder.utils.errors import UserError, did_you_mean

C = TypeVar("C", TrainConfig, ProduceConfig, EvaluateConfig, ImportConfig, ReportConfig, ExportConfig)
SELF, ALSO = "_self_", "also"
TRAIN_KEYS = dict(settings(TrainConfig))


def compose(config_class: type[C], name: str, argv: Iterable[str], page: str | None = None) -> C:
    """The checked config of a command line, as plain dataclasses.

    `name` picks `configs/<name>.yaml`, `page` the help page where it is not the one of that name.

    Raises:
        UserError: an argument or a file is not understood, or a value is out of range.
        SystemExit: code 0, after `--help` or `--cfg` has written its answer to stdout.
    """
    flags, arguments = _split(list(argv))
    if "--help" in flags:
        write_help(page or name, OmegaConf.to_object(_compose_tree(config_class, name, {})), _options(config_class))
        raise SystemExit(0)
    if "--resolve" in flags and "--cfg" not in flags:
        raise UserError("--resolve goes with --cfg: write --cfg --resolve")
    tree = _compose_tree(config_class, name, _overrides(arguments))
    try:
        config = OmegaConf.to_object(tree)
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {str(error).splitlines()[0]}") from error
    check(config)
    if "--cfg" in flags:
        sys.stdout.write(to_yaml(config) if "--resolve" in flags else OmegaConf.to_yaml(tree))
        raise SystemExit(0)
    return config


def folders_first(argv: Iterable[str]) -> list[str]:
    """A command line whose arguments without `=` are run folders, as one with `runs=[...]`."""
    words = list(argv)
    folders = [word for word in words if "=" not in word and not word.startswith("-")]
    rest = [word for word in words if word not in folders]
    return [*([f"runs={json.dumps(folders)}"] if folders else []), *rest]


def to_dict(config: Any) -> dict[str, Any]:
    """The config as plain dicts, lists and values, for W&B and result.json."""
    return asdict(config)


def to_yaml(config: Any) -> str:
    """The config as YAML that composes back to itself."""
    return OmegaConf.to_yaml(OmegaConf.create(asdict(config)))


def _split(argv: list[str]) -> tuple[set[str], list[str]]:
    flags = {"--help" if item == "-h" else item for item in argv if item in FLAGS or item == "-h"}
    rest = [item for item in argv if item not in FLAGS and item != "-h"]
    return flags, rest


def _overrides(arguments: list[str]) -> dict[str, str]:
    overrides: dict[str, str] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if key[:1] in "-+~" and equals and key.strip("-+~"):
            raise UserError(f"{argument}: settings have no {key[0]} in front; write {key.lstrip('-+~')}={text}")
        if key.startswith("-"):
            raise UserError(f"{argument}: no such option; {did_you_mean(argument, FLAGS)}; settings are written KEY=VALUE")
        if not equals or not key:
            raise UserError(f"{argument}: expected KEY=VALUE without spaces around the `=`")
        if text.startswith("="):
            raise UserError(f"{argument}: one `=` too many; write {key}={text.lstrip('=')}")
        if key in overrides:
            raise UserError(f"{argument}: {key} came twice, first as {key}={overrides[key]}; keep one")
        overrides[key] = text
    return overrides


def _compose_tree(config_class: type[C], name: str, overrides: dict[str, str]) -> DictConfig:
    tree, keys, options = OmegaConf.structured(config_class), dict(settings(config_class)), _options(config_class)
    own = _load(_folder() / f"{name}.yaml")
    for group, option in _order(own.pop("defaults", None) or [], options, name, overrides).items():
        source = f"configs/{name}.yaml" if group == SELF else f"configs/{group}/{option}.yaml"
        if group != SELF and option not in options[group]:
            raise UserError(f"{group}={option}: no such file in configs/{group}; {did_you_mean(option, options[group])}")
        body = own if group == SELF else _load(_folder() / group / f"{option}.yaml")
        # What a file of a group sets outside its group, as a host sets the layer that is edited by default.
        also = body.pop(ALSO, None) or {} if group not in (SELF, "experiment") else {}
        for key, value in _leaves(body if group in (SELF, "experiment") else {group: body}, _sections(keys)):
            _assign(tree, keys, key, value, f"{source}: ")
        for key, value in _leaves(also, _sections(keys | TRAIN_KEYS)):
            if key in keys or key not in TRAIN_KEYS:
                _assign(tree, keys, key, value, f"{source}: {ALSO}: ")
        if group == "experiment":
            tree.experiment = option
    for key, text in overrides.items():
        if key not in options:
            _assign(tree, keys, key, _parse(keys, key, text), "", f"{key}={text}")
    return tree


def _order(entries: list[Any], options: dict[str, list[str]], name: str, overrides: dict[str, str]) -> dict[str, str]:
    """Which option of which group to merge, first to last; `_self_` stands for the file itself, the experiment is always last."""
    listed: dict[str, str] = {}
    for entry in entries:
        group, option = next(iter(entry.items())) if isinstance(entry, dict) and len(entry) == 1 else (entry, "")
        if group != SELF and (group not in options or not option):
            raise UserError(f"configs/{name}.yaml: defaults: got {entry}, expected _self_ or GROUP: NAME of {', '.join(options)}")
        listed[group] = str(option)
    listed.setdefault(SELF, "")
    chosen = {group: overrides[group] for group in options if group in overrides}
    order = {group: option for group, option in chosen.items() if group not in listed} | listed | chosen
    return {group: order[group] for group in sorted(order, key="experiment".__eq__)}


def _folder() -> Path:
    here = Path(__file__).resolve().parents[1]
    for folder in (here / "configs", here.parent / "configs"):
        if folder.is_dir():
            return folder
    raise UserError(f"{here / 'configs'}: the configs are missing; install the package again")


def _options(config_class: type) -> dict[str, list[str]]:
    groups = [field.name for field in fields(config_class) if is_dataclass(field.type) or field.name == "experiment"]
    return {group: sorted(file.stem for file in (_folder() / group).glob("*.yaml")) for group in groups if (_folder() / group).is_dir()}


def _load(path: Path) -> dict[str, Any]:
    try:
        body = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException, OSError) as error:
        raise UserError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(body, dict):
        raise UserError(f"{path}: expected keys with values, got a list")
    return body


def _sections(keys: Iterable[str]) -> set[str]:
    return {key[:index] for key in keys for index, letter in enumerate(key) if letter == "."}


def _leaves(body: dict[Any, Any], sections: set[str], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in body.items():
        key = f"{prefix}{name}"
        if key in sections and isinstance(value, dict):
            yield from _leaves(value, sections, f"{key}.")
        else:
            yield key, value


def _parse(keys: dict[str, Field], key: str, text: str) -> Any:
    """The value of an override. A text stays as typed: YAML would read a revision 00123 as the number 83."""
    if key in keys and _is_text(keys[key].type) and text[:1] not in ('"', "'"):
        return None if text in ("", "null", "~") else text
    try:
        return OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]), resolve=False)["value"]
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{key}={text}: not readable; lists are written [0,1], and text with signs in quotes") from error


def _assign(tree: DictConfig, keys: dict[str, Field], key: str, value: Any, source: str, shown: str | None = None) -> None:
    shown = shown or f"{key}={'null' if value is None else value}"
    if key not in keys:
        raise UserError(f"{source}{shown}: {_unknown(key, keys)}")
    wrong = UserError(f"{source}{shown}: expected {kind(keys[key])}")
    if _is_text(keys[key].type) and not isinstance(value, str | None):
        raise wrong
    try:
        OmegaConf.update(tree, key, value, merge=False)
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        raise wrong from error


def _unknown(key: str, keys: dict[str, Field]) -> str:
    below = [known for known in keys if known.startswith(f"{key}.")]
    if below:
        return f"{key} is a group of settings; write one of them, as {below[0]}=VALUE"
    parent = key.rpartition(".")[0]
    siblings = [known for known in keys if parent and known.startswith(f"{parent}.")]
    if siblings:
        return f"no such setting; {did_you_mean(key, siblings)}"
    namesakes = [known for known in keys if known.rpartition(".")[2] == key.rpartition(".")[2]]
    leaves = difflib.get_close_matches(key.rpartition(".")[2], {known.rpartition(".")[2] for known in keys}, n=1, cutoff=0.7)
    nearest = (
        namesakes
        or difflib.get_close_matches(key, [*keys, *{known.partition(".")[0] for known in keys}], n=1)
        or [known for known in keys if known.rpartition(".")[2] in leaves]
    )
    return "no such setting; " + (f"did you mean {' or '.join(nearest)}? " if nearest else "") + "--help lists them all"


def _is_text(annotation: Any) -> bool:
    parts = [part for part in get_args(annotation) if part is not type(None)] or [annotation]
    return get_origin(annotation) is not list and all(part is str or isinstance(part, str) for part in parts)
