"""The editor that a config asks for, with its key statistics, and the text they are counted on."""

from typing import Any

from data.editors import load_editor
from data.facts.fact import FactSet
from data.key_moments import second_moments
from data.pocket.text import key_text
from data.requests import SENTENCES
from data.texts import read_texts, rome_statistics
from decoder.config import TrainConfig
from decoder.host import Host
from decoder.utils.files import cache_root


def prepare_editor(cfg: TrainConfig, host: Host, facts: FactSet) -> Any:
    """The editor of a config with its key statistics."""
    texts, cache = key_texts(cfg, facts), cache_root(cfg.cache_dir)
    given = {"statistics": rome_statistics(cfg.keys.statistics, host.mlp_size(cfg.edits.layer))} if cfg.keys.statistics else {}
    if texts and not given and cfg.edits.ridge != "identity":
        # The editor finds its own layer's in the cache then.
        second_moments(host, [cfg.edits.layer, *cfg.keys.layers], texts, cfg.edits.key_tokens, cache, cfg.keys.memory_budget)
    return load_editor(cfg.edits.editor).prepare(host, cfg.edits, texts, cache, **given)


def key_texts(cfg: TrainConfig, facts: FactSet) -> list[str]:
    """The text for key statistics and contexts: the one that is given, or the facts told."""
    return read_texts(cfg.keys, cfg.edits.key_tokens) if cfg.keys.text else key_text(facts, cfg.edits.seed, SENTENCES)
