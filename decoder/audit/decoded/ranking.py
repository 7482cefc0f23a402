"""The layers of a checkpoint ranked by what a folder of decoders reads in them.

Every decoder that fits reads its layer. A layer stands the higher, the fewer matrices without an edit are read with such confidence
(`null_percentile`); matrices that are the host's own come last.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from decoder.audit.decoded.answer import answer, around, in_order
from decoder.audit.scan import Scan, read_once
from decoder.audit.suspect import Suspect
from decoder.config.commands import EvaluateConfig
from decoder.config.options import as_list
from decoder.edit import Edit
from decoder.export.collection import fitting, has_matrix, read_index
from decoder.export.formats import layers_of
from decoder.export.opened import Voters, open_decoder, open_host
from decoder.utils.errors import UserError


def rank(cfg: EvaluateConfig, suspect: Suspect, entries: Sequence[Mapping[str, Any]], *, in_place: bool = False) -> dict[str, Any]:
    """What each decoder reads in the suspect folder, the most suspicious layer first, with how far the folder is from the host.

    Decoders of a host that the folder is not of are passed over. `in_place` is as `answer_for` has it.

    Raises:
        UserError: it is of none of their hosts; says why for the first.
    """
    refused: dict[str, str] = {}
    scans, ranking = _scans(cfg, suspect, entries, refused), []
    # What came of the layers that a decoder reads together, until all have come.
    held: dict[str, dict[int, tuple[Edit, bool]]] = defaultdict(dict)
    for scan, layer, edit in read_once([*scans.values()]):
        for entry in entries:
            if scans.get(entry["host"]["fingerprint"]) is not scan or layer not in layers_of(entry) or entry["folder"] in refused:
                continue
            try:
                if isinstance(edit, ValueError):
                    raise edit
                held[entry["folder"]][layer] = edit, suspect.is_own(scan.host, layer)
                if len(held[entry["folder"]]) < len(layers_of(entry)):
                    continue
                came = held.pop(entry["folder"])
                own = replace(cfg, decoder=str(Path(cfg.decoder) / entry["folder"]))
                decoder, config = open_decoder(own, scan.host)
                edits, unedited = {layer: edit for layer, (edit, _) in came.items()}, all(is_own for _, is_own in came.values())
                voters = Voters([decoder], [config])
                if in_place:
                    voters.read_in_place()
                found = answer(voters, in_order(edits), cfg.top, unedited=unedited)
            except ValueError as error:
                refused[entry["folder"]] = str(error)
                continue
            ranking.append(found | {"decoder": own.decoder, "fingerprint": entry["host"]["fingerprint"]})
    passed_over = [f"{entry['folder']}: {refused[entry['folder']]}" for entry in entries if entry["folder"] in refused]
    if not ranking:
        raise UserError(f"suspect={cfg.suspect}: no decoder of {cfg.decoder} can read it. {passed_over[0]}")
    ranking.sort(key=lambda found: (found["unedited"], -found["null_percentile"], -found["objects"][0]["probability"]))
    surroundings = around(scans[ranking[0]["fingerprint"]], as_list(ranking[0]["layer"]))
    return {"ranking": ranking, "refused": passed_over, "decoder": cfg.decoder} | surroundings


def _scans(cfg: EvaluateConfig, suspect: Suspect, entries: Sequence[Mapping[str, Any]], refused: dict[str, str]) -> dict[str, Scan]:
    """The suspect held against each host, by the host's fingerprint; says which decoders' hosts it is not of."""
    scans: dict[str, Scan] = {}
    for fingerprint in dict.fromkeys(entry["host"]["fingerprint"] for entry in entries):
        own = [entry for entry in entries if entry["host"]["fingerprint"] == fingerprint]
        try:
            host = open_host(cfg, own[0]["host"])
            scans[fingerprint] = Scan(suspect, host, {layer for entry in own for layer in layers_of(entry)})
        except ValueError as error:
            refused |= {entry["folder"]: str(error) for entry in own}
    return scans


def entries_for(cfg: EvaluateConfig, suspect: Suspect) -> list[Mapping[str, Any]]:
    """The decoders of a collection whose matrices the suspect has, by name and shape."""
    fits = fitting(read_index(cfg.decoder), host=cfg.host, layer=cfg.layer)
    return [entry for entry in fits if has_matrix(entry, suspect.matrices)]
