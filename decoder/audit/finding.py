"""The audit of a whole checkpoint: what was done, in which layers, about whom, from the checkpoint itself and a list of subjects.

The checkpoint is its own host: it is loaded, the subjects go through it, nothing is trained. `docs/audit.md` has the finding's schema.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from decoder.audit.candidates import Candidates
from decoder.audit.evidence import notes as notes_of
from decoder.audit.evidence.comparison import compare
from decoder.audit.evidence.effect import effect
from decoder.audit.evidence.examine import Evidence, examine
from decoder.audit.evidence.located import Located
from decoder.audit.evidence.nulls import Nulls, nulls_for
from decoder.audit.evidence.opened import open_checkpoint, refuse_integers
from decoder.audit.evidence.parts import out_of_layers
from decoder.audit.evidence.questions import Questions, Reader
from decoder.audit.evidence.readings import Reading, null_strengths, readings_of
from decoder.audit.evidence.wrong_way import EXCHANGED, as_note, wrong_way_round
from decoder.audit.relation import RelationClassifier
from decoder.audit.repair import Reversal, refuse, repair
from decoder.audit.suspect import Suspect
from decoder.audit.verdict import Compared
from decoder.host import Host


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
    decoded: Mapping[str, Any] | None = None,
    cache_dir: str | None = None,
    device: str = "cpu",
) -> tuple[dict[str, Any], list[Located]]:
    """The finding, JSON-able, and every edit that was located.

    Args:
        suspect: a folder or GGUF file.
        names: the subjects an edit may be about.
        templates: sentences by relation that the suspect is asked about each subject that was found, and about names that nearly stand
            out; without them it is not asked.
        base: the unedited checkpoint, if it is at hand.
        repaired: folder that the suspect without its edits is written to.
        nulls: file of nulls to hold the evidence against; without it those in the cache of a host that looks like the suspect.
        relations: what tells the relation of an edit by its value.
        reader: of the objects that decoders read; they have a say in which one was planted.
        decoded: what decoders read in whole layers, as `evaluate.py decoder=` answers: evidence that needs neither base nor subject.
        texts: about anything; with `repaired`, what the reversal does to those that name no subject that was found is measured.

    Raises:
        ValueError: the checkpoint cannot be loaded, the base is of another model, or nothing can be written; see also `Candidates`.
    """
    if repaired is not None:
        refuse(suspect, Path(repaired).expanduser(), base)
    refuse_integers(suspect.checkpoint)
    unedited = open_checkpoint(base, cache_dir, device, "base") if base is not None else None
    compared, notes = compare(suspect, unedited, Suspect(base).checkpoint) if unedited else (None, [])
    host = open_checkpoint(suspect.path, cache_dir, device)
    if relations is not None:
        relations.check(host.hidden_size)
    against = nulls_for(host, nulls, cache_dir, unedited)
    notes = [*suspect.notes, *notes, *notes_of.too_few(against, names)]
    readings = readings_of(decoded, against, host)
    notes += notes_of.unread(against, readings)
    found = examine(host, Candidates(host, names), compared, readings, templates)
    notes += notes_of.silent(found.scans)
    finding = {
        "suspect": str(suspect.path),
        "base": base,
        "family": host.model_type,
        "layers": host.layers,
        "subjects": len(names),
        "base_known": _column(found.known, "known", against) | _surroundings(compared) if found.known else None,
        "base_unknown": _column(found.unknown, "unknown", against, readings),
        "notes": notes,
        "warnings": [],
    }
    if found.known:
        notes += notes_of.unconfirmed(found)
        turned = wrong_way_round(host, unedited, found.known.located, found.unknown.threshold)
        finding["base_known"]["wrong_way_round"] = turned
        finding["warnings"] = as_note(turned) + notes_of.in_base_too(found)
    side = "unknown" if found.by_scan else "known"
    column, evidence = finding[f"base_{side}"], getattr(found, side)
    taken_from = None if found.by_scan else unedited
    Questions(templates or {}, relations, reader).put(host, taken_from, found, evidence.located, column["edits"][: len(evidence.located)])
    if repaired is not None:
        reversals = out_of_layers(host, taken_from, evidence.located)
        said = {"used": f"base {side}", "base": base, "edits": column["edits"]}
        why = "what decoders alone show cannot be taken out, as it is not known whom it is about" if evidence.read else "no edit was found"
        exchanged = found.known is not None and finding["base_known"]["wrong_way_round"]
        refused = {"folder": None, "why": EXCHANGED, "failed": True}
        finding["repaired"] = refused if exchanged else _repair(suspect, host, reversals, repaired, said, why)
        if finding["repaired"]["folder"]:
            notes += [f"Not taken out, as it is not known whom it is about: {one.in_words}." for one in evidence.read]
            finding["repaired"]["effect"] = _effect(host, reversals, column["edits"], templates or {}, texts, taken_from)
    finding |= {"decoded": decoded} if decoded else {}
    return {"verdict": column["verdict"], "used": f"base {side}", "exit_code": column["exit_code"]} | finding, found.located


def _repair(
    suspect: Suspect, host: Host, reversals: Mapping[int, Reversal], folder: str, said: Mapping[str, Any], why: str
) -> dict[str, Any]:
    """Writes the suspect without its edits; what was written, or why nothing was: without reversals for `why`."""
    if not reversals:
        return {"folder": None, "why": why}
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
    subjects = {edit["subject"] or edit["resembles"] for edit in told} - {None}
    elsewhere = [text for text in texts if not any(subject in text for subject in subjects)]
    return effect(host, reversals, (sentences, objects), elsewhere, unedited)


def _column(found: Evidence, base: str, nulls: Nulls | None, readings: Sequence[Reading] = ()) -> dict[str, Any]:
    """One kind of evidence: the verdict, all layers ranked, and the edits, with how often nulls show as much."""
    strength, p = max([found.strength, *(one.strength for one in readings)]), None
    if nulls and (read := null_strengths(nulls, readings)) is not None:
        p = nulls.against(base, strength, read)
    elif nulls and found.strength == strength:
        p = nulls.against(base, found.strength)
    # Decoys may be as conspicuous as the edit: layers whose update is about somebody come first, as the verdict has them.
    verdict, last = found.verdict, len(found.scores)
    ranked = sorted(found.scores.items(), key=lambda pair: (verdict.layers.index(pair[0]) if pair[0] in verdict.layers else last, -pair[1]))
    fields = asdict(verdict) | {"verdict": verdict.what, "layers": list(verdict.layers), "exit_code": verdict.exit_code}
    del fields["what"]
    return fields | {
        "facts": found.facts,
        "threshold": found.threshold,
        "strength": strength,
        "nulls": p,
        "ranking": [{"layer": layer, "score": score} for layer, score in ranked],
        "readings": [{"layers": [*one.layers], "threshold": one.threshold, **one.objects[0]} for one in readings],
        "nearly": [asdict(one) | {"strength": one.strength} for one in found.confirmed],
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
        ]
        + [
            {"layer": layer, "subject": None, "resembles": None, "score": found.scores.get(layer, 0.0), "fit": 0.0, "subjects": []}
            | {"read_from": one.threshold, "decoded": one.objects}
            for one in found.read
            for layer in one.layers
        ],
    }


def _surroundings(compared: Compared) -> dict[str, Any]:
    farthest = sorted(compared.changed, key=lambda one: -one.distance)
    return {
        "compared": len(compared.differences),
        "changed": len(compared.changed),
        "farthest": [{"tensor": one.name, "distance": one.distance} for one in farthest[:10]],
    }
