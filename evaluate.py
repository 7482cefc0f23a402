"""Audit a checkpoint, or use an exported decoder: score it again on its store, or read one suspect matrix.

python evaluate.py suspect=CHECKPOINT [base=CHECKPOINT] [subjects=FILE]     was it edited, where, about whom: needs no decoder
python evaluate.py suspect=CHECKPOINT repair=FOLDER                 the same, and the checkpoint without its edit
python evaluate.py suspect=CHECKPOINT report=audit.html             the same, and a page of it for people who decide
python evaluate.py decoder=runs/main/pocket/rome-e1-t1-s0/decoder
python evaluate.py decoder=... store=OTHER_STORE                    its test edits as another editor made them
python evaluate.py decoder=... precision=int8                       its test edits from matrices that were rounded
python evaluate.py decoder=... suspect=matrix.safetensors
python evaluate.py decoder=... suspect=CHECKPOINT_FOLDER            or a GGUF file
python evaluate.py decoder=A,B,C ...                                decoders of one host and layer vote, in all of these
python evaluate.py decoder=A,B,C gate=gate.json ...                 of decoders of different editors the one that the gate believes
python evaluate.py decoder=decoders suspect=matrix.safetensors      a folder of several decoders: the one that fits is used
python evaluate.py decoder=decoders suspect=CHECKPOINT_FOLDER       every decoder that fits, the most suspicious layer first
"""

import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decoder.utils.errors import UserError, lasting, run_command, starting

with starting():
    from decoder.config.commands import EvaluateConfig
    from decoder.config.compose import compose
    from decoder.export.collection import choose, is_collection
    from decoder.export.voters import folders_of, own_store, read_voters, scored_on

if TYPE_CHECKING:
    from decoder.audit.suspect import Suspect

AUDITS = ("base", "subjects", "repair", "relations", "nulls", "report")
"""Settings of an audit of a whole checkpoint."""


@run_command
def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    cfg = compose(EvaluateConfig, "evaluate", argv)
    audits = [name for name in AUDITS if getattr(cfg, name)]
    if audits and not cfg.suspect:
        raise UserError(f"{'=, '.join(AUDITS[:-1])}= and {AUDITS[-1]}= are about a suspect: give suspect=CHECKPOINT")
    if cfg.gate and (not cfg.decoder or len(folders_of(cfg.decoder)) < 2):
        raise UserError(f"gate={cfg.gate}: a gate chooses among several decoders; give those that it was fitted for, decoder=A,B")
    if not cfg.decoder and not cfg.suspect:
        raise UserError("decoder= is missing: give the decoder/ folder of a run, as printed by train.py, or suspect=CHECKPOINT")
    if not cfg.decoder and (cfg.tensor or cfg.form != "auto" or cfg.layer is not None):
        raise UserError("tensor=, form= and layer= are about one matrix: give decoder= to read it, or leave them out to audit a checkpoint")
    if not cfg.decoder and (cfg.host or cfg.top != EvaluateConfig.top or cfg.allow_host_mismatch):
        raise UserError("host=, top= and allow_host_mismatch= are a decoder's: give decoder=, or leave them out. A suspect is its own host")
    if audits and (cfg.tensor or cfg.form != "auto"):
        raise UserError(f"tensor= and form= are about one matrix, {audits[0]}= about a whole checkpoint: leave one of them out")
    for name in ("decoder", "gate", "suspect", *AUDITS):
        setattr(cfg, name, os.path.expanduser(getattr(cfg, name)) if getattr(cfg, name) else None)
    if cfg.decoder and not is_collection(cfg.decoder):
        # A folder that is no decoder is refused before what takes seconds is imported.
        read_voters(cfg.decoder)
    with lasting():
        from decoder.audit.describe import describe
        from decoder.utils.terminal import console, quiet
    quiet()
    whole = cfg.suspect and (not cfg.decoder or audits)
    # What a program reads from standard output is the answer alone; how far long steps are is said beside it.
    with redirect_stdout(sys.stderr) if cfg.json else nullcontext():
        answer = audit_whole(cfg) if whole else audit(cfg) if cfg.suspect else score(cfg)
    if cfg.json:
        print(json.dumps(answer, ensure_ascii=False))
    else:
        if "chosen" in answer:
            console().print(f"Using {answer['chosen']}", highlight=False)
        console().print(describe(answer), highlight=False)
    if whole:
        # Said before: what fails now costs nobody the answer.
        keep(cfg, answer, argv)
    if code := answer.get("exit_code", 0):
        raise SystemExit(code)


def keep(cfg: EvaluateConfig, answer: Mapping[str, Any], argv: Sequence[str]) -> None:
    """Writes the page of a finding.

    Raises:
        UserError: that, or what was to be repaired, could not be written.
    """
    from decoder.report.audit_page import write_audit

    try:
        if cfg.report:
            write_audit(Path(cfg.report), answer, shlex.join(["python", "evaluate.py", *argv]))
    except OSError as error:
        raise UserError(f"report={cfg.report}: cannot be written ({error.strerror}). Give another file") from None
    if (repaired := answer.get("repaired") or {}).get("failed"):
        raise UserError(f"repair={cfg.repair}: {repaired['why']}")


