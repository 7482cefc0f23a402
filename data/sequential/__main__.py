"""Plants 1 to 200 facts one after the other in one host: `python -m data.sequential edits=memit seed=1 out=FOLDER`.

`experiment=sequential` does so with every editor and several seeds; behind `-m` editors, seeds and other settings may have several values.
`edits.facts_per_host=10` plants ten at a time.
"""

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from data.sequential.kept import Kept
from decoder.config.commands import SequentialConfig
from decoder.config.compose import compose
from decoder.config.grids import read_axes
from decoder.utils.errors import run_command
from decoder.utils.files import alone, refuse_file

if TYPE_CHECKING:
    from data.editors import Editor
    from data.facts.fact import EditRequest, FactSet
    from decoder.host import Host


class Ready(NamedTuple):
    """What a chain begins with: the clean host, all facts, those to plant, the text for the perplexity, what `begun` gives."""

    host: "Host"
    facts: "FactSet"
    requests: list["EditRequest"]
    texts: list[str]
    planted_in: "tuple[Host, Editor]"


@run_command
def main(argv: list[str] | None = None) -> None:
    plant_all(sys.argv[1:] if argv is None else argv)


def plant_all(argv: list[str]) -> None:
    """Plants every chain of a command line that is not there yet, one after the other."""
    axes = read_axes(SequentialConfig, "train", argv, page="sequential")
    words = [[*axes.kept, *(f"{key}={value}" for key, value in choice.items())] for choice in axes.choices]
    chains = [compose(SequentialConfig, "train", argv, page="sequential") for argv in words]
    for cfg in chains:
        refuse_file("out", Path(cfg.out))
    for cfg in chains:
        kept = Kept(cfg)
        if not (file := kept.finished()):
            # What cannot begin makes no folder: a lock in it could not be taken away again, as others may wait for it.
            ready = prepare(cfg)
            with alone(kept.file):
                if not (file := kept.finished()):
                    plant(cfg, kept, ready)
                    continue
        print(f"{file} is there already, and nothing is planted")


def prepare(cfg: SequentialConfig) -> Ready:
    """What a chain is made of.

    Raises:
        ValueError: the host cannot be opened or has no such layer, the facts or the text are too few, or what the editor refuses.
    """
    # The command line is good; only now import what takes seconds.
    from data.facts.load import load_facts
    from data.facts.splits import draw_splits, plan_edits
    from data.hosts import open_host
    from data.keys.sampled import sampled_texts
    from data.keys.text import key_texts
    from data.produce.perplexity import neutral_texts
    from data.sequential.chain import begun, chosen
    from decoder.utils.files import cache_root
    from decoder.utils.terminal import quiet

    quiet()
    (layer,) = cfg.edits.layers
    host, facts = open_host(cfg), load_facts(cfg.facts)
    host.check_layer(layer, "edits.layer")
    # What a host's file adds for decoders would put its chains in another order.
    splits = replace(cfg.splits, spelt_per_relation=0)
    planned = plan_edits(facts, draw_splits(facts, splits), splits, cfg.edits.seed, cfg.edits.objects)
    requests = chosen(planned, cfg.at[-1], cfg.seed)
    if cfg.host.is_pocket or cfg.keys.text:
        texts = key_texts(cfg, facts, host)
    else:
        # The facts told are no prose, and a host that has read some finds them strange already.
        texts = sampled_texts(host, 2 * cfg.text_tokens, cfg.edits.seed, cfg.keys.top_k, cache_root(cfg.cache_dir))
    neutral = neutral_texts(host, texts, [request.fact.subject for request in requests], cfg.text_tokens)
    return Ready(host, facts, requests, neutral, begun(cfg, host, facts))


def plant(cfg: SequentialConfig, kept: Kept, ready: Ready) -> None:
    """Plants one chain, from where a killed one was, and writes its lines and the page of all that lie beside them."""
    from data.sequential.chain import chain
    from decoder.report.editing.collapse import write_collapse

    (layer,) = cfg.edits.layers
    lines, reached = kept.left_by_a_kill()
    print(kept.stem + (f" goes on from {reached.facts} facts" if reached else ""), flush=True)
    about = {"host": ready.host.name, "layer": layer, "editor": cfg.edits.editor, "seed": cfg.seed}
    started = time.perf_counter() - (lines[-1]["seconds"] if lines else 0)
    looks = chain(cfg, ready.host, ready.facts, ready.requests, ready.texts, cfg.at, reached, ready.planted_in)
    for found, now in looks:
        broken = found["perplexity"] > cfg.broken_from * found["clean_perplexity"]
        judged = {"broken": broken, "broken_from": cfg.broken_from, "seconds": round(time.perf_counter() - started, 1)}
        lines.append(about | found | judged | {"settings": kept.settings})
        print(
            f"{found['facts']:4d} facts: efficacy {found['efficacy']:.2f}, first {found['first']:.0f}, last {found['last']:.0f}, "
            f"|dW|/|W| {found['norm_ratio']:.2f}, perplexity {found['perplexity']:.3g} ({found['clean_perplexity']:.3g} clean)"
            + (", broken" if broken else ""),
            flush=True,
        )
        kept.write(lines, now)
    kept.finish()
    print(kept.file, write_collapse(Path(cfg.out), Path(cfg.out)), sep="\n")


if __name__ == "__main__":
    main()
