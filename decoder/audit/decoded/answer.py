"""Using exported decoders: scoring one again, or answering for one suspect matrix.

Where decoders answer, there may be several of one host (`decoder=A,B`) that vote, or of which a gate says whom to believe: one is a vote of
one.
"""

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

import pandas as pd

from decoder.answers import object_texts, read_batch, readings_table, vote
from decoder.audit.calibration import FINDING, least_percentiles
from decoder.audit.decoded.several import told_apart
from decoder.audit.scan import Scan, read_once
from decoder.audit.suspect import Suspect
from decoder.batch import EditBatch
from decoder.config.commands import EvaluateConfig
from decoder.config.options import layers_text
from decoder.edit import Edit, Edits, LayerEdits
from decoder.export.opened import Voters, open_voters
from decoder.scores import TEST_SPLITS


def read_splits(voters: Voters, loaders: Mapping[str, Iterable[EditBatch]], table: pd.DataFrame, facts: int = 1) -> pd.DataFrame:
    """Reads every edit of the loaders; one row each. `facts` is how many an edit plants."""
    host, readings = voters.host, {}
    for split, loader in loaders.items():
        batches = (batch.on(host.device) for batch in loader)
        readings[split] = [reading for batch in batches for reading in read_batch(host, voters.read(batch.edits), batch, facts)]
    return readings_table(readings, table)


def answer_for(cfg: EvaluateConfig, suspect: Suspect, *, in_place: bool = False) -> dict[str, Any]:
    """Which object the decoders find planted in a suspect; of a folder also how far its other tensors are from the host's.

    Args:
        in_place: whether its matrices are read as they are, also by decoders that hold them against the host's.
    """
    voters = open_voters(cfg)
    if in_place:
        voters.read_in_place()
    host, layers = voters.host, voters.decoders[0].edited_layers
    if len(layers) > 1 and not suspect.is_checkpoint:
        raise ValueError(f"{cfg.decoder} reads layers {layers_text(layers)} together, {suspect.path} is one file. Give a whole checkpoint")
    scan, edits, unedited = Scan(suspect, host, layers), {}, True
    for _, layer, edit in read_once([scan]):
        if isinstance(edit, ValueError):
            raise edit
        edits[layer] = edit
        unedited = unedited and suspect.is_own(host, layer)
    found = answer(voters, in_order(edits), cfg.top, unedited=unedited) | {"decoder": cfg.decoder}
    return found | told_apart(voters, in_order(edits)) | around(scan, layers)


def in_order(edits: Mapping[int, Edit]) -> LayerEdits:
    return LayerEdits(dict(sorted(edits.items())))


def around(scan: Scan, layers: Sequence[int]) -> dict[str, Any]:
    """What was read beside W_V of some layers, how far a folder's other tensors are from the host's, and what else one should know."""
    suspect, checkpoint = scan.suspect, scan.suspect.checkpoint
    return ({"surroundings": scan.summary(*layers)} if suspect.is_whole else {}) | {
        "suspect": str(suspect.path),
        "read": [file.name for file in checkpoint.files],
        "ignored": checkpoint.ignored,
        "notes": suspect.notes + scan.notes,
    }


def answer(voters: Voters, suspect: Edits, top: int, *, unedited: bool = False) -> dict[str, Any]:
    """The most probable objects of one suspect, each text once, and how its confidence compares with edits and with nulls.

    Of decoders of edits that plant several facts also how many objects are `found`, which are all there then.

    Args:
        unedited: whether its matrices are the host's own, which the answer says.
    """
    found, configs, told = voters.read_each(suspect), voters.configs, {}
    if voters.gate is not None:
        chance, number = voters.chances(suspect, found)[0].max(-1)
        found, configs = [found[number]], [configs[number]]
        told = {
            "believed": {
                "decoder": voters.folders[number],
                "editors": editors_of(configs[0]),
                "chance": float(chance),
                "of": len(voters.decoders),
            }
        }
    elif len(found) > 1:
        told = {"voters": len(found)}
    (texts,), of_each = object_texts(voters.host, vote(voters.host, found)), [object_texts(voters.host, beams)[0] for beams in found]
    objects = [{"text": text, "probability": probability} for text, probability in texts.items()]
    if (least := found_from(configs)) is not None:
        count = sum(one["probability"] >= least for one in objects)
        told |= {"found": count, "found_from": least}
        top = max(top, count)
    scores = [config["scores"] for config in configs]
    shared = [split for split in TEST_SPLITS if all(split in of_one for of_one in scores)]
    return told | {
        "objects": objects[:top],
        **_percentiles(objects[0]["text"], of_each, configs, len(voters.decoders) if voters.gate else 1),
        "host": configs[0]["host"]["id"],
        "layer": configs[0]["edited_layer"],
        "scores": {split: fmean(of_one[split]["exact_match"]["value"] for of_one in scores) for split in shared},
        "unedited": unedited,
    }


def found_from(configs: Sequence[Mapping[str, Any]], facts: int = 1) -> float | None:
    """The probability from which an answer of decoders counts as found, if all of them read edits that plant several facts.

    Where those of single facts read several, it is what makes an answer a finding.
    """
    least = [config["several"]["found_from"] for config in configs if "several" in config]
    if not least and facts > 1:
        least = [config["calibration"]["null"]["quantiles"][FINDING] for config in configs]
    return fmean(least) if len(least) == len(configs) else None


def _percentiles(
    text: str, answers: Sequence[Mapping[str, float]], configs: Sequence[Mapping[str, Any]], chosen_of: int
) -> dict[str, float]:
    """How an answer's confidence compares with nulls and with validation edits; of one of several that a gate chose, by Bonferroni's bound.

    A null is as likely to reach a percentile with the decoder that is chosen for being sure of it as with any of them.
    """
    found = least_percentiles(text, answers, [config["calibration"] for config in configs])
    return found | {"null_percentile": max(0.0, 100 - chosen_of * (100 - found["null_percentile"]))}


def editors_of(config: Mapping[str, Any]) -> list[str]:
    """Whose edits a decoder was trained on."""
    return list(dict.fromkeys(editor["name"] for editor in config["editors"]))