def audit_whole(cfg: EvaluateConfig) -> dict[str, Any]:
    """What was done to a checkpoint, in which layers and about whom; with what decoders read in it, if they are given."""
    from data.facts.load import load_pocket
    from decoder.audit.candidates import read_subjects
    from decoder.audit.decoded.readers import reader_of_parts
    from decoder.audit.finding import audit_checkpoint
    from decoder.audit.relation import RelationClassifier
    from decoder.audit.suspect import Suspect
    from decoder.report.audit_page import refuse_page

    if cfg.report and cfg.repair and Path(cfg.report).resolve().is_relative_to(Path(cfg.repair).resolve()):
        raise UserError(f"report={cfg.report} lies in repair={cfg.repair}, which holds the checkpoint alone; give another file")
    if cfg.report:
        refuse_page(Path(cfg.report))
    suspect = Suspect(cfg.suspect)
    if not suspect.is_whole:
        raise UserError(f"suspect={cfg.suspect} {what_instead(cfg, suspect)}")
    if cfg.base and Path(cfg.base).resolve() == Path(cfg.suspect).resolve():
        raise UserError(f"base={cfg.base} is the suspect itself: give the checkpoint as it was before")
    facts = load_pocket().facts
    names = read_subjects(cfg.subjects) if cfg.subjects else [*dict.fromkeys(fact.subject for fact in facts)]
    sentences = {fact.relation_name: fact.templates for fact in facts}
    relations = RelationClassifier.load(cfg.relations) if cfg.relations else None
    texts = [f"{fact.prompt.replace('{}', fact.subject)} {fact.object_true}." for fact in facts]
    reader = reader_of_parts(cfg, suspect) if cfg.decoder else None
    where = {"base": cfg.base, "repaired": cfg.repair, "nulls": cfg.nulls, "cache_dir": cfg.cache_dir, "device": cfg.device}
    # What does not fit is refused before the audit, which takes longer.
    decoded = audit(cfg, in_place=True) if cfg.decoder else None
    asked = {"templates": sentences, "relations": relations, "texts": texts[::7], "reader": reader, "decoded": decoded}
    return audit_checkpoint(suspect, names, **asked, **where)[0]


def what_instead(cfg: EvaluateConfig, suspect: "Suspect") -> str:
    """What a suspect is that is no whole checkpoint, and what can be given in its place."""
    given = "=, ".join(name for name in AUDITS if getattr(cfg, name))
    read = "give decoder= to read it" + (f", and leave out {given}=" if given else "")
    if cfg.decoder:
        read = f"leave out {given}=, and the decoder reads it"
    if suspect.adapter.names:
        return f"holds a LoRA adapter alone: merge it into its base (merge_and_unload) and give that; or {read}"
    folder = suspect.checkpoint.path.parent
    if (folder / "config.json").is_file():
        return f"is one file of a checkpoint: give its folder, suspect={folder}"
    return f"is no whole checkpoint: {read}; or give a folder with config.json, weights and a tokenizer, or a GGUF file"


def audit(cfg: EvaluateConfig, *, in_place: bool = False) -> dict[str, Any]:
    """What was planted in a suspect: one matrix is read by the decoder that fits, all layers of a checkpoint by all that fit.

    What is read in place is evidence of an edit that needs no base.
    """
    from decoder.audit.decoded.answer import answer_for
    from decoder.audit.decoded.ranking import entries_for, rank
    from decoder.audit.suspect import Suspect

    suspect = Suspect(cfg.suspect, cfg.tensor, cfg.form)
    if is_collection(cfg.decoder) and suspect.is_checkpoint and not cfg.tensor and len(entries := entries_for(cfg, suspect)) > 1:
        return rank(cfg, suspect, entries, in_place=in_place)
    chosen = choose_decoder(cfg, suspect.matrices)
    return answer_for(cfg, suspect, in_place=in_place) | chosen


def choose_decoder(cfg: EvaluateConfig, matrices: Mapping[str, Sequence[int]] | None = None) -> dict[str, str]:
    """Points a config whose decoder is a folder of several at the one that fits, and says why; nothing to say where it is one decoder."""
    if not is_collection(cfg.decoder):
        return {}
    folder, reason = choose(cfg.decoder, host=cfg.host, layer=cfg.layer, tensors=matrices or None)
    cfg.decoder = str(folder)
    return {"chosen": reason}


def score(cfg: EvaluateConfig) -> dict[str, Any]:
    """Scores of a decoder, or of several that vote, on the test splits they were exported with."""
    from data.exported_splits import exported_splits, refuse_other
    from data.store.store import EditStore, find_store
    from decoder.audit.decoded.answer import found_from, read_splits
    from decoder.checkpoint.rounding import PRECISIONS
    from decoder.export.opened import open_voters
    from decoder.scores import test_scores

    chosen = choose_decoder(cfg)
    voters = open_voters(cfg)
    configs = voters.configs
    store = EditStore(Path(cfg.store).expanduser()) if cfg.store else find_store(cfg.cache_dir, own_store(configs))
    if (facts := store.manifest.get("facts_per_host", 1)) > 1:
        voters.tell_apart()
    config = scored_on(configs, store.fingerprint)
    refuse_other(store, config, cfg.allow_host_mismatch)
    splits = exported_splits(store, config, voters.host, PRECISIONS.get(cfg.precision))
    readings = read_splits(voters, splits.loaders, splits.table, facts)
    scores = {"test": test_scores(readings, found_from(configs, facts)), "left_out": splits.left_out, "precision": cfg.precision}
    scores |= {"gate": cfg.gate} if cfg.gate else {}
    return scores | {"decoder": cfg.decoder, "store": str(store.path), "editor": store.manifest["editor"]["name"]} | chosen


if __name__ == "__main__":
    main()
