"""Makes a store of edits that other tools made: `python -m data.import_edits host=... edited=PATH facts=PATH store=FOLDER`."""

import sys
from collections import Counter

from decoder.config import TrainConfig
from decoder.config.commands import ImportConfig
from decoder.config.compose import compose
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
    from decoder.utils.terminal import quiet

    quiet()
    store = import_edits(cfg, open_host(TrainConfig(host=cfg.host, cache_dir=cfg.cache_dir)))
    ranks = Counter(note["rank"] for note in store.manifest["imported"])
    forms = ", ".join(f"{count} of rank {rank}" if rank else f"{count} whole" for rank, count in sorted(ranks.items(), key=str))
    print(f"{len(store)} edits of layer {store.manifest['layer']} ({forms}), {len(store.manifest['skipped'])} skipped\n{store.path}")


if __name__ == "__main__":
    main()
