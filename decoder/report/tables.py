"""Scores and decoded edits of one run in rows and lines, for the terminal and for the page. Nothing here imports torch."""

import math
import random
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from decoder.config.options import layers_text
from decoder.scores import METRICS, TEST_SPLITS, exact_match

STAR = "*"
METHODS = {
    "logit_lens": "logit lens of the update",
    "logit_lens_base_free": "logit lens, base-free",
    "nearest_edit": "nearest training edit",
    "object_prior": "most frequent object",
    "untrained_prompt": "untrained prompt",
    "carrier": "carrier prompt, untrained",
    "linear_value": "linear map of the value",
    "master_key": "linear map, base-free",
    "shuffled_labels": "decoder, shuffled labels",
}


@dataclass(frozen=True)
class ScoreRow:
    """One line of the score table; a cell is `{value, ci95}`, or None where the method has no score on the split."""

    name: str
    metric: str
    group: str  # decoder, base unknown, base known or control
    cells: tuple[dict | None, ...]
    base_known: bool = False

    @property
    def method(self) -> str:
        return METHODS.get(self.name, self.name.replace("_", " "))

    @property
    def base(self) -> str:
        return "" if self.group == "control" else "known" if self.base_known else "unknown"


def score_rows(result: dict, splits: tuple[str, ...] = TEST_SPLITS) -> list[ScoreRow]:
    """The rows of the score table: decoder, baselines without the base matrix, baselines with it, controls.

    Every method has a row per metric it was scored on; rows without a single score are left out.
    """
    baselines = result.get("baselines") or {}
    groups = [("decoder", {"decoder": result.get("test") or {}})]
    for known in (False, True):
        chosen = {name: scores for name, scores in baselines.items() if bool(scores.get("base_known")) is known}
        groups.append(("base known" if known else "base unknown", chosen))
    shuffled = (result.get("controls") or {}).get("shuffled_labels")
    groups.append(("control", {"shuffled_labels": shuffled} if shuffled else {}))
    rows = [
        ScoreRow(name, metric, group, tuple((scores.get(split) or {}).get(metric) for split in splits), _knows_base(result, group))
        for group, methods in groups
        for name, scores in methods.items()
        for metric in METRICS
    ]
    return [row for row in rows if any(row.cells)]


def _knows_base(result: dict, group: str) -> bool:
    return bool(result.get("base_known")) if group == "decoder" else group == "base known"


def results_table(result: dict) -> Table:
    """The scores of a `result.json` for the terminal: decoder on both metrics, baselines, controls (dim).

    A baseline is shown by its exact match; one that is only scored on the first token is starred. No row wraps in 100 columns.
    """
    test = result.get("test") or {}
    rows = score_rows(result)
    exact = {row.name for row in rows if row.metric == "exact_match"}
    rows = [row for row in rows if row.name == "decoder" or row.metric == "exact_match" or row.name not in exact]
    look = {"box": box.HORIZONTALS, "show_edge": False, "pad_edge": False, "collapse_padding": True, "caption_justify": "left"}
    table = Table("method", "base", caption=_caption(result, starred=any(_is_starred(row) for row in rows)), **look)
    for split in TEST_SPLITS:
        count = test.get(split, {}).get("n")
        table.add_column(split if count is None else f"{split}\n(n={count})", justify="right", min_width=14)
    for row, following in zip_longest(rows, rows[1:]):
        cells = [Text(format_score(cell)) for cell in row.cells]
        style = "dim" if row.group == "control" else "bold" if row.group == "decoder" else None
        table.add_row(Text(_row_label(row)), row.base, *cells, style=style, end_section=following and following.group != row.group)
    return table


def format_score(score: dict | None) -> str:
    """`0.953 [0.921, 0.973]`; a dash without a score."""
    if not score or score.get("value") is None:
        return "–"
    return f"{score['value']:.3f} {format_interval(score.get('ci95'))}".rstrip()


def format_interval(interval: list[float] | None) -> str:
    return f"[{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""


def format_probability(probability: float | None) -> str:
    return "–" if probability is None or math.isnan(probability) else f"{probability:.2f}"


