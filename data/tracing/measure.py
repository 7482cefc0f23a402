"""A store of edits × its host -> all that is measured of them."""

from collections.abc import Sequence
from random import Random
from statistics import stdev
from time import perf_counter
from typing import Any

import torch

from data.facts.load import load_facts
from data.keys.text import key_texts
from data.store.store import EditStore
from data.tracing.relations import FEWEST, accuracy, usable
from data.tracing.rows import pcs, pcs_edited, same_direction
from data.tracing.subjects import Listed
from data.tracing.terms import Reversals, without_terms
from data.tracing.texts import LEAST_CHARACTERS, TOKENS, different, unrelated
from decoder.audit.candidates import FEWEST_NAMES
from decoder.audit.reversal import MOST_TERMS, bottom_rank
from decoder.audit.rows.keys import usable_layers
from decoder.config.commands import TracingConfig
from decoder.edit import LowRankEdit, RankOneEdit
from decoder.host import Host
from decoder.report.tracing.results import FORMAT
from decoder.scores import mean_of, versions
from decoder.utils.progress import progress


def check(store: EditStore) -> None:
    """Raises ValueError, for a store whose edits are not of rank one in one layer, or too few."""
    if store.is_dense or store.manifest.get("rank", 1) > 1 or len(store.layers) > 1 or "facts" in store.dataset.column_names:
        raise ValueError(f"store {store.path}: some edits are not one fact in one layer as one key and value; give one of those that are")
    table = store.table()
    worked = table[table["success"]]
    relations, subjects = usable(worked["relation_name"].tolist()), worked["subject"].nunique()
    if len(relations) < 2 or subjects < FEWEST_NAMES:
        raise ValueError(
            f"store {store.path}: its edits that worked are of {len(relations)} relations with {FEWEST} or more of them and of {subjects} "
            f"subjects; expected 2 and {FEWEST_NAMES}. Give a store of more edits"
        )


def measure(host: Host, store: EditStore, cfg: TracingConfig) -> dict[str, Any]:
    """What is measured, with all that it follows from.

    Raises:
        ValueError: the edits were made on another host, or there is too little text.
    """
    store.check({"host": store.manifest["host"] | {"fingerprint": host.fingerprint}})
    start, (layer,), table = perf_counter(), store.layers, store.table()
    worked = [n for n, success in enumerate(table["success"]) if success]
    told = table.iloc[worked].reset_index(drop=True)
    edits: RankOneEdit = store.edits(torch.tensor(worked)).to(host.device)
    relations, subjects = told["relation_name"].tolist(), told["subject"].tolist()
    drawn = _in_turns(relations, cfg.n, cfg.seed)
    texts = _texts(host, cfg, [subjects[n] for n in drawn]) if cfg.texts else []
    weight_DF, some = host.weight_DF(layer), edits[torch.tensor(drawn)]
    clean = _pcs_of_layers(host)
    edited_N = pcs_edited(weight_DF, some)
    listed = Listed(host, sorted(set(subjects)), layer)
    reversals, kept = Reversals(host, layer, listed), []
    with progress("edits taken out", len(drawn)) as advance:
        for place, n in enumerate(drawn):
            by_terms = reversals.add(edits[n], told["prompt"][n], subjects[n])
            kept += [by_terms] if place < cfg.texts else []
            advance(1)
    return {
        "format": FORMAT,
        "host": {"name": host.name, "fingerprint": host.fingerprint, "layers": host.layers, "widths": list(weight_DF.shape)},
        "layer": layer,
        "store": _described(store, relations, subjects),
        "seed": cfg.seed,
        "n": len(drawn),
        "directions": _spread(same_direction(some.key_BF).tolist()),
        "pcs": {
            "layers": clean,
            "edited": _spread(edited_N.tolist()),
            "change": _spread(((edited_N - clean[layer]) / abs(clean[layer])).tolist()),
        },
        "relations": accuracy(edits.to("cpu"), listed.values(edits).cpu(), relations, subjects, cfg.repeats, cfg.seed),
        "reversal": reversals.scores(),
        "similarity": {side: [mean_of(column) for column in zip(*found, strict=True)] for side, found in reversals.similarity.items()},
        "texts": _continued(host, layer, texts, kept) if texts else None,
        "seconds": round(perf_counter() - start, 1),
        "versions": versions(),
    }


def _described(store: EditStore, relations: Sequence[str], subjects: Sequence[str]) -> dict[str, Any]:
    editor = store.manifest["editor"]
    counts = {"edits": len(relations), "relations": len(set(relations)), "subjects": len(set(subjects))}
    planted = {"objects": store.manifest.get("objects"), "spelt": store.manifest.get("spelt", 0)}
    said = {"editor": editor["name"], "ridge": editor.get("settings", {}).get("ridge")} | planted
    return {"fingerprint": store.fingerprint} | counts | said


def _in_turns(relations: Sequence[str], count: int, seed: int) -> list[int]:
    """At most `count` edits, relations taking turns, so that each has as many of them as it can."""
    random, by_relation = Random(f"edits {seed}"), {}
    for n in random.sample(range(len(relations)), len(relations)):
        by_relation.setdefault(relations[n], []).append(n)
    ranks = ((rank, n) for own in by_relation.values() for rank, n in enumerate(own))
    return [n for _, n in sorted(ranks, key=lambda pair: pair[0])][:count]


def _texts(host: Host, cfg: TracingConfig, subjects: Sequence[str]) -> list[str]:
    return unrelated(key_texts(cfg, load_facts(cfg.facts), host, counted=False), subjects, cfg.texts)


def _pcs_of_layers(host: Host) -> list[float | None]:
    """Of every layer; None where it has no down-projection of its own."""
    found: list[float | None] = [None] * host.layers
    for layer in usable_layers(host):
        found[layer] = pcs(host.weight_DF(layer))
    return found


def _continued(host: Host, layer: int, texts: Sequence[str], edited: Sequence[LowRankEdit]) -> dict[str, Any]:
    """Continuations of each text by the host, and by the host with an edit of the text's own, edits taking turns."""
    weight_DF = host.weight_DF(layer)
    nothing = RankOneEdit(weight_DF.new_zeros(1, weight_DF.shape[1]), weight_DF.new_zeros(1, len(weight_DF)))
    clean = without_terms(nothing, bottom_rank(weight_DF, min(MOST_TERMS, *weight_DF.shape)))
    counts: dict[str, list[int]] = {"clean": [], "edited": []}
    with progress("texts gone on with", len(texts)) as advance:
        for n, text in enumerate(texts):
            ids = host.text_ids(text)
            counts["clean"].append(different(host, layer, clean, ids))
            counts["edited"].append(different(host, layer, edited[n % len(edited)], ids))
            advance(1)
    about = {"n": len(texts), "edits": min(len(texts), len(edited)), "tokens": TOKENS, "characters": LEAST_CHARACTERS}
    return about | {name: _spread(found) for name, found in counts.items()}


def _spread(values: Sequence[float]) -> dict[str, Any]:
    return mean_of(values) | {"sd": stdev(values) if len(values) > 1 else None, "n": len(values)}
