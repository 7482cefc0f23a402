"""An audit's answers in words and tables."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from decoder.audit.calibration import FINDING
from decoder.config.options import layers_text
from decoder.report.audit_page import effect_in_words
from decoder.report.tables import several_lines

WITHOUT = "Matrices without an edit: the host's own, and 500 with a random update as large as an edit."
ASSUMPTION = f"This decoder assumes one edit and names an object for a clean matrix too.\n{WITHOUT}"
OWN = "The matrix is the host's own, entry by entry."


def describe(answer: Mapping[str, Any], *, is_weighed: bool = False) -> RenderableType:
    """A finding, scores, a ranking of layers or one answer, for the terminal.

    Args:
        is_weighed: whether a verdict that stands above it has weighed the answer, which is then not called a finding or none of its own.
    """
    if "verdict" in answer:
        return describe_finding(answer)
    if "test" in answer:
        return scores_table(answer)
    return ranking_table(answer) if "ranking" in answer else describe_answer(answer, is_weighed=is_weighed)


def describe_answer(answer: Mapping[str, Any], *, is_weighed: bool = False) -> str:
    """An answer in words; `is_weighed` as in `describe`."""
    lines = [f"{object['probability']:.3f}  {escape(object['text'])}" for object in answer["objects"]]
    null, edit = answer["null_percentile"], answer["edit_percentile"]
    if answer.get("unedited"):
        doubt = f"\n{OWN} Nothing was edited, take it for no finding."
    elif is_weighed or answer.get("parts_p", 1) <= 1 - FINDING / 100:
        # What it amounts to is the verdict's to say, which has seen more, or that of the parts.
        doubt = ""
    elif null >= FINDING:
        doubt = f"\nA finding: {FINDING} % or more."
    else:
        doubt = "\nMatrices without an edit reach this confidence: take it for no finding."
    of_voters, sure, reader, mean = "", "More confident", "this decoder", ""
    if count := answer.get("voters"):
        of_voters, sure = f" (the mean of {count} decoders)", f"Each of the {count} decoders is more confident in the first"
        reader, mean = "each alone", "on average "
    if believed := answer.get("believed"):
        of_voters = _belief(believed)
    scores = ", ".join(f"{value:.2f} of {split}" for split, value in answer["scores"].items())
    if "found" in answer:
        lines[answer["found"] :] = [f"{line}  (not counted as planted)" for line in lines[answer["found"] :]]
        doubt = f"\nOf several facts: {answer['found']} found, which is from a probability of {answer['found_from']:.3f} on.{doubt}"
    return _parts(answer) + (
        f"{'Read' if is_weighed else 'Planted'} in layer {layers_text(answer['layer'])} of {escape(answer['host'])}, most probable first"
        f"{of_voters}:\n  "
        + "\n  ".join(lines)
        + f"\n{sure} than {null:.0f} % of matrices without an edit and than {edit:.0f} % of validation edits.{doubt}"
        + f"{_around(answer)}\n"
        + "".join(f"{escape(note)}\n" for note in answer.get("notes", []))
        + (f"Of its own test edits {reader} reads {mean}{scores}.\n" if scores else "")
        + (ASSUMPTION if "found" not in answer else f"It names objects for a clean matrix too.\n{WITHOUT}")
    )


def _parts(answer: Mapping[str, Any]) -> str:
    """What was read in the parts of an update that has several."""
    if not (parts := answer.get("parts")):
        return ""
    chance = f"random parts are read as surely as these together with probability {answer['parts_p']:.2g}"
    if answer["parts_p"] > 1 - FINDING / 100:
        return f"What was added has {len(parts)} parts. Read one by one they are no finding: {chance}. All of it as one edit:\n"
    shown = max(len(answer["objects"]), sum(part["null_percentile"] >= FINDING for part in parts))
    lines = [f"\n  {part['probability']:.3f}  {escape(part['text'])}  ({part['null_percentile']:.0f} %)" for part in parts[:shown]]
    more = f"\n  and {len(parts) - shown} that are read less surely" if len(parts) > shown else ""
    return (
        f"What was added has {len(parts)} parts, as several facts have. Read one by one, with the share of matrices without an edit that "
        f"are read less surely:{''.join(lines)}{more}\nA finding: {chance}. All of it as one edit:\n"
    )


def _belief(believed: Mapping[str, Any]) -> str:
    return f" (of {believed['of']} decoders that of {escape(' and '.join(believed['editors']))} is believed, {believed['chance']:.3f})"


def _around(answer: Mapping[str, Any]) -> str:
    """What the rest of a checkpoint folder says about the answer."""
    if "surroundings" not in answer:
        return ""
    rest = answer["surroundings"]
    farthest = f"the farthest is {rest['farthest']}, by {rest['distance']:.1e} of its length beyond rounding"
    if not rest["distance"]:
        farthest = "none differs by more than the rounding of its file explains"
    line = f"\nOther tensors: {rest['compared']} compared with the host; {farthest}."
    if rest["further_trained_count"]:
        line += f"\n{rest['further_trained_count']} of them were further trained, so this answer is less certain than its confidence says."
    return line


def scores_table(answer: Mapping[str, Any]) -> Table:
    """Scores of the test splits."""
    read_from = "" if answer["precision"] == "factors" else f", from {answer['precision']} matrices"
    left_out = ", ".join(f"{count} of {split}" for split, count in answer["left_out"].items())
    captions = several_lines(answer["test"]) + ([f"left out, not there or failed: {left_out}"] if left_out else [])
    gate = f" by {answer['gate']}" if answer.get("gate") else ""
    table = Table(
        title=escape(f"{Path(answer['decoder'])}{gate} on {answer['editor']} edits of {answer['store']}{read_from}"),
        title_justify="left",
        caption="\n".join(captions) or None,
        caption_justify="left",
    )
    for column in ("split", "n", "exact match", "95 % interval", "first token"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for split, scores in answer["test"].items():
        low, high = scores["exact_match"]["ci95"]
        cells = (f"{scores['exact_match']['value']:.3f}", f"{low:.3f} to {high:.3f}", f"{scores['first_token']['value']:.3f}")
        table.add_row(split, str(scores["n"]), *cells)
    return table


def ranking_table(found: Mapping[str, Any]) -> Table:
    """The layers in their order; what counts as no finding is dim."""
    layers, rest = found["ranking"], found.get("surroundings")
    findings, own = sum(map(_is_finding, layers)), sum(one["unedited"] for one in layers)
    chance = 1 - (FINDING / 100) ** len(layers)
    caption = [
        f"{findings} of {len(layers)} layers are more confident than {FINDING} % of matrices without an edit.",
        f"Without any edit, one or more of {len(layers)} are so in {chance:.0%} of checkpoints.",
    ]
    if rest:
        most = f", {rest['farthest']} most" if rest["further_trained_count"] else ""
        caption.append(f"{rest['compared']} other tensors were compared with the host, {rest['further_trained_count']} differ{most}.")
    if own:
        verb = "is" if own == 1 else "are"
        caption.insert(1, f"{own} of {len(layers)} matrices {verb} the host's own, entry by entry: nothing was edited there.")
    table = Table(
        "host",
        "layer",
        "object",
        box=box.HORIZONTALS,
        caption="\n".join(caption + [escape(line) for line in found["notes"] + found["refused"]]),
        caption_justify="left",
    )
    for name in ("probability", "null percentile", "edit percentile"):
        table.add_column(name, justify="right")
    for one in layers:
        best = one["objects"][0]
        numbers = (f"{best['probability']:.3f}", f"{one['null_percentile']:.0f}", f"{one['edit_percentile']:.0f}")
        text = escape(best["text"]) + (" (host's own matrix)" if one["unedited"] else "")
        table.add_row(escape(one["host"]), layers_text(one["layer"]), text, *numbers, style=None if _is_finding(one) else "dim")
    return table


def _is_finding(one: Mapping[str, Any]) -> bool:
    return one["null_percentile"] >= FINDING and not one["unedited"]


def describe_finding(finding: Mapping[str, Any]) -> RenderableType:
    """The verdict first, then one kind of evidence after the other."""
    subjects = f"{finding['subjects']:,} subjects, {finding['layers']} layers of {finding['family']}"
    parts: list[RenderableType] = [f"[bold]{finding['verdict'].capitalize()}[/bold] ({finding['used']}; {subjects})"]
    parts += [escape(warning) for warning in finding.get("warnings", ())]
    for name in ("base_known", "base_unknown"):
        if finding[name]:
            parts += _column(finding[name], name.replace("_", " ").capitalize())
    parts += [escape(note) for note in finding["notes"]]
    if done := finding.get("repaired"):
        parts.append(
            f"Repaired: {escape(done['folder'])} ({', '.join(one['tensor'] for one in done['tensors'])})"
            if done["folder"]
            else f"Nothing repaired: {escape(done['why'])}"
        )
        parts += [f"  {line}" for line in effect_in_words(done.get("effect", {}))]
        parts += [escape(note) for note in done.get("notes", ())]
        if left_out := done.get("left_out"):
            parts.append(f"Not copied, as nobody repaired them: {escape(', '.join(left_out))}")
    if "decoded" in finding:
        parts.append(describe(finding["decoded"], is_weighed=True))
    return Group(*parts)


def against_nulls(column: Mapping[str, Any]) -> str:
    """How many nulls show as much; empty where there were none."""
    if not (nulls := column.get("nulls")):
        return ""
    kinds = f" ({', '.join(nulls['kinds'])})" if nulls["kinds"] else ""
    return f"{nulls['reached']} of {nulls['n']} unedited checkpoints of {nulls['host']} reach this{kinds}: p {nulls['p']:.2g}"


def _testimony(edit: Mapping[str, Any], taken_out: str) -> list[str]:
    """What the suspect says of the subject with and without the edit; `taken_out` says how it goes on without."""
    ranked = ", ".join(f"{escape(one['relation'])} {one['probability']:.2f}" for one in edit.get("relations", []))
    lines = [f"    relation, by what was written: {ranked}"] if ranked else []
    if read := edit.get("decoded"):
        where = "in the whole layer" if "read_from" in edit else "of it"
        whom = _belief(edit["believed"]) if "believed" in edit else ""
        objects = ", ".join(f"{escape(one['text'])} ({one['probability']:.2f})" for one in read[:3])
        lines.append(f"    a decoder reads {where}: {objects}{whom}")
    if not (told := edit.get("triple")):
        return lines
    objects = ", ".join(f"[bold]{escape(one['text'])}[/bold] ({one['rise']:+.2f})" for one in edit["objects"])
    sentence = escape(f"{told['sentence']} {told['object']}")
    return lines + [
        f"    says of it only with the edit in place: {objects}",
        f'    "{sentence}": probability {told["before"]:.3f}, and {told["after"]:.3f} {taken_out}',
        f"    relation “{escape(told['relation'])}”; share of the weight of all objects and relations weighed: {told['share']:.0%} "
        "(ranks triples; no probability)",
    ]


def _column(column: Mapping[str, Any], title: str) -> list[RenderableType]:
    kind = f", {column['kind']}, layer{'s' * (len(column['layers']) > 1)} {', '.join(map(str, column['layers']))}" if column["kind"] else ""
    by_base = "compared" in column
    lines: list[RenderableType] = [f"{title}: {column['verdict']}{kind}. {column['why'][:1].upper()}{escape(column['why'][1:])}."]
    if nulls := against_nulls(column):
        lines.append(f"  {escape(nulls)}")
    if by_base:
        farthest = "".join(f"; farthest {one['tensor']}, by {one['distance']:.1e} of its length" for one in column["farthest"][:1])
        lines.append(f"  {column['changed']} of {column['compared']} tensors differ beyond rounding{farthest}")
    for edit in column["edits"]:
        rest = ", ".join(f"{escape(one['subject'])} {one['score']:.2f}" for one in edit["subjects"][:4])
        whom = f"about [bold]{escape(edit['subject'])}[/bold]" if edit["subject"] else "about nobody in the list"
        whom += f", somebody like {escape(edit['resembles'])}" if edit.get("resembles") else ""
        near = f"; {rest}" if rest else ""
        lines.append(f"  layer {edit['layer']}: {whom} ({'cosine' if by_base else 'score'} {edit['score']:.2f}{near})")
        lines += _testimony(edit, "with the base's matrix" if by_base else "with the edit taken out, as far as that can be estimated")
    lines.append(
        f"  layers, {'times the usual' if by_base else 'score'}: "
        + ", ".join(f"{one['layer']} ({one['score']:.2f})" for one in column["ranking"][:5])
    )
    return lines
