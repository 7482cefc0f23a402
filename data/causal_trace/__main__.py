"""Traces facts through a host: `python -m data.causal_trace host=smollm2-135m n=400`."""

import sys
from pathlib import Path

from decoder.config.commands import TraceConfig
from decoder.config.compose import compose
from decoder.utils.errors import run_command
from decoder.utils.files import refuse_file

PAGE, TABLE = "causal_trace.html", "causal_trace.json"


@run_command
def main(argv: list[str] | None = None) -> None:
    cfg = compose(TraceConfig, "train", sys.argv[1:] if argv is None else argv, page="causal_trace")
    folder = Path(cfg.out or f"{cfg.runs}/causal-trace/{cfg.host.name}")
    refuse_file("out", folder)
    # The command line is good; only now import what takes seconds.
    from data.causal_trace.effects import summary
    from data.causal_trace.page import page
    from data.causal_trace.run import trace_facts
    from data.hosts import open_host
    from decoder.utils.files import write_text
    from decoder.utils.json_files import write_json
    from decoder.utils.terminal import quiet

    quiet()
    found, kept = trace_facts(open_host(cfg), cfg, folder)
    write_json(folder / TABLE, found)
    write_text(folder / PAGE, page(found))
    kept.remove()
    print(summary(found), folder / PAGE, folder / TABLE, sep="\n")


if __name__ == "__main__":
    main()
