"""Fits what tells an edit's relation by its value, for audits: `python -m data.relations store=STORE out=FOLDER`."""

import sys
from pathlib import Path

from decoder.config.commands import RelationsConfig
from decoder.config.compose import compose
from decoder.utils.errors import UserError, run_command
from decoder.utils.files import refuse_file


@run_command
def main(argv: list[str] | None = None) -> None:
    cfg = compose(RelationsConfig, "relations", sys.argv[1:] if argv is None else argv)
    if not cfg.store or not cfg.out:
        raise UserError("store= and out= are both needed: the store of edits to learn from, and the folder to write")
    if Path(cfg.out).exists():
        raise UserError(f"out={cfg.out}: it is there already, and nothing is written over. Give a new folder")
    refuse_file("out", Path(cfg.out))
    # The command line is good; only now import what takes seconds.
    import torch

    from data.relations.learnt import learnt_from
    from data.store.store import EditStore
    from decoder.audit.relation import fit

    store = EditStore(Path(cfg.store))
    if store.is_dense:
        raise UserError(f"store {store.path} holds whole matrices; give a store of factors, as `python -m data.produce` makes it")
    table, rows = store.table(), learnt_from(store)
    if not rows:
        raise UserError(f"store {store.path} has no edit that worked and plants an object of its relation; give another")
    relations, subjects = (table[name].iloc[rows].tolist() for name in ("relation_name", "subject"))
    edits = store.edits(torch.tensor(rows))
    found = fit(edits.value_BD, relations, subjects, edits.key_BF)
    found.save(cfg.out)
    print(f"{cfg.out}: {len(found.relations)} relations, learnt from {len(rows)} edits")


if __name__ == "__main__":
    main()
