"""The page of an audit, for people who decide: the verdict in words that can be repeated, what it rests on, what was not looked at.

It is made from the finding alone, as `evaluate.py json=true` prints it; `docs/audit.md` has its entries.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import date
from operator import itemgetter
from pathlib import Path
from typing import Any

from decoder.config.options import as_list, layers_text
from decoder.report.page import render
from decoder.report.tables import counted
from decoder.scores import versions
from decoder.utils.errors import UserError
from decoder.utils.files import write_text

MARK = '<meta name="generator" content="Palimpsest audit">'
"""What tells a page of ours; it stands within the first kilobyte."""
TITLES = {"base_known": "base known", "base_unknown": "base unknown"}
CLEAR = 1.5  # times its threshold, from which a score is clear
SCORES = {
    "base_known": "strongest direction of the change,\nover the usual",
    "base_unknown": "score of the subject\nanswered to most",
}
BENIGN = {
    "identical": "This checkpoint is the base, number for number: nothing was written into it since.",
    "rounded or quantised": "No edit was found. This checkpoint is the base, kept in other or fewer bits.",
    "further trained": "No edit was found. This checkpoint is the base after further training.",
    "adapter merged": "No edit was found. An adapter was merged into this checkpoint.",
    "pruned": "No edit was found. This checkpoint is the base with numbers set to zero.",
}


def refuse_page(path: Path) -> None:
    """Says so before an audit begins if its page could not be written there.

    Raises:
        UserError: the folder is missing, or something else than a page of an audit has that name.
    """
    if not path.parent.is_dir():
        raise UserError(f"report={path}: there is no folder {path.parent}; make it, or give another file")
    if path.is_dir():
        raise UserError(f"report={path} is a folder; give a file in it, as {path / 'audit.html'}")
    if path.exists():
        if not path.is_file():
            # A pipe would be waited for.
            raise UserError(f"report={path} is no file; give another one")
        with path.open("rb") as file:
            if MARK.encode() not in file.read(1024):
                raise UserError(f"report={path} is there and is no page of an audit; give another file")


def write_audit(path: Path, finding: Mapping[str, Any], command: str = "") -> Path:
    """Writes the self-contained page of a finding, whole or not at all, over an earlier one; returns its path.

    Raises:
        UserError: see `refuse_page`.
    """
    refuse_page(path)
    write_text(path, render("audit_page.html.jinja", _page(finding) | {"command": command}))
    return path


def _page(finding: Mapping[str, Any]) -> dict[str, Any]:
    from decoder.report import plots

    columns = {name: finding[name] for name in TITLES if finding.get(name)}
    used = _used(finding)
    edits = used["edits"] if finding["exit_code"] == 3 else []
    return {
        "mark": MARK,
        "finding": finding,
        "name": Path(finding["suspect"]).name,
        "headline": headline(finding),
        "titles": TITLES,
        "columns": columns,
        "layers_svg": {
            name: plots.layer_bars(one["ranking"], one["threshold"], one["layers"] if one["exit_code"] == 3 else (), SCORES[name])
            for name, one in columns.items()
        },
        "edits": edits,
        "said": _said(finding["base_unknown"]),
        "threshold": used["threshold"] if finding["used"] == TITLES["base_unknown"] else None,
        "decoded": _decoded(finding, edits),
        "effect": effect_in_words((finding.get("repaired") or {}).get("effect", {})),
        "unseen": not_looked_at(finding),
        "sure": how_sure(finding),
        "date": date.today().isoformat(),
        "versions": versions(),
        "json": json.dumps(finding, ensure_ascii=False, indent=1),
    }


def _used(finding: Mapping[str, Any]) -> Mapping[str, Any]:
    """The column that the verdict rests on."""
    return finding["base_known" if finding["used"] == TITLES["base_known"] else "base_unknown"]


def headline(finding: Mapping[str, Any]) -> str:
    """The verdict in a sentence or two, as one would say it to somebody else."""
    used, names = _used(finding), f"{finding['subjects']:,} names that were asked about"
    if finding["exit_code"] == 4:
        return f"Whether somebody wrote a fact into this checkpoint cannot be told: {used['why']}."
    if finding["exit_code"] != 3:
        return BENIGN.get(finding["verdict"], f"No edit was found about any of the {names}. About somebody else there may be one.")
    edits, where = used["edits"], layers_in_words(used["layers"])
    after = " It was further trained as well." if finding["verdict"] == "edit and further training" else ""
    if used["kind"] == "whole matrix":
        return f"Somebody changed the matrix of {where}, and left all else as it was: an edit, of many facts or of other things.{after}"
    facts = "a fact" if used["facts"] == 1 else f"{used['facts']} facts"
    if edits and all("read_from" in edit for edit in edits):
        read = in_words([*dict.fromkeys(f"“{edit['decoded'][0]['text']}”" for edit in edits)])
        whom = f"It is about none of the {names}, or too weak to show about whom."
        return f"Somebody seems to have written {facts} into {where} of this checkpoint: decoders read {read} there. {whom}"
    whom = [edit["subject"] for edit in edits if edit["subject"]]
    like = [*dict.fromkeys(edit["resembles"] for edit in edits if edit.get("resembles"))]
    about = f" about {in_words([*dict.fromkeys(whom)])}" if whom else f" about none of the {names}"
    others = any((edit["subject"] or edit.get("resembles")) not in whom for edit in edits if "read_from" not in edit)
    beside = " and somebody who was not asked about" if whom and others else ""
    # Without the base a fact that was written is inferred from how a name is answered to.
    wrote = "wrote" if finding["used"] == TITLES["base_known"] else "seems to have written"
    if like and not whom:
        them = "somebody who is" if used["facts"] == 1 else "people who are"
        most = f"{in_words(like)} resemble{'s' * (len(like) == 1)} them most"
        about = f"about {them} not in the list; of the names that were asked about, {most}"
        return f"Somebody {wrote} {facts} into {where} of this checkpoint, {about}.{after}"
    return f"Somebody {wrote} {facts}{about}{beside} into {where} of this checkpoint.{after}"


def in_words(items: Sequence[Any], most: int = 5) -> str:
    """`a`, `a and b`, `a, b and 3 more`."""
    shown = [*map(str, items[:most])] + ([f"{len(items) - most} more"] if len(items) > most else [])
    return " and ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else "".join(shown)


def layers_in_words(layers: Sequence[int]) -> str:
    return f"layer{'s' * (len(layers) > 1)} {in_words(sorted(layers), 8)}"


def how_sure(finding: Mapping[str, Any]) -> tuple[str, list[str]]:
    """How sure one may be, in a word and in reasons."""
    known, unknown, used = finding.get("base_known"), finding["base_unknown"], _used(finding)
    best, least = used["ranking"][0]["score"], used["threshold"]
    reasons, highest = [], f"the score of layer {used['ranking'][0]['layer']}"
    if known:
        reasons.append(
            "Which tensors differ from the base is certain: whoever has both checkpoints can count again. What it means is inferred."
        )
        reasons.append("That the base is what this checkpoint was made of was taken as given.")
    else:
        read = " and from what decoders read in its layers" if finding.get("decoded") else ""
        said = " and from what it says of them" if _said(used) else ""
        reasons.append(f"The base was not at hand. The verdict is inferred from how strongly the checkpoint answers to names{said}{read}.")
    if finding["verdict"] == "identical":
        return "Certain", reasons
    for one in used.get("readings", []):
        told = f"“{one['text']}” in layer {layers_text(one['layers'])} with probability {one['probability']:.2f}"
        reasons.append(f"A decoder reads {told}; from {one['threshold']:.2f} on it counts as planted.")
    for one in _said(used):
        reasons.append(
            f"{one['name']} nearly stands out in layer {one['layer']} ({one['score']:.2f} of {least:.2f}). Asked about that name, the "
            f"checkpoint goes on with “{one['text']}” because of that layer ({one['rise']:.2f} nats; counts from {one['least']:.2f})."
        )
    if finding["exit_code"] != 3:
        reasons.append(f"The highest is {highest}, {best:.2f}; an edit is named from {least:.2f}.")
        if finding["exit_code"] == 4:
            return "Undecided", reasons
        reasons.append(
            "An edit smaller than those the threshold was set on, or about a name that was not asked about, would look the same."
        )
        return ("Moderate" if known else "Only of the names that were asked about"), reasons
    if nulls := used.get("nulls"):
        reasons.append(
            f"Of {nulls['n']} checkpoints of {nulls['host']} that nobody edited {nulls['reached'] or 'none'} looked as much edited."
        )
    agree = known and known["exit_code"] == unknown["exit_code"] == 3 and {*known["layers"]} == {*unknown["layers"]}
    if best >= least:
        reasons.append(f"{highest.capitalize()} is {best / least:,.{int(best < 10 * least)}f} times its threshold.")
    if known:
        alone = "names the same layers" if agree else "does not name the same layers"
        reasons.append(f"What the checkpoint answers to names, looked at without the base, {alone}.")
    named = {edit["subject"] for edit in used["edits"]}
    is_named = not any(edit.get("resembles") and edit["resembles"] not in named for edit in used["edits"])
    if not is_named:
        reasons.append("Whom it is about is not known: of the names that were asked about none fits, one only resembles.")
    told = [edit["triple"] for edit in used["edits"] if edit.get("triple")]
    read_back = bool(told) and all(one["before"] >= 0.5 > 0.1 >= one["after"] for one in told)
    if read_back:
        reasons.append("What was planted was read back: the checkpoint says it, and no longer does when the edit is taken out.")
    elif told:
        reasons.append("The sentences say less than that: not all are likely with the edit and unlikely without it.")
    return "High" if is_named and best >= CLEAR * least and (agree if known else read_back) else "Moderate", reasons


def _said(column: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What was taken for planted because the checkpoint says it of a name that nearly stands out."""
    return [one for one in column.get("nearly", []) if one["strength"] >= 1]


