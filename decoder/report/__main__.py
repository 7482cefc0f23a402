"""`python -m decoder.report runs/main`: the page of one run, the comparison of several, or what was measured of editors."""

import sys
from pathlib import Path

from decoder.config.commands import ReportConfig
from decoder.config.compose import compose, folders_first
from decoder.report.results import find_runs
from decoder.report.run_page import write_report
from decoder.utils.errors import UserError, run_command
from decoder.utils.files import refuse_file


@run_command
def main(argv: list[str] | None = None) -> None:
    cfg = compose(ReportConfig, "report", folders_first(sys.argv[1:] if argv is None else argv))
    if sum(map(bool, (cfg.runs, cfg.wandb, cfg.readers, cfg.collapse, cfg.tracing))) != 1:
        raise UserError(
            "give run folders, as in `python -m decoder.report runs/main`, or wandb=ENTITY/PROJECT, readers=, collapse= or tracing=, "
            "one of them"
        )
    if cfg.to:
        refuse_file("to", Path(cfg.to))
    if measured := cfg.readers or cfg.collapse or cfg.tracing:
        from decoder.report.editing import chains, collapse, readers

        found = Path(measured)
        to = Path(cfg.to or (found if found.is_dir() else found.parent)).expanduser()
        if cfg.tracing:
            from decoder.report.tracing import page, results

            print(page.markdown(results.read_tracing(found)), page.write_tracing(found, to), sep="\n")
        elif cfg.readers:
            print(readers.markdown(readers.read_readers(found)), readers.write_readers(found, to), sep="\n")
        else:
            print(collapse.markdown(chains.read_collapse(found)), collapse.write_collapse(found, to), sep="\n")
        return
    if len(cfg.runs) == 1 and not cfg.to and (Path(cfg.runs[0]) / "result.json").exists():
        print(write_report(Path(cfg.runs[0])))
        return
    from decoder.report.compare_page import write_comparison
    from decoder.report.wandb_runs import read_project

    found = read_project(cfg.wandb, cfg.group) if cfg.wandb else find_runs(cfg.runs)
    page = write_comparison(found, Path(cfg.to or (cfg.runs[0] if cfg.runs else ".")).expanduser())
    print(f"{len(found.finished)} finished runs, {len(found.failed)} failed, {len(found.unfinished)} not finished")
    print(page, page.with_suffix(".csv"), sep="\n")


if __name__ == "__main__":
    main()
