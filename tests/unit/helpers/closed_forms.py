"""Editors with a closed form as tests make them, and what their equations are made of.

Shape letters: F MLP width.
"""

from dataclasses import fields, replace

import torch
from rome_twin import CFG, CONTEXTS, LAYER, TEXTS, second_moment

from data.editors import load_editor
from data.keys.moments import keys_of
from decoder.config.editors import EDITORS, SearchConfig


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