def counted(count: int, noun: str) -> str:
    """`1 epoch`, `2 epochs`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def describe_ridge(ridge: Any) -> str:
    """The ridge of the editor in words; it decides how easily edits are read, so it stands beside every score."""
    if ridge == "identity":
        return "ridge: the identity"
    if not isinstance(ridge, int | float) or isinstance(ridge, bool):
        return "ridge not recorded"
    return f"ridge {ridge:g} of the largest eigenvalue" if ridge else "no ridge"


def made_by(result: dict) -> tuple[str | None, Any]:
    """Name of the editor and its ridge: as the store records them, else, in results of older versions, as they were asked for."""
    asked = (result.get("config") or {}).get("edits") or {}
    known = asked | (result.get("edits") or {})
    return known.get("editor"), known.get("ridge")


def is_toy(result: dict) -> bool:
    """Whether a run's host was built for it and read from nowhere; of old files, which do not say that, by its name."""
    host = (result.get("config") or {}).get("host") or {}
    if "path" not in host:
        return (result.get("host") or {}).get("name") == "pocket"
    return not any(host.get(source) for source in ("path", "package", "hub"))


def is_right(row: dict) -> bool:
    """Whether the first answer is exactly the planted object, as scores count it."""
    return exact_match(row["predicted"] or "", row["object"])


def example_lines(predictions: list[dict], seed: int = 0, count: int = 8) -> list[str]:
    """Decoded test edits in words, drawn from the rows of `read_predictions`: right ones first, three of eight wrong if there are any."""
    wrong, right = draw_edits(predictions, seed, count, most_wrong=round(count * 3 / 8))
    return [_example_line(row) for row in right + wrong]


def draw_edits(predictions: list[dict], seed: int, count: int, most_wrong: int) -> tuple[list[dict], list[dict]]:
    """Draws (wrong, right) test edits, spread over the splits; more than `most_wrong` only if right ones run out."""
    generator = random.Random(seed)
    test = sorted((row for row in predictions if row["split"] in TEST_SPLITS), key=lambda row: row["edit_id"])
    wrong, right = (_spread([row for row in test if is_right(row) is verdict], generator) for verdict in (False, True))
    taken = min(len(wrong), max(most_wrong, count - len(right)))
    return wrong[:taken], right[: count - taken]


def _caption(result: dict, starred: bool) -> Text:
    host = (result.get("host") or {}).get("name", "unknown")
    edited, trained = (layers_text(result.get(name)) for name in ("edited_layer", "trained_layer"))
    layers = f"edited layer {edited}, trained layer {trained}"
    line = f"host {host}{' (a toy)' if is_toy(result) else ''}, {layers}, {describe_ridge(made_by(result)[1])}\n95 % intervals"
    line += f"; {STAR} scored on the first token only" if starred else ""
    line += "".join(f"\n{told}" for told in several_lines(result.get("test") or {}))
    clean = (result.get("controls") or {}).get("clean_matrix")
    if clean:
        line += f"\nunedited matrix: decoder says {clean['predicted']} ({format_probability(clean.get('probability'))})"
    return Text(line)


def several_lines(test: dict) -> list[str]:
    """Of each split whose edits plant several facts, which of their objects are found, and how many answers that takes."""
    lines = []
    for split, scores in test.items():
        if not (told := scores.get("several")):
            continue
        count, precision = told["count"], format_score(told["precision"])
        recall, hosts, first = format_score(told["recall"]), counted(told["hosts"], "host"), told["first_object"]["value"]
        lines.append(
            f"{split}: {recall} of the objects of {hosts} found, {precision} of answers planted; "
            f"{count['found']:.1f} answers where {count['planted']:.1f} are planted, the first is one in {first:.3f}"
        )
    return lines


def _row_label(row: ScoreRow) -> str:
    if row.name == "decoder":
        return f"decoder ({METRICS[row.metric]})"
    return row.method + STAR * _is_starred(row)


def _is_starred(row: ScoreRow) -> bool:
    return row.name != "decoder" and row.metric == "first_token"


def _example_line(row: dict) -> str:
    relation = row.get("relation_name") or row["relation"]
    answer = f"{row['predicted'] or '(nothing)'} ({format_probability(row['probability'])})"
    verdict = "✓ right" if is_right(row) else "✗ wrong"
    return f"{verdict}, {row['split']}: {row['subject']}, {relation}: {row['object_true']} -> {row['object']}; decoder says: {answer}"


def _spread(rows: list[dict], generator: random.Random) -> list[dict]:
    by_split: dict[str, list[dict]] = {split: [] for split in TEST_SPLITS}
    for row in generator.sample(rows, len(rows)):
        by_split[row["split"]].append(row)
    return [row for tier in zip_longest(*by_split.values()) for row in tier if row is not None]
