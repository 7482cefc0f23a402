"""A checkpoint folder before a folder of decoders: every decoder that fits reads its layer, and the layers are ranked.

A layer stands the higher, the fewer matrices without an edit are read with such confidence (`null_percentile`).
Matrices that are the host's own come last.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from decoder.audit.answer import answer, open_decoder
from decoder.audit.scan import compare_folder
from decoder.audit.suspect import read_suspect
from decoder.checkpoint.reader import Checkpoint
from decoder.config.commands import EvaluateConfig
from decoder.export.collection import fitting, has_matrix, read_index
from decoder.utils.errors import UserError

FINDING = 95
"""Percentile of the nulls from which a layer counts as a finding."""


def entries_for(cfg: EvaluateConfig) -> list[Mapping[str, Any]]:
    """The decoders of a collection whose matrices the suspect folder has, by name and shape."""
    shapes = matrices_of_folder(cfg.suspect)
    fits = fitting(read_index(cfg.decoder), host=cfg.host, layer=cfg.layer)
    return [entry for entry in fits if has_matrix(entry, shapes)]


def matrices_of_folder(folder: str | Path, tensor: str | None = None) -> dict[str, list[int]]:
    """Names and shapes of the 2-D tensors of a checkpoint folder."""
    checkpoint = Checkpoint(folder)
    shapes = {name: list(checkpoint.shape(name)) for name in checkpoint.names if tensor in (None, name)}
    return {name: shape for name, shape in shapes.items() if len(shape) == 2}


def rank(cfg: EvaluateConfig, entries: list[Mapping[str, Any]]) -> dict[str, Any]:
    """What each decoder reads in the suspect folder, the most suspicious layer first, with how far the folder is from the host.

    Decoders of a host that the folder is not of are passed over.

    Raises:
        UserError: it is of none of their hosts; says why for the first.
    """
    ranking, refused, hosts = [], [], {}
    for entry in entries:
        own = replace(cfg, decoder=str(Path(cfg.decoder) / entry["folder"]))
        try:
            decoder, config = open_decoder(own, hosts.get(entry["host"]["fingerprint"]))
            if entry["host"]["fingerprint"] not in hosts:
                compare_folder(cfg.suspect, decoder.host, decoder.edited_layer)
                hosts[entry["host"]["fingerprint"]] = decoder.host
            found = answer(decoder, config, read_suspect(cfg.suspect, decoder.host, decoder.edited_layer, cfg.tensor), cfg.top)
        except ValueError as error:
            refused.append(f"{entry['folder']}: {error}")
            continue
        ranking.append(found | {"decoder": own.decoder, "fingerprint": entry["host"]["fingerprint"]})
    if not ranking:
        raise UserError(f"suspect={cfg.suspect}: no decoder of {cfg.decoder} can read it. {refused[0]}")
    ranking.sort(key=lambda found: (found["unedited"], -found["null_percentile"], -found["objects"][0]["probability"]))
    first = ranking[0]
    around = compare_folder(cfg.suspect, hosts[first["fingerprint"]], first["layer"]).summary()
    return {"ranking": ranking, "refused": refused, "decoder": cfg.decoder, "suspect": cfg.suspect, "surroundings": around}


def ranking_table(found: Mapping[str, Any]) -> Table:
    """The layers in their order; what counts as no finding is dim."""
    layers, rest = found["ranking"], found["surroundings"]
    findings, own = sum(map(_is_finding, layers)), sum(one["unedited"] for one in layers)
    chance = 1 - (FINDING / 100) ** len(layers)
    caption = [
        f"{findings} of {len(layers)} layers are more confident than {FINDING} % of matrices without an edit.",
        f"Without any edit, one or more of {len(layers)} are so in {chance:.0%} of checkpoints.",
        f"{rest['compared']} other tensors were compared with the host, {rest['further_trained_count']} differ"
        + (f", {rest['farthest']} most." if rest["further_trained_count"] else "."),
    ]
    if own:
        verb = "is" if own == 1 else "are"
        caption.insert(1, f"{own} of {len(layers)} matrices {verb} the host's own, entry by entry: nothing was edited there.")
    table = Table("host", "layer", "object", box=box.HORIZONTALS, caption="\n".join(caption + found["refused"]), caption_justify="left")
    for name in ("probability", "null percentile", "edit percentile"):
        table.add_column(name, justify="right")
    for one in layers:
        best = one["objects"][0]
        numbers = (f"{best['probability']:.3f}", f"{one['null_percentile']:.0f}", f"{one['edit_percentile']:.0f}")
        text = f"{best['text']} (host's own matrix)" if one["unedited"] else best["text"]
        table.add_row(one["host"], str(one["layer"]), text, *numbers, style=None if _is_finding(one) else "dim")
    return table


def _is_finding(one: Mapping[str, Any]) -> bool:
    return one["null_percentile"] >= FINDING and not one["unedited"]
