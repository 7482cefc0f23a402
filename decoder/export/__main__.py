"""`python -m decoder.export runs/layers to=decoders`: the best of several runs as one folder, and on the Hub if asked."""

import sys
from pathlib import Path

from decoder.config.commands import ExportConfig
from decoder.config.compose import compose, folders_first
from decoder.config.options import layers_text
from decoder.utils.errors import UserError, run_command


@run_command
def main(argv: list[str] | None = None) -> None:
    cfg = compose(ExportConfig, "export", folders_first(sys.argv[1:] if argv is None else argv))
    if not cfg.runs or not cfg.to:
        raise UserError("give run folders and where to write, as in `python -m decoder.export runs/layers to=decoders`")
    if cfg.send and not cfg.push:
        raise UserError("send=true goes with push=USER/NAME")
    from decoder.export.collection import export_best, read_index
    from decoder.export.hub import push_to_hub
    from decoder.report.results import find_runs

    index = export_best(find_runs(cfg.runs), Path(cfg.to).expanduser())
    for entry in read_index(index.parent):
        print(
            f"{entry['folder']}: trained layer {layers_text(entry['trained_layer'])}, validation {entry['validation']:.3f}, "
            f"from {entry['run']}"
        )
    print(index)
    if cfg.push:
        print(push_to_hub(index.parent, cfg.push, send=cfg.send, private=cfg.private))


if __name__ == "__main__":
    main()
