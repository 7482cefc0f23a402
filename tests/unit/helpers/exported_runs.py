"""Finished runs with real decoders on tiny hosts, as collections are made of."""

from pathlib import Path

import torch
from changed_decoders import FACTS as EXPORTED
from fabricated_runs import result

from decoder.export.save import save_decoder
from decoder.model import ObjectDecoder
from decoder.report.results import write_result

FACTS = EXPORTED | {"scores": EXPORTED["scores"] | {"ood_seen_object": EXPORTED["scores"]["ood"]}}


def write_run(top: Path, host, edited: int, trained: int, seed: int, validation: float, loss: float = 0.5, **config) -> Path:
    """A finished run with a real decoder on a tiny host; only its scores are made up."""
    folder = top / host.name / f"rome-e{edited}-t{trained}-s{seed}"
    folder = folder if not config else folder.with_name(f"{folder.name}-varied")
    folder.mkdir(parents=True)
    scored = result(edited, trained, seed, **config) | {"decoder": "decoder"}
    scored["fit"]["best_val_loss"] = loss
    for split in scored["validation"].values():
        split["exact_match"]["value"] = validation
    write_result(folder, scored)
    decoder = ObjectDecoder(
        host, edited_layers=[edited], trained_layers=[trained], prompt_MD=torch.full((4, host.hidden_size), float(seed))
    )
    save_decoder(folder / "decoder", decoder, FACTS)
    return folder
