"""Measures a store of edits as the paper on tracing and reversing edits does: `python -m data.tracing store=STORE out=FOLDER`."""

import sys
from pathlib import Path

from decoder.config.commands import TracingConfig
from decoder.config.compose import compose
from decoder.utils.errors import UserError, run_command
from decoder.utils.files import refuse_file


@run_command
def main(argv: list[str] | None = None) -> None:
    cfg = compose(TracingConfig, "train", sys.argv[1:] if argv is None else argv, page="tracing")
    if not cfg.store:
        raise UserError("store= is missing: give a folder made by `python -m data.produce`")
    out = Path(cfg.out)
    refuse_file("out", out)
    # The command line is good; only now import what takes seconds.
    from data.hosts import open_host
    from data.store.store import EditStore
    from data.tracing.measure import check, measure
    from decoder.report.tracing.page import markdown, write_tracing
    from decoder.report.tracing.results import name_of, read_tracing
    from decoder.utils.json_files import write_json
    from decoder.utils.terminal import quiet

    quiet()
    store = EditStore(Path(cfg.store))
    check(store)
    found = measure(open_host(cfg), store, cfg)
    write_json(out / name_of(found), found)
    print(markdown(read_tracing(out)), out / name_of(found), write_tracing(out, out), sep="\n")


if __name__ == "__main__":
    main()
