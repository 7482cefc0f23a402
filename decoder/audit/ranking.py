"""A checkpoint folder before a folder of decoders: every decoder that fits reads its layer, and the layers are ranked.

A layer stands the higher, the fewer matrices without an edit are read with such confidence (`null_percentile`).
Matrices that are the host's own come last.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from decoder.audit.answer import answer, around, open_decoder, open_host
from decoder.audit.scan import Scan, read_once
from decoder.audit.suspect import Suspect
from decoder.config.commands import EvaluateConfig
from decoder.export.collection import fitting, has_matrix, read_index
from decoder.utils.errors import UserError


def entries_for(cfg: EvaluateConfig, suspect: Suspect) -> list[Mapping[str, Any]]:
    """The decoders of a collection whose matrices the suspect has, by name and shape."""
    fits = fitting(read_index(cfg.decoder), host=cfg.host, layer=cfg.layer)
    return [entry for entry in fits if has_matrix(entry, suspect.matrices)]


def rank(cfg: EvaluateConfig, suspect: Suspect, entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What each decoder reads in the suspect folder, the most suspicious layer first, with how far the folder is from the host.

    Decoders of a host that the folder is not of are passed over.

    Raises:
        UserError: it is of none of their hosts; says why for the first.
    """
    refused: dict[str, str] = {}
    scans, ranking = _scans(cfg, suspect, entries, refused), []
    for scan, layer, edit in read_once([*scans.values()]):
        for entry in entries:
            if scans.get(entry["host"]["fingerprint"]) is not scan or entry["edited_layer"] != layer:
                continue
            try:
                if isinstance(edit, ValueError):
                    raise edit
                own = replace(cfg, decoder=str(Path(cfg.decoder) / entry["folder"]))
                decoder, config = open_decoder(own, scan.host)
                found = answer(decoder, config, edit, cfg.top, unedited=suspect.is_own(scan.host, layer))
            except ValueError as error:
                refused[entry["folder"]] = str(error)
                continue
            ranking.append(found | {"decoder": own.decoder, "fingerprint": entry["host"]["fingerprint"]})
    passed_over = [f"{entry['folder']}: {refused[entry['folder']]}" for entry in entries if entry["folder"] in refused]
    if not ranking:
        raise UserError(f"suspect={cfg.suspect}: no decoder of {cfg.decoder} can read it. {passed_over[0]}")
    ranking.sort(key=lambda found: (found["unedited"], -found["null_percentile"], -found["objects"][0]["probability"]))
    surroundings = around(scans[ranking[0]["fingerprint"]], ranking[0]["layer"])
    return {"ranking": ranking, "refused": passed_over, "decoder": cfg.decoder} | surroundings


def _scans(cfg: EvaluateConfig, suspect: Suspect, entries: Sequence[Mapping[str, Any]], refused: dict[str, str]) -> dict[str, Scan]:
    """The suspect held against each host, by the host's fingerprint; says which decoders' hosts it is not of."""
    scans: dict[str, Scan] = {}
    for fingerprint in dict.fromkeys(entry["host"]["fingerprint"] for entry in entries):
        own = [entry for entry in entries if entry["host"]["fingerprint"] == fingerprint]
        try:
            host = open_host(cfg, own[0]["host"])
            scans[fingerprint] = Scan(suspect, host, {entry["edited_layer"] for entry in own})
        except ValueError as error:
            refused |= {entry["folder"]: str(error) for entry in own}
    return scans
