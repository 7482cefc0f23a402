"""Editors with a closed form as tests make them, and what their equations are made of.

Shape letters: F MLP width.
"""

from dataclasses import fields, replace

import torch
from rome_twin import CFG, CONTEXTS, LAYER, TEXTS, second_moment

from data.editors import load_editor
from data.keys.moments import keys_of
from decoder.config.editors import EDITORS, SearchConfig

LAYERS = [0, LAYER]


def make(name: str, host, contexts=CONTEXTS, **settings):
    kind = EDITORS[name]
    shared = {field.name: getattr(CFG, field.name) for field in fields(SearchConfig) if field.name != "editor"}
    cfg = replace(kind(editor=name, **shared), **settings)
    return load_editor(name)(host, LAYER, cfg, second_moment(host, LAYER, TEXTS, 1000), contexts)


def moment(host) -> torch.Tensor:
    return second_moment(host, LAYER, TEXTS, 1000).moment_FF.double()


def ridged(host, ridge: float) -> torch.Tensor:
    moment_FF = moment(host)
    return moment_FF + ridge * torch.linalg.eigvalsh(moment_FF)[-1] * torch.eye(len(moment_FF), dtype=torch.float64)


def key_of(host, one) -> torch.Tensor:
    """Half the bare prompt's key, half the mean of the others, one plain forward each."""
    found = []
    for context in CONTEXTS:
        ids, lookup = host.prompt_ids(context.replace("{}", one.fact.prompt), one.fact.subject)
        found.append(keys_of(host, LAYER, input_ids=torch.tensor([ids]))[lookup].double())
    return found[0] / 2 + torch.stack(found[1:]).mean(0) / 2


def over(name: str, host, layers=LAYERS, contexts=CONTEXTS, **settings):
    """An editor over several layers, as `make` makes one of a single layer."""
    shared = {field.name: getattr(CFG, field.name) for field in fields(SearchConfig) if field.name != "editor"}
    cfg = replace(EDITORS[name](editor=name, **shared), **settings)
    counted = {layer: second_moment(host, layer, TEXTS, 1000) for layer in layers}
    *lower, last = layers
    return load_editor(name)(host, last, cfg, counted[last], contexts, {layer: counted[layer] for layer in lower})


def seen(host, layer: int, one) -> tuple[torch.Tensor, torch.Tensor]:
    """MEMIT's key of a layer, and what the last edited block gives at the bare prompt; one plain forward each."""
    keys = []
    for context in CONTEXTS:
        ids, lookup = host.prompt_ids(context.replace("{}", one.fact.prompt), one.fact.subject)
        keys.append(keys_of(host, layer, input_ids=torch.tensor([ids]))[lookup].double())
    ids, lookup = host.prompt_ids(one.fact.prompt, one.fact.subject)
    states = host.model(torch.tensor([ids]), output_hidden_states=True, use_cache=False).hidden_states
    return keys[0] / 2 + torch.stack(keys[1:]).mean(0) / 2, states[LAYERS[-1] + 1][0, lookup].double()
