"""Facts × host -> what their traces say."""

from contextlib import suppress
from random import Random
from time import perf_counter
from typing import Any

from data.causal_trace.effects import average_effects
from data.causal_trace.trace import Tracer, asked_of, subject_spread
from data.facts.fact import Fact
from data.facts.load import load_facts
from data.produce.likelihood import Tokens, read
from decoder.config.commands import TraceConfig
from decoder.host import Host
from decoder.scores import versions
from decoder.utils.progress import progress

WINDOW = 0.2  # of the layers; Meng et al. took 10 of GPT2-XL's 48


def trace_facts(host: Host, cfg: TraceConfig) -> dict[str, Any]:
    """What the traces of `n` facts say, with all that they follow from.

    Raises:
        ValueError: the host has no such layer or fewer than a window, or answers none of the facts rightly.
    """
    (layer,) = cfg.edits.layers
    host.check_layer(layer, "edits.layer")
    window = cfg.window or max(1, round(WINDOW * host.layers))
    if window > host.layers:
        raise ValueError(f"window={window}: {host.name} has {host.layers} layers. Give as many at most")
    start, facts = perf_counter(), load_facts(cfg.facts)
    drawn = Random(f"trace {cfg.seed}").sample(facts.facts, min(cfg.n, len(facts)))
    asked = [asked_of(host, fact) for fact in known(host, drawn)]
    if not asked:
        raise ValueError(f"n={cfg.n}: {host.name} answers none of {len(drawn)} facts of {facts.source} rightly, and only such are traced")
    sigma = subject_spread(host, asked)
    tracer = Tracer(host, cfg.noise * sigma, cfg.draws, window, cfg.seed)
    traces = []
    with progress(f"facts traced through {host.name}", len(asked)) as advance:
        for one in asked:
            traces.append(tracer.trace(one))
            advance(1)
    return {
        "format": 1,
        "host": {"name": host.name, "fingerprint": host.fingerprint, "layers": host.layers, "device": host.device.type},
        "facts_source": {"source": facts.source, "path": cfg.facts.path, "sha256": facts.sha256, "facts": len(facts)},
        "asked": len(drawn),
        "traced": len(asked),
        "seed": cfg.seed,
        "draws": cfg.draws,
        "sigma": sigma,
        "noise": cfg.noise,
        "window": window,
        **average_effects(asked, traces, layer),
        "seconds": round(perf_counter() - start, 1),
        "versions": versions(),
    }


def known(host: Host, facts: list[Fact]) -> list[Fact]:
    """The facts whose object the clean host says after their own prompt; one that cannot be put to it is not."""
    tokens, asked = Tokens(host), []
    for fact in facts:
        with suppress(ValueError):
            asked.append((fact, tokens.of_prompt(fact.prompt, fact.subject, fact.object_true)))
    answers = read(host, [question for _, question in asked])
    return [fact for (fact, _), (answer,) in zip(asked, answers, strict=True) if answer.exact]
