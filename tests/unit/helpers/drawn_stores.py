"""Stores of the planned edits on a tiny host, by an editor that draws its factors instead of optimising them."""

import dataclasses
from zlib import crc32

import torch

from data.editors import Edited
from data.facts.splits import draw_splits, plan_edits
from data.produce.plan import made_of
from data.produce.shards import columns
from data.store.store import SCORE_COLUMNS, EditStore
from data.store.writer import StoreWriter
from decoder.config import TrainConfig
from decoder.edit import LayerEdits, LowRankEdit, RankOneEdit

SHARD = 500


class DrawnEdits:
    """Draws factors by edit_id, so that they are the same in any sharding; can be killed."""

    asked: list[str] = []
    killed_at = 10**9

    @classmethod
    def prepare(cls, host, cfg, texts, statistics):
        editor = cls()
        editor.width, editor.mlp_width = host.weight_DF(cfg.layer).shape
        return editor

    def edit(self, requests, advance):
        if len(self.asked) + len(requests) > self.killed_at:
            raise KeyboardInterrupt
        self.asked += [request.edit_id for request in requests]
        kept = [i for i, request in enumerate(requests) if not skips(request.edit_id)]
        edits = RankOneEdit(self.draw(requests, kept, self.mlp_width), self.draw(requests, kept, self.width))
        skipped = [(request.edit_id, "drawn to be skipped") for request in requests if skips(request.edit_id)]
        return Edited(kept, edits, skipped)

    def draw(self, requests, kept, width):
        return torch.stack(
            [torch.randn(width, generator=torch.Generator().manual_seed(crc32(requests[i].edit_id.encode()) + width)) for i in kept]
        )


def skips(edit_id: str) -> bool:
    return crc32(edit_id.encode()) % 97 == 0


def drawn_scores(host, layer, hosts, made, facts):
    success = [crc32(request.edit_id.encode()) % 41 > 0 for (request,) in hosts]
    return {name: [1.0] * len(hosts) for name in SCORE_COLUMNS} | {"success": success}


def draw_layers(host, facts, layers, count, path) -> EditStore:
    """A store of hosts that are edited in several layers, two terms in each, drawn."""
    cfg, generator = TrainConfig(), torch.Generator().manual_seed(5)
    requests = plan_edits(facts, draw_splits(facts, cfg.splits), cfg.splits, 0)[:count]
    terms = {
        layer: LowRankEdit(*(torch.randn(count, 2, width, generator=generator) for width in reversed(host.weight_DF(layer).shape)))
        for layer in layers
    }
    scores = {name: [1.0] * count for name in SCORE_COLUMNS} | {"success": [True] * count}
    asked = made_of(host, layers, {"name": "memit"}, 0, facts, requests) | {"rank": 2}
    writer = StoreWriter(path, asked, count)
    writer.write_shard(0, columns(host, layers, [[request] for request in requests], LayerEdits(terms), scores), [])
    return writer.finish(1, [])


def config(path, **data_settings) -> TrainConfig:
    cfg = TrainConfig(store=str(path))
    cfg.edits.shard_size = SHARD
    cfg.data = dataclasses.replace(cfg.data, **data_settings)
    return cfg


def planned(facts, cfg) -> list[str]:
    return [request.edit_id for request in plan_edits(facts, draw_splits(facts, cfg.splits), cfg.splits, cfg.edits.seed)]
