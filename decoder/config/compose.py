"""Composes a config from the dataclasses, `configs/` and the command line, and answers `--help` and `--cfg`.

Later wins: dataclass defaults, the group files of the `defaults:` list, that file's own values (`_self_`), the experiment file,
dotted overrides. Nothing here imports torch, so that `--help` answers at once.
"""

import difflib
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import Field, asdict, fields, is_dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_args, get_origin

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from decoder.config.editors import EDITORS, own_settings, settings_for
from decoder.config.help import FLAGS, kind, write_help
from decoder.config.options import expanded, leaves, sections, settings, spelled
from decoder.config.schema import RENAMED, TrainConfig, with_editor
from decoder.config.validate import check
from decoder.utils.errors import UserError, did_you_mean

C = TypeVar("C")
SELF, ALSO, HOSTS, CHAINS = "_self_", "also", "hosts", "chains"
TRAIN_KEYS = {key: field for editor in EDITORS for key, field in settings(with_editor(TrainConfig, editor))}
"""Every setting of a run, with those of every editor."""


class Given(NamedTuple):
    """A setting as a file or the command line gives it."""

    key: str
    value: Any
    source: str
    typed: str | None = None
    is_of_usual: bool = False
    """Whether a file gives it that names no editor: what it says of one editor alone, it says of that of the defaults."""

    @property
    def told(self) -> str:
        return self.source + (self.typed or f"{self.key}={'null' if self.value is None else self.value}")


def compose(config_class: type[C], name: str, argv: Iterable[str], page: str | None = None) -> C:
    """The checked config of a command line, as plain dataclasses.

    `name` picks `configs/<name>.yaml`, `page` the help page where it is not the one of that name.

    Raises:
        UserError: an argument or a file is not understood, or a value is out of range.
        SystemExit: code 0, after `--help` or `--cfg` has written its answer to stdout.
    """
    words = ["--help" if word == "-h" else word for word in argv]
    flags, arguments = FLAGS.keys() & words, [word for word in words if word not in FLAGS]
    if "--help" in flags:
        given = _overrides([word for word in arguments if "=" in word and not word.startswith("-")])
        write_help(page or name, OmegaConf.to_object(_compose_tree(config_class, name, given)), _options(config_class))
        raise SystemExit(0)
    if "--resolve" in flags and "--cfg" not in flags:
        raise UserError("--resolve goes with --cfg: write --cfg --resolve")
    tree = _compose_tree(config_class, name, given := _overrides(arguments))
    try:
        config = OmegaConf.to_object(tree)
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {str(error).splitlines()[0]}") from error
    _expand_paths(config)
    check(config, given)
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


def _expand_paths(config: Any) -> None:
    for key, field in settings(config):
        group, _, name = key.rpartition(".")
        holder = attrgetter(group)(config) if group else config
        if field.metadata["path"] and (path := getattr(holder, name)):
            setattr(holder, name, expanded(path))


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
        key = spelled(key)
        if key in overrides:
            raise UserError(f"{argument}: {key} came twice, first as {key}={overrides[key]}; keep one")
        overrides[key] = text
    return overrides


def _compose_tree(config_class: type[C], name: str, overrides: dict[str, str]) -> DictConfig:
    options = _options(config_class)
    given = list(_in_files(config_class, name, options, overrides))
    for key, text in overrides.items():
        if key not in options:
            given.append(Given(key, _parse(TRAIN_KEYS | dict(settings(config_class)), key, text), "", f"{key}={text}"))
    start = with_editor(config_class, _editor(given))
    tree, keys = OmegaConf.structured(start), dict(settings(start))
    if renamed := [f"{one.told}: this setting is {RENAMED[one.key]} now" for one in given if RENAMED.get(one.key) in keys]:
        raise UserError(", ".join(renamed))
    usual = type(TrainConfig().edits)
    others = set() if isinstance(getattr(start, "edits", None), usual) else {f"edits.{field.name}" for field in own_settings(usual)}
    others |= TRAIN_KEYS.keys() - keys.keys()
    for one in given:
        if not (one.is_of_usual and one.key in others):
            _assign(tree, keys, one)
    return tree


def _in_files(config_class: type[C], name: str, options: dict[str, list[str]], overrides: dict[str, str]) -> Iterator[Given]:
    """What the files say, first to last."""
    groups, own = sections(dict(settings(config_class))), _load(_folder() / f"{name}.yaml")
    order = _order(own.pop("defaults", None) or [], options, name, overrides)
    for group, option in order.items():
        source = f"configs/{name}.yaml" if group == SELF else f"configs/{group}/{option}.yaml"
        if group != SELF and option not in options[group]:
            raise UserError(f"{group}={option}: no such file in configs/{group}; {did_you_mean(option, options[group])}")
        body = own if group == SELF else _load(_folder() / group / f"{option}.yaml")
        # What a file of a group sets outside its group, as a host sets the layer that is edited by default.
        also = body.pop(ALSO, None) or {} if group not in (SELF, "experiment") else {}
        of_host = settings_for(order.get("host"), option, body.pop(HOSTS, None), overrides)
        if group == "experiment":
            body.pop(CHAINS, None)
            yield Given("experiment", option, f"{source}: ")
        found = dict(leaves(body if group in (SELF, "experiment") else {group: body}, groups))
        is_of_usual = issubclass(config_class, TrainConfig) and group != "edits" and "edits.editor" not in found
        for key, value in found.items():
            yield Given(spelled(key), value, f"{source}: ", is_of_usual=is_of_usual)
        for key, value in leaves(also, groups | sections(TRAIN_KEYS)):
            yield Given(spelled(key), value, f"{source}: {ALSO}: ", is_of_usual=True)
        for key, value in leaves(of_host, groups | sections(TRAIN_KEYS)):
            yield Given(spelled(key), value, f"{source}: {HOSTS}: {order['host']}: ")


def experiment_says(name: str, key: str) -> Any:
    """What an experiment's file has under a key of its own; None if it has nothing there, or there is no such file."""
    file = _folder() / "experiment" / f"{name}.yaml"
    return _load(file).get(key) if file.is_file() else None


def _editor(given: Iterable[Given]) -> str | None:
    """The editor that is asked for, if one is."""
    asked = [one for one in given if one.key == "edits.editor"]
    if asked and asked[-1].value not in EDITORS:
        raise UserError(f"{asked[-1].told}: no such editor; {did_you_mean(str(asked[-1].value), EDITORS)}")
    return asked[-1].value if asked else None


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


def _parse(keys: dict[str, Field], key: str, text: str) -> Any:
    """The value of an override. A text stays as typed: YAML would read a revision 00123 as the number 83."""
    if key in keys and _is_text(keys[key].type) and text[:1] not in ('"', "'"):
        return None if text in ("", "null") or (text == "~" and not keys[key].metadata["path"]) else text
    try:
        return OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]), resolve=False)["value"]
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{key}={text}: not readable; lists are written [0,1], and text with signs in quotes") from error


def _assign(tree: DictConfig, keys: dict[str, Field], one: Given) -> None:
    if one.key not in keys:
        raise UserError(f"{one.told}: {_unknown(one.key, keys)}")
    wrong = UserError(f"{one.told}: expected {kind(keys[one.key])}")
    if _is_text(keys[one.key].type) and not isinstance(one.value, str | None):
        raise wrong
    try:
        OmegaConf.update(tree, one.key, one.value, merge=False)
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
