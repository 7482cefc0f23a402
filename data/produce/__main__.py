"""Makes the store of edits that a config asks for: `python -m data.produce edits.layer=1`.

Several machines share its shards with `shard=1/4` to `shard=4/4`; `shard=merge` then joins what they made.
"""

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from decoder.config.commands import ProduceConfig
from decoder.config.compose import compose
from decoder.config.editors import FineTuneConfig
from decoder.utils.errors import UserError, run_command

if TYPE_CHECKING:
    from data.produce.shards import ShardMaker

MERGE = "merge"


@run_command
def main(argv: list[str] | None = None) -> None:
    cfg = compose(ProduceConfig, "train", sys.argv[1:] if argv is None else argv, page="produce")
    part = read_part(cfg.shard) if cfg.shard not in (None, MERGE) else None
    if part and cfg.launcher.name == "ray":
        raise UserError(f"shard={cfg.shard} launcher=ray: Ray shares the shards itself; give one of the two")
    if part and cfg.parquet:
        raise UserError(f"shard={cfg.shard} parquet={cfg.parquet}: a part is no store yet; give parquet= with shard=merge")
    # The command line is good; only now import what takes seconds.
    from data.hosts import open_host
    from data.produce.shards import ShardMaker, produce
    from data.store.parquet import refuse_parquet, write_parquet
    from data.store.store import FURTHER_COLUMNS
    from decoder.utils.terminal import quiet

    quiet()
    if cfg.parquet:
        refuse_parquet(Path(cfg.parquet).expanduser())
        _refuse_matrices(cfg)
    if part:
        _make_part(ShardMaker(cfg), *part)
        return
    if cfg.shard == MERGE:
        maker = ShardMaker(cfg)
        store = maker.finished() or maker.join()
    elif cfg.launcher.name == "ray":
        from data.produce.on_ray import produced_on_ray

        store = produced_on_ray(cfg)
    else:
        store = produce(cfg, open_host(cfg))
    if cfg.parquet:
        write_parquet(store, Path(cfg.parquet).expanduser())
    table = store.table()
    shown = ["efficacy", "paraphrase", "specificity", *(name for name in FURTHER_COLUMNS if name in table)]
    means = ", ".join(f"{name} {table[name].mean():.3f}" for name in shown)
    print(f"{len(store)} edits, {int(table['success'].sum())} successful ({means})\n{store.path}")


def _refuse_matrices(cfg: ProduceConfig) -> None:
    """Before they are made; a store that is there may have factors alone."""
    from data.hosts import open_host
    from data.produce.plan import is_produced

    if isinstance(cfg.edits, FineTuneConfig) and cfg.shard != MERGE and not is_produced(cfg, open_host(cfg)):
        raise UserError(f"{cfg.edits.editor} makes whole matrices, which are read from their own store only. Leave out parquet=")


def read_part(text: str) -> tuple[int, int]:
    """Part and count of `3/16`.

    Raises:
        UserError: it is neither that nor in range.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    part, of = map(int, found.groups()) if found else (0, 0)
    if not 1 <= part <= of:
        raise UserError(f"shard={text}: expected PART/PARTS from 1/1 up, as 3/16, or `merge` to join the parts")
    return part, of


def _make_part(maker: "ShardMaker", part: int, of: int) -> None:
    from data.store.store import partial_folder

    if maker.finished():
        print(f"the store is whole already\n{maker.path}")
        return
    made, left = maker.make_part(part, of), maker.missing()
    print(f"part {part}/{of}: {len(made)} of {maker.shards} shards are there\n{partial_folder(maker.path)}")
    print(f"{len(left)} shards of other parts are missing" if left else "no shard is missing: join them with shard=merge")


if __name__ == "__main__":
    main()
