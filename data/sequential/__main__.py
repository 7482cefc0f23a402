"""Plants 1 to 200 facts one after the other in one host: `python -m data.sequential edits=memit seed=1 out=FOLDER`."""

import json
import sys
import time
from pathlib import Path

from decoder.config.commands import SequentialConfig
from decoder.config.compose import compose
from decoder.utils.errors import UserError, run_command


@run_command
def main(argv: list[str] | None = None) -> None:
    cfg = compose(SequentialConfig, "train", sys.argv[1:] if argv is None else argv, page="sequential")
    out, (layer,) = Path(cfg.out), cfg.edits.layers
    if out.is_file():
        raise UserError(f"out={out}: it is a file; give a folder")
    file = out / f"{cfg.host.name}-{cfg.edits.editor}-e{layer}-s{cfg.seed}.jsonl"
    if file.exists():
        print(f"{file} is there already, and nothing is planted. For other settings give another out=")
        return
    # The command line is good; only now import what takes seconds.
    from data.facts.load import load_facts
    from data.facts.splits import draw_splits, plan_edits
    from data.hosts import open_host
    from data.keys.text import key_texts
    from data.produce.perplexity import neutral_texts
    from data.sequential.chain import chain, chosen
    from decoder.report.editing.collapse import write_collapse
    from decoder.utils.files import write_text
    from decoder.utils.terminal import quiet

    quiet()
    host, facts = open_host(cfg), load_facts(cfg.facts)
    host.check_layer(layer, "edits.layer")
    planned = plan_edits(facts, draw_splits(facts, cfg.splits), cfg.splits, cfg.edits.seed, cfg.edits.objects)
    requests = chosen(planned, cfg.at[-1], cfg.seed)
    texts = neutral_texts(host, key_texts(cfg, facts, host), [request.fact.subject for request in requests], cfg.text_tokens)
    partial = file.with_suffix(".jsonl.partial")  # what a killed chain has found
    about = {"host": host.name, "layer": layer, "editor": cfg.edits.editor, "seed": cfg.seed}
    lines, started = [], time.perf_counter()
    for found in chain(cfg, host, facts, requests, texts, cfg.at):
        broken = found["perplexity"] > cfg.broken_from * found["clean_perplexity"]
        lines.append(about | found | {"broken": broken, "broken_from": cfg.broken_from, "seconds": round(time.perf_counter() - started, 1)})
        print(
            f"{found['facts']:4d} facts: efficacy {found['efficacy']:.2f}, first {found['first']:.0f}, last {found['last']:.0f}, "
            f"|dW|/|W| {found['norm_ratio']:.2f}, perplexity {found['perplexity']:.3g} ({found['clean_perplexity']:.3g} clean)"
            + (", broken" if broken else ""),
            flush=True,
        )
        write_text(partial, "".join(json.dumps(line) + "\n" for line in lines))
    partial.replace(file)
    print(file, write_collapse(out, out), sep="\n")


if __name__ == "__main__":
    main()
