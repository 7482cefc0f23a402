"""Decoders that differ from their start, and what is exported with them."""

import torch

from decoder.model import ObjectDecoder

LAYER, M = 1, 4
CONFIG, WEIGHTS, CARD = "decoder_config.json", "decoder_model.safetensors", "README.md"
IDS_BT = torch.tensor([[5, 9, 30], [12, 4, 17]])
SCORES = {"n": 12, "first_token": {"value": 0.75, "ci95": [0.5, 0.9]}, "exact_match": {"value": 0.5, "ci95": [0.25, 0.75]}}
FACTS = {
    "search": {"beams": 3, "max_object_tokens": 2},
    "store": "0123456789ab",
    "editors": [{"name": "rome", "settings": {"ridge": 0.01}}],
    "splits": {"train": ["P1-000-red"], "id": ["P1-001-blue"], "ood": ["P2-000-red"], "unseen_object": []},
    "scores": {"id": SCORES, "ood": SCORES},
    "calibration": {
        "auroc": 0.875,
        "null": {"n": 3, "quantiles": [0.0] * 101},
        "edit": {"n": 3, "quantiles": [1.0] * 101},
        "clean_matrix": {"predicted": "red", "probability": 0.1, "null_percentile": 50.0},
    },
    "seed": 0,
}


def changed_decoder(host, **settings) -> ObjectDecoder:
    torch.manual_seed(3)
    decoder = ObjectDecoder(host, edited_layers=[LAYER], **({"trained_layers": [LAYER, 2], "prompt_MD": torch.randn(M, 32)} | settings))
    for parameter in decoder.trained.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return decoder