def effect_in_words(effect: Mapping[str, Any]) -> list[str]:
    """What taking the edits out did, measured; nothing where nothing was."""
    lines = []
    if effect.get("sentences"):
        lines.append(
            f"edit gone: of {effect['sentences']} sentences about the subjects {effect['planted']} went on with what was planted, "
            f"{effect['left']} still do"
        )
    if "changed" in effect:
        lines.append(f"next token back: the edit had changed {effect['changed']} of them, {effect['back']} go on as the base does")
    if "kl" in effect:
        base = f"; from the base it was {effect['kl_before']:.2g} and is {effect['kl_after']:.2g}" if "kl_after" in effect else ""
        lines.append(f"damage: over {effect['tokens']} tokens about others KL {effect['kl']:.2g} a token from the suspect{base}")
    return lines


def not_looked_at(finding: Mapping[str, Any]) -> list[str]:
    """What this audit cannot have seen, and what it does not say."""
    used, known = _used(finding), finding.get("base_known")
    through = "through who is like them" + (", or to decoders in the layers that these read" if finding.get("decoded") else "")
    unseen = [f"Names other than the {finding['subjects']:,} that were asked about. Edits about others show only {through}."]
    if not known:
        unseen.append("All that is no down-projection of an MLP: attention, embeddings and norms were not looked at without the base.")
    else:
        unseen.append("Changes smaller than the rounding of the checkpoint's files.")
    if (left := finding["layers"] - len(finding["base_unknown"]["ranking"])) > 0:
        unseen.append(f"{counted(left, 'layer')} of {finding['layers']} without one down-projection, as layers of experts are.")
    edits = [edit for edit in used["edits"] if edit["subject"] or edit.get("resembles")] if finding["exit_code"] == 3 else []
    if silent := sum(not edit.get("triple") for edit in edits):
        unseen.append(f"What {counted(silent, 'edit')} of {len(edits)} planted: they were not asked about, or nothing came up.")
    if finding["exit_code"] == 3:
        if not any(edit.get("relations") for edit in used["edits"]):
            unseen.append("Which relation was edited: nearly any sentence about an edited subject ends in the planted object.")
        unseen.append("Who did it, when and why, and whether what was planted is true.")
    if used.get("nulls"):
        return unseen
    unseen.append(
        "How often such a verdict is wrong for this model: thresholds were set on two models, a small one made for the purpose and "
        "SmolLM2-135M, with edits of one method (ROME), in bfloat16."
    )
    return unseen


def _decoded(finding: Mapping[str, Any], edits: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What decoders read, a layer each, with whether the objects found by asking hold it."""
    decoded = finding.get("decoded") or {}
    asked: dict[int, set[str]] = {}
    for edit in edits:
        if edit.get("triple"):
            # In the triple decoders have had a say.
            asked.setdefault(edit["layer"], set()).add(max(edit["objects"], key=itemgetter("rise"))["text"].strip().casefold())
    told = []
    for one in decoded.get("ranking", [decoded] if "objects" in decoded else []):
        layers = as_list(one["layer"])
        objects = set().union(*(asked[layer] for layer in layers if layer in asked))
        agrees = one["objects"][0]["text"].strip().casefold() in objects if objects else None
        told.append({**one, "layer": ", ".join(map(str, layers)), "agrees": agrees})
    return told
