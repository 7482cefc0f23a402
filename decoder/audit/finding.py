"""The audit of a whole checkpoint: what was done, in which layers, about whom, from the checkpoint itself and a list of subjects.

The checkpoint is its own host: it is loaded, the subjects go through it, nothing is trained. `docs/audit.md` has the finding's schema.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any

import torch

from decoder.audit.asking import testimony
from decoder.audit.candidates import Candidates
from decoder.audit.evidence.effect import effect
from decoder.audit.evidence.examine import Evidence, examine
from decoder.audit.evidence.located import Located
from decoder.audit.evidence.nulls import Nulls, nulls_for
from decoder.audit.evidence.parts import alone, out_of_layers, value_of
from decoder.audit.evidence.wrong_way import as_note, wrong_way_round
from decoder.audit.locate import usable_layers
from decoder.audit.relation import RelationClassifier
from decoder.audit.repair import Reversal, refuse, repair
from decoder.audit.scan import Scan, coarser_than, differences
from decoder.audit.suspect import Suspect
from decoder.audit.verdict import Compared
from decoder.checkpoint.gguf_host import host_folder
from decoder.checkpoint.reader import Checkpoint
from decoder.checkpoint.streamed import compute_in_float32, dtype_kept, give_back_what_is_freed
from decoder.edit import RankOneEdit
from decoder.export.opened import check_device
from decoder.host import Host
from decoder.utils.progress import progress

ASKED = 8  # subjects at most that the suspect is asked about
RELATIONS = 5  # likeliest ones of an edit that are told
Reader = Callable[[int, RankOneEdit], Mapping[str, Any]]
"""Layer and the part of its update that is about one subject -> `objects` that decoders read in it, and whom a gate `believed`."""
LIGHT = 4 << 30
"""Bytes that a host may take in float32. The weights of a larger one stay in its files on a CPU; a GPU has it in bfloat16."""


def open_checkpoint(path: str | Path, cache_dir: str | None, device: str = "cpu", setting: str = "suspect") -> Host:
    """A folder or GGUF file as a host; `setting` gave the path.

    Raises:
        ValueError: it cannot be loaded, a weight is NaN or infinite, or there is no such device.
    """
    check_device(device)
    name, checkpoint = Path(path).name, Suspect(path).checkpoint
    entries = sum(prod(checkpoint.shape(tensor)) for tensor in checkpoint.names)
    is_light, on_cpu = 4 * entries <= LIGHT, torch.device(device).type == "cpu"
    dtype = "float32" if is_light else str(dtype_kept(checkpoint)).removeprefix("torch.") if on_cpu else "bfloat16"
    asked = {"name": name, "dtype": dtype, "setting": setting}
    host = Host.load(host_folder(path, **asked, cache_dir=cache_dir, shown=True), **asked, device=device)
    if not is_light and on_cpu:
        give_back_what_is_freed()
        compute_in_float32(host.model)
    for weights, tensor in host.model.state_dict().items():
        if not all(bool(piece.isfinite().all()) for piece in tensor.split(1 << 14)):
            raise ValueError(f"{path}: {weights} holds NaN or infinity; expected finite numbers")
    return host


def compare(suspect: Suspect, base: Host, kept: Checkpoint | None = None) -> tuple[Compared, list[str]]:
    """How a suspect differs from the unedited checkpoint, and what was not compared.

    Args:
        kept: what `base` was opened from.

    Raises:
        ValueError: they are of different models, or the suspect lacks tensors.
    """
    layers = usable_layers(base)
    scanned = Scan(suspect, base, layers)
    found = []
    with progress("tensors of the checkpoint", len(scanned.own)) as advance:
        for one in differences(scanned, kept):
            found.append(one)
            advance(1)
    names = {f"{base.module_path(layer)}.weight": layer for layer in layers}
    checkpoint = suspect.checkpoint
    rounded = any(checkpoint.noise(name) is not None or checkpoint.dtype(name) != own.dtype for name, (_, own) in scanned.own.items())
    return Compared(found, names, rounded or any(coarser_than(scanned, name, kept) for name in scanned.own)), scanned.notes


def audit_checkpoint(
    suspect: Suspect,
    names: Sequence[str],
    *,
    templates: Mapping[str, Sequence[str]] | None = None,
    base: str | None = None,
    repaired: str | None = None,
    nulls: str | None = None,
    relations: RelationClassifier | None = None,
    texts: Sequence[str] = (),
    reader: Reader | None = None,
    cache_dir: str | None = None,
    device: str = "cpu",
) -> tuple[dict[str, Any], list[Located]]:
    """The finding, JSON-able, and every edit that was located.

    Args:
        suspect: a folder or GGUF file.
        names: the subjects an edit may be about.
        templates: sentences by relation that the suspect is asked about each subject that was found; without them it is not asked.
        base: the unedited checkpoint, if it is at hand.
        repaired: folder that the suspect without its edits is written to.
        nulls: file of nulls to hold the evidence against; without it those in the cache of a host that looks like the suspect.
        relations: what tells the relation of an edit by its value.
        reader: of the objects that decoders read; they have a say in which one was planted.
        texts: about anything; with `repaired`, what the reversal does to those that name no subject that was found is measured.

    Raises:
        ValueError: the checkpoint cannot be loaded, the base is of another model, or nothing can be written; see also `Candidates`.
    """
    compared, unedited, notes = None, None, [*suspect.notes]
    if repaired is not None:
        refuse(suspect, Path(repaired).expanduser(), base)
    if base is not None:
        unedited = open_checkpoint(base, cache_dir, device, "base")
        compared, more = compare(suspect, unedited, Suspect(base).checkpoint)
        notes += more
    host = open_checkpoint(suspect.path, cache_dir, device)
    if relations is not None:
        relations.check(host.hidden_size)
    against = nulls_for(host, nulls, cache_dir, unedited)
    if against and against.subjects < len(names):
        notes.append(
            f"The nulls were asked about {against.subjects:,} names, this checkpoint about {len(names):,}: of more names one is higher."
        )
    found = examine(host, Candidates(host, names), compared)
    finding = {
        "suspect": str(suspect.path),
        "base": base,
        "family": host.model_type,
        "layers": host.layers,
        "subjects": len(names),
        "base_known": _column(found.known, "known", against) | _surroundings(compared) if found.known else None,
        "base_unknown": _column(found.unknown, "unknown", against),
        "notes": notes,
    }
    if found.known:
        turned = wrong_way_round(host, unedited, found.known.located, found.unknown.threshold)
        finding["base_known"]["wrong_way_round"] = turned
        notes += as_note(turned)
    by_scan = found.by_scan
    column, used = (finding["base_unknown"], "base unknown") if by_scan else (finding["base_known"], "base known")
    located, unedited = (found.unknown if by_scan else found.known).located, None if by_scan else unedited
    abouts = [found.about(one) for one in located]
    subjects = [*dict.fromkeys(one.asked for one in abouts if one)][:ASKED]
    with progress("sentences about the subjects found", len(subjects)) as advance:
        for name in subjects:
            own = [(one, entry) for one, entry in zip(abouts, column["edits"], strict=True) if one and one.asked == name]
            # What is planted over several layers is asked about once, with all of it taken out.
            reversals = out_of_layers(host, unedited, found.all_about(name, located))
            told = [_told(host, one, reversals[one.layer], entry, relations, reader) for one, entry in own]
            if templates:
                # Of several layers the most conspicuous that can tell says what is likely.
                likely = (next(filter(None, probabilities), {}) for probabilities in zip(*told, strict=True))
                said = testimony(host, name, reversals, templates, names, *likely)
                for _, entry in own:
                    entry |= said
            advance(1)
    if repaired is not None:
        said = {"used": used, "base": base, "edits": column["edits"]}
        reversals = out_of_layers(host, unedited, located)
        finding["repaired"] = _repair(suspect, host, reversals, repaired, said)
        if finding["repaired"]["folder"]:
            finding["repaired"]["effect"] = _effect(host, reversals, column["edits"], templates or {}, texts, unedited)
    return {"verdict": column["verdict"], "used": used, "exit_code": column["exit_code"]} | finding, found.located


def _told(
    host: Host, one: Located, reversal: Reversal, entry: dict[str, Any], relations: RelationClassifier | None, reader: Reader | None
) -> tuple[dict[str, float], dict[str, float]]:
    """All relations of an edit, and the objects that a decoder reads in it, with their probabilities; its entry is given both."""
    part = alone(host, one, reversal) if relations or reader else None
    ranked = relations.ranked(value_of(host, one, reversal), part.key_BF[0].cpu()) if part and relations else []
    if ranked:
        entry["relations"] = [{"relation": name, "probability": p} for name, p in ranked[:RELATIONS]]
    if part and reader:
        read = reader(one.layer, part)
        entry |= {"decoded": read["objects"]} | {name: told for name, told in read.items() if name == "believed"}
    return dict(ranked), {object["text"]: object["probability"] for object in entry.get("decoded", ())}


def _repair(suspect: Suspect, host: Host, reversals: Mapping[int, Reversal], folder: str, said: Mapping[str, Any]) -> dict[str, Any]:
    """Writes the suspect without its edits; what was written, or why nothing was."""
    if not reversals:
        return {"folder": None, "why": "no edit was found"}
    try:
        found = repair(suspect, host, reversals, folder, said)
    except (OSError, ValueError) as error:
        return {"folder": None, "why": " ".join(str(error).split()), "failed": True}
    single = {"tensor": found.changed[0].tensor} if len(found.changed) == 1 else {}
    rest = {"tensors": [asdict(one) for one in found.changed], "left_out": found.left_out, "notes": found.notes}
    return {"folder": str(found.folder)} | single | rest


def _effect(
    host: Host,
    reversals: Mapping[int, Reversal],
    told: Sequence[Mapping[str, Any]],
    templates: Mapping[str, Sequence[str]],
    texts: Sequence[str],
    unedited: Host | None,
) -> dict[str, Any]:
    """What the reversals do: to sentences about whom the edits are about, and to texts that name none of them."""
    sentences, objects = [], []
    # A fact that is spread over layers was found in each of them.
    planted = dict.fromkeys((triple["subject"], triple["object"]) for edit in told if (triple := edit.get("triple")))
    for subject, text in planted:
        own = [template.replace("{}", subject) for each in templates.values() for template in each]
        sentences += own
        objects += [host.object_ids(text)[0]] * len(own)
    subjects = {subject for subject, _ in planted}
    elsewhere = [text for text in texts if not any(subject in text for subject in subjects)]
    return effect(host, reversals, (sentences, objects), elsewhere, unedited)


def _column(found: Evidence, base: str, nulls: Nulls | None) -> dict[str, Any]:
    """One kind of evidence: the verdict, all layers ranked, and the edits, with how often nulls show as much."""
    # Decoys may be as conspicuous as the edit: layers whose update is about somebody come first, as the verdict has them.
    verdict, last = found.verdict, len(found.scores)
    ranked = sorted(found.scores.items(), key=lambda pair: (verdict.layers.index(pair[0]) if pair[0] in verdict.layers else last, -pair[1]))
    fields = asdict(verdict) | {"verdict": verdict.what, "layers": list(verdict.layers), "exit_code": verdict.exit_code}
    del fields["what"]
    return fields | {
        "facts": found.facts,
        "threshold": found.threshold,
        "strength": found.strength,
        "nulls": nulls.against(base, found.strength) if nulls else None,
        "ranking": [{"layer": layer, "score": score} for layer, score in ranked],
        "edits": [
            {
                "layer": one.layer,
                "subject": one.subject,
                "resembles": one.resembles,
                "score": one.score,
                "fit": one.fit,
                "subjects": [{"subject": subject, "score": score} for subject, score in one.ranking],
            }
            for one in found.located
        ],
    }


def _surroundings(compared: Compared) -> dict[str, Any]:
    farthest = sorted(compared.changed, key=lambda one: -one.distance)
    return {
        "compared": len(compared.differences),
        "changed": len(compared.changed),
        "farthest": [{"tensor": one.name, "distance": one.distance} for one in farthest[:10]],
    }
