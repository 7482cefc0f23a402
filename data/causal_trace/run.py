"""Facts × host -> what their traces say."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from time import perf_counter
from typing import Any

from data.causal_trace.effects import average_effects
from data.causal_trace.kept import Kept
from data.causal_trace.trace import Asked, Trace, Tracer, asked_of, subject_spread
from data.facts.fact import Fact
from data.facts.load import load_facts
from data.produce.likelihood import Tokens, read
from decoder.config.commands import TraceConfig
from decoder.host import Host
from decoder.scores import versions
from decoder.utils.progress import progress

WINDOW = 0.2  # of the layers; Meng et al. took 10 of GPT2-XL's 48


def trace_facts(host: Host, cfg: TraceConfig, folder: Path) -> tuple[dict[str, Any], Kept]:
    """What the traces of `n` facts say, with all that they follow from; and the traces on disk, to be removed once that is written.

    Args:
        folder: of the result, where each trace is kept until then; a trace that was killed goes on after those that lie there.

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
    about = {
        "host": {"name": host.name, "fingerprint": host.fingerprint, "layers": host.layers, "device": host.device.type},
        "facts_source": {"source": facts.source, "path": cfg.facts.path, "sha256": facts.sha256, "facts": len(facts)},
        "asked": len(drawn),
        "traced": len(asked),
        "seed": cfg.seed,
        "draws": cfg.draws,
        "sigma": sigma,
        "noise": cfg.noise,
        "window": window,
    }
    kept = Kept(folder, about | {"facts": [one.name for one in asked], "dtype": str(host.dtype)})
    traces, seconds = traced(asked, Tracer(host, cfg.noise * sigma, cfg.draws, window, cfg.seed), kept, start)
    found = {"format": 1, **about, **average_effects(asked, traces, layer), "seconds": round(seconds, 1), "versions": versions()}
    return found, kept


def traced(asked: Sequence[Asked], tracer: Tracer, kept: Kept, start: float) -> tuple[list[Trace], float]:
    """The traces of the facts and how many seconds they took. Each is kept as it is found; those that lie there already are taken.

    Args:
        start: when the command began, as `perf_counter` has it.
    """
    traces, before = kept.left_by_a_kill()
    kept.write(traces, before)
    start -= before
    with progress(f"facts traced through {tracer.host.name}", len(asked), len(traces)) as advance:
        for one in asked[len(traces) :]:
            traces.append(tracer.trace(one))
            kept.add(traces[-1], perf_counter() - start)
            advance(1)
    return traces, perf_counter() - start


def known(host: Host, facts: list[Fact]) -> list[Fact]:
    """The facts whose object the clean host says after their own prompt; one that cannot be put to it is not."""
    tokens, asked = Tokens(host), []
    for fact in facts:
        with suppress(ValueError):
            asked.append((fact, tokens.of_prompt(fact.prompt, fact.subject, fact.object_true)))
    answers = read(host, [question for _, question in asked])
    return [fact for (fact, _), (answer,) in zip(asked, answers, strict=True) if answer.exact]
