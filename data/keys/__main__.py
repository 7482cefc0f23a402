"""Counts key statistics ahead of the edits: `python -m data.keys keys.layers=[5,17]`."""

import sys

from decoder.config import TrainConfig
from decoder.config.compose import compose
from decoder.utils.errors import run_command


@run_command
def main(argv: list[str] | None = None) -> None:
    cfg = compose(TrainConfig, "train", sys.argv[1:] if argv is None else argv, page="keys")
    # The command line is good; only now import what takes seconds.
    from data.facts.load import load_facts
    from data.hosts import open_host
    from data.keys.moments import second_moments
    from data.keys.text import key_texts
    from decoder.utils.files import cache_root
    from decoder.utils.terminal import quiet

    quiet()
    host, cache = open_host(cfg), cache_root(cfg.cache_dir)
    texts = key_texts(cfg, load_facts(cfg.facts), host)
    layers = cfg.keys.layers or cfg.edits.layers
    for layer, found in second_moments(host, layers, texts, cfg.edits.key_tokens, cache, cfg.keys.memory_budget).items():
        print(f"layer {layer}: {found.count:,} tokens, keys of width {len(found.moment_FF)}")
    print(cache / "keys")


if __name__ == "__main__":
    main()
