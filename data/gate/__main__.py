"""Fits which of several decoders to believe, edit by edit: `python -m data.gate decoder=A,B,C stores=[S,T] out=FILE`."""

import sys
from pathlib import Path

from decoder.config.commands import EvaluateConfig, GateConfig
from decoder.config.compose import compose
from decoder.export.voters import folders_of, read_voters
from decoder.utils.errors import UserError, run_command
from decoder.utils.files import refuse_file


@run_command
def main(argv: list[str] | None = None) -> None:
    cfg = compose(GateConfig, "gate", sys.argv[1:] if argv is None else argv)
    if not cfg.decoder or not cfg.stores or not cfg.out:
        raise UserError("decoder=, stores= and out= are all needed: the decoders A,B,C, edits to learn from, and the file to write")
    if len(folders_of(cfg.decoder)) < 2:
        raise UserError(f"decoder={cfg.decoder}: a gate chooses among several decoders; write decoder=A,B")
    configs = read_voters(cfg.decoder)
    if Path(cfg.out).exists():
        raise UserError(f"out={cfg.out}: it is there already, and nothing is written over. Give a new file")
    refuse_file("out", Path(cfg.out).parent)
    # The command line is good; only now import what takes seconds.
    from data.gate.learn import learn, validation_rows
    from data.store.fact_rows import one_fact_a_row
    from data.store.store import EditStore
    from decoder.export.opened import open_voters
    from decoder.utils.terminal import quiet

    quiet()
    stores = [one_fact_a_row(EditStore(Path(store))) for store in cfg.stores]
    rows = [validation_rows(store, configs, cfg.allow_host_mismatch) for store in stores]
    shared = {name: getattr(cfg, name) for name in ("decoder", "host", "allow_host_mismatch", "cache_dir", "device")}
    voters = open_voters(EvaluateConfig(**shared))
    gate, told = learn(voters, list(zip(stores, rows, strict=True)))
    gate.save(Path(cfg.out))
    print(f"{cfg.out}: {told}")


if __name__ == "__main__":
    main()
