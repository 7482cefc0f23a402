"""Makes a store of edits that other tools made: `python -m data.import_edits host=... edited=PATH facts=PATH store=FOLDER`."""

import sys
from collections import Counter
from pathlib import Path

from decoder.config import TrainConfig
from decoder.config.commands import ImportConfig
from decoder.config.compose import compose
from decoder.config.options import as_list
from decoder.utils.errors import UserError, run_command


@run_command
def main(argv: list[str] | None = None) -> None:
    cfg = compose(ImportConfig, "import_edits", sys.argv[1:] if argv is None else argv)
    for name in ("edited", "facts", "store"):
        if not getattr(cfg, name):
            raise UserError(f"{name}= is missing; --help says what it is")
    # The command line is good; only now import what takes seconds.
    from data.hosts import open_host
    from data.import_edits.sources import import_edits
    from data.store.writer import refuse_place
    from decoder.utils.terminal import quiet

    quiet()
    refuse_place(Path(cfg.store).expanduser())
    store = import_edits(cfg, open_host(TrainConfig(host=cfg.host, cache_dir=cfg.cache_dir)))
    ranks = Counter(" and ".join(map(_form, as_list(note["rank"]))) for note in store.manifest["imported"])
    forms = ", ".join(f"{count} {form}" for form, count in sorted(ranks.items()))
    layers = ", ".join(map(str, store.layers))
    print(f"{len(store)} edits of layer {layers} ({forms}), {len(store.manifest['skipped'])} skipped\n{store.path}")


def _form(rank: int | None) -> str:
    return "whole" if rank is None else f"of rank {rank}"


if __name__ == "__main__":
    main()
