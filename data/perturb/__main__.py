"""Writes a changed checkpoint: `python -m data.perturb host=pocket kind=lora rank=4 out=FOLDER`.

`python -m data.perturb host=pocket nulls=120` writes none: it makes so many that nobody edited, and keeps how much they look edited.
"""

import inspect
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decoder.config import FactsConfig, TrainConfig
from decoder.config.commands import PerturbConfig
from decoder.config.compose import compose
from decoder.export.collection import is_collection, read_index
from decoder.utils.errors import UserError, run_command
from decoder.utils.files import refuse_file

if TYPE_CHECKING:
    from data.perturb.recipe import Planted
    from decoder.host import Host

OWN = ("lr", "steps", "batch_size", "optimizer", "rank", "modules", "share", "weight", "size", "count", "cosine")
"""Settings of single kinds."""
OF_NULLS = ("subjects", "decoder", "device")
"""Settings of nulls alone."""


@run_command
def main(argv: list[str] | None = None) -> None:
    cfg = compose(PerturbConfig, "perturb", sys.argv[1:] if argv is None else argv)
    if cfg.nulls:
        return _write_nulls(cfg)
    if not cfg.out:
        raise UserError("out= is missing: give the folder to write")
    if Path(cfg.out).exists():
        raise UserError(f"out={cfg.out}: it is there already, and nothing is written over. Give a new folder")
    if given := _changed(cfg, OF_NULLS):
        raise UserError(f"{given[0]}={getattr(cfg, given[0])} is about nulls: give nulls=120 as well, or leave it out")
    if (cfg.edit is None) != (cfg.store is None):
        raise UserError("store= and edit= go together: the store of an edit, and its row or edit_id")
    if cfg.edit is None and cfg.scale != PerturbConfig.scale:
        raise UserError(f"scale={cfg.scale:g} is how much of an edit is planted: give store= and edit=, or leave it out")
    refuse_file("out", Path(cfg.out))
    # The command line is good; only now import what takes seconds.
    from data.facts.load import load_facts
    from data.hosts import open_host
    from data.perturb.recipe import Recipe, write
    from data.perturb.text import fact_text, read_text
    from decoder.utils.terminal import quiet

    quiet()
    settings, texts = _settings(cfg), []
    if "steps" in settings:
        texts = read_text(Path(cfg.text)) if cfg.text else fact_text(load_facts(FactsConfig()), cfg.seed)
    elif cfg.text:
        raise UserError(f"kind={cfg.kind} is not trained on text: leave out text=")
    host = open_host(TrainConfig(host=cfg.host, cache_dir=cfg.cache_dir))
    write(host, Recipe(cfg.kind, settings, cfg.seed, cfg.precision, _planted(cfg, host)), Path(cfg.out), texts)
    print(cfg.out)


def _write_nulls(cfg: PerturbConfig) -> None:
    taken = ("host", "cache_dir", "nulls", "seed", "out", *OF_NULLS)
    if given := _changed(cfg, [field.name for field in fields(cfg) if field.name not in taken]):
        raise UserError(f"nulls= draws what is done to each checkpoint, and edits none: leave out {'=, '.join(given)}=")
    if cfg.out and Path(cfg.out).is_dir():
        raise UserError(f"out={cfg.out}: it is a folder; give a file in it, as {cfg.out}/nulls.json")
    if cfg.out:
        refuse_file("out", Path(cfg.out).parent)
    if cfg.decoder:
        from decoder.export.voters import read_voters

        # What is no decoder is refused before a host is opened, or made.
        (read_index if is_collection(cfg.decoder) else read_voters)(cfg.decoder)
    from data.facts.load import load_pocket
    from data.hosts import open_host
    from data.perturb.nulls import made_nulls
    from decoder.audit.candidates import read_subjects
    from decoder.audit.evidence.nulls import place_of
    from decoder.export.opened import check_device
    from decoder.utils.terminal import quiet

    quiet()
    check_device(cfg.device)
    facts = load_pocket()
    names = read_subjects(cfg.subjects) if cfg.subjects else [*dict.fromkeys(fact.subject for fact in facts.facts)]
    train = TrainConfig(host=cfg.host, cache_dir=cfg.cache_dir)
    train.trainer.accelerator = "gpu" if cfg.device.startswith("cuda") else "cpu"
    host = open_host(train)
    place = Path(cfg.out) if cfg.out else place_of(host, cfg.cache_dir)
    readers = {}
    if cfg.decoder:
        from decoder.audit.decoded.readers import readers_of_hosts

        readers = readers_of_hosts(cfg.decoder, host, cfg.device)
    made_nulls(host, facts, names, cfg.nulls, cfg.seed, readers).save(place)
    print(place)


def _changed(cfg: PerturbConfig, names: Sequence[str]) -> list[str]:
    """Those of some settings that are not as they usually are."""
    usual = PerturbConfig()
    return [name for name in names if getattr(cfg, name) != getattr(usual, name)]


def _settings(cfg: PerturbConfig) -> dict[str, Any]:
    """The settings given for the kind, and its own defaults.

    Raises:
        UserError: one is given that the kind does not take.
    """
    from data.perturb.kinds import KINDS

    takes = {name: one.default for name, one in inspect.signature(KINDS[cfg.kind]).parameters.items() if name in OWN}
    given = {name: value for name in OWN if (value := getattr(cfg, name)) is not None}
    if other := given.keys() - takes.keys():
        raise UserError(f"kind={cfg.kind} takes no {min(other)}=; it takes {', '.join(takes) or 'no settings of its own'}")
    return takes | given


def _planted(cfg: PerturbConfig, host: "Host") -> "Planted | None":
    if cfg.edit is None:
        return None
    from data.perturb.recipe import planted
    from data.store.store import EditStore

    store = EditStore(cfg.store)
    if cfg.edit.isdecimal():
        return planted(host, store, int(cfg.edit), cfg.scale)
    rows = store.table().index[store.table()["edit_id"] == cfg.edit]
    if not len(rows):
        raise UserError(f"edit={cfg.edit}: store {store.path} has no such edit_id. Give one, or a row from 0 to {len(store) - 1}")
    return planted(host, store, int(rows[0]), cfg.scale)


if __name__ == "__main__":
    main()
