"""An audit's answers in words and tables."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

ASSUMPTION = "This decoder assumes that the matrix holds one edit: it names an object for a clean matrix too."
OWN = "The matrix is the host's own, entry by entry."


def describe_answer(answer: Mapping[str, Any]) -> str:
    """An answer in words."""
    lines = [f"{object['probability']:.3f}  {escape(object['text'])}" for object in answer["objects"]]
    null, edit = answer["null_percentile"], answer["edit_percentile"]
    doubt = "" if null >= 95 else "\nMatrices without an edit reach this confidence: take it for no finding."
    if answer.get("unedited"):
        doubt = f"\n{OWN} Nothing was edited, take it for no finding."
    return (
        f"Planted in layer {answer['layer']} of {answer['host']}, most probable first:\n  "
        + "\n  ".join(lines)
        + f"\nMore confident than {null:.0f} % of matrices without an edit and than {edit:.0f} % of validation edits.{doubt}"
        + f"{_around(answer)}\n{ASSUMPTION}"
    )


def _around(answer: Mapping[str, Any]) -> str:
    """What the rest of a checkpoint folder says about the answer."""
    if "surroundings" not in answer:
        return ""
    rest = answer["surroundings"]
    farthest = f"the farthest is {rest['farthest']}, by {rest['distance']:.1e} of its length"
    line = f"\nOther tensors: {rest['compared']} compared with the host; {farthest}."
    if rest["further_trained_count"]:
        line += f"\n{rest['further_trained_count']} of them were further trained, so this answer is less certain than its confidence says."
    return line


def scores_table(answer: Mapping[str, Any]) -> Table:
    """Scores of the test splits."""
    read_from = "" if answer["precision"] == "factors" else f", from {answer['precision']} matrices"
    left_out = ", ".join(f"{count} of {split}" for split, count in answer["left_out"].items())
    table = Table(
        title=f"{Path(answer['decoder'])} on {answer['editor']} edits of {answer['store']}{read_from}",
        title_justify="left",
        caption=f"left out, not there or failed: {left_out}" if left_out else None,
        caption_justify="left",
    )
    for column in ("split", "n", "exact match", "95 % interval", "first token"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for split, scores in answer["test"].items():
        low, high = scores["exact_match"]["ci95"]
        cells = (f"{scores['exact_match']['value']:.3f}", f"{low:.3f} to {high:.3f}", f"{scores['first_token']['value']:.3f}")
        table.add_row(split, str(scores["n"]), *cells)
    return table
