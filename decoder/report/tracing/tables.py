"""The tables of what was measured, each with n and intervals beside what was published: rows of texts, for Markdown and for the page."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from decoder.report.tables import format_score
from decoder.report.tracing import published
from decoder.report.tracing.published import SOURCE

DASH = "–"
SHOWN_TERMS = 5  # of which the similarity is told


@dataclass(frozen=True)
class Table:
    """Rows under titles, the first `measured` of them ours; the first column names a row, the others are numbers."""

    title: str
    titles: Sequence[str]
    rows: Sequence[Sequence[str]]
    measured: int
    note: str

    def markdown(self) -> str:
        told = [" | ".join(cell.replace("|", r"\|") for cell in row) for row in (self.titles, *self.rows)]
        lines = [f"| {told[0]} |", "| --- " * len(self.titles) + "|", *(f"| {row} |" for row in told[1:])]
        return "\n".join([f"**{self.title}**", "", *lines, "", self.note])


def label(found: Mapping[str, Any]) -> str:
    """`pocket, layer 1`."""
    return f"{found['host']['name']}, layer {found['layer']}"


def tables(measured: Sequence[Mapping[str, Any]]) -> Iterator[Table]:
    """Every table of stores that were measured, in the paper's order."""
    yield _directions(measured)
    yield _pcs(measured)
    yield _relations(measured)
    yield _reversal(measured)
    yield _similarity(measured)
    if any(found["texts"] for found in measured):
        yield _texts(measured)


def _directions(measured: Sequence[Mapping[str, Any]]) -> Table:
    rows = [[label(found), _n(found["n"]), format_score(found["directions"]), _sd(found["directions"])] for found in measured]
    rows += [[host, DASH, told, DASH] for host, told in published.DIRECTIONS.items()]
    note = f"Share of an update's rows that point one way: of the entries of its key, those of one sign. Published: {SOURCE}, section 4.1."
    return Table("Directions of rows", ("", "edits", "share", "sd"), rows, len(measured), note)


def _pcs(measured: Sequence[Mapping[str, Any]]) -> Table:
    rows = []
    for found in measured:
        pcs = found["pcs"]
        clean = pcs["layers"][found["layer"]]
        others = [value for layer, value in enumerate(pcs["layers"]) if layer != found["layer"] and value is not None]
        spread = f"{min(others):.1e} to {max(others):.1e}" if others else DASH
        cells = (
            DASH if clean is None else f"{clean:.1e}",
            f"{pcs['edited']['value']:.1e}",
            f"{pcs['edited']['sd']:.1e}",
            format_score(pcs["change"]),
            _sd(pcs["change"]),
        )
        rows.append([label(found), _n(found["n"]), *cells, spread])
    rows += [[host, DASH, clean, edited, DASH, DASH, DASH, DASH] for host, (clean, edited) in published.PCS.items()]
    titles = ("", "edits", "unedited", "edited", "sd", "change / |unedited|", "sd", "other layers")
    note = "pcs: mean cosine of two rows of W_Vᵀ; change: (pcs(W') - pcs(W)) / |pcs(W)|; other layers: least and most. "
    note += f"Published: {SOURCE}, section 4.2."
    return Table("Rows that became alike (pcs)", titles, rows, len(measured), note)


def _relations(measured: Sequence[Mapping[str, Any]]) -> Table:
    rows = []
    for found in measured:
        by_classes = {row["classes"]: row for row in found["relations"]["by_classes"]}
        each = [by_classes[count] for count in published.CLASSES if count in by_classes]
        most = f"{max(row['train'] for row in each):.0f} + {max(row['test'] for row in each):.0f}"
        for name, told in (("published", "published recipe"), ("value", "value, base known"), ("read", "value read out of W'")):
            cells = [_plain(by_classes[count][name]) if count in by_classes else DASH for count in published.CLASSES]
            rows.append([f"{label(found)}: {told}", most, *cells])
    rows += [[host, "50 + 50", *(f"{value:.2f}" for value in values)] for host, values in published.RELATIONS.items()]
    note = (
        "Accuracy by number of relations, mean ± half of Student's 95 % interval over repeats with other relations and subjects; "
        "no subject is in training and test. Edits: of a relation, training + test; where the store has fewer than 50 of each, its most. "
        "Recipe: 50 principal components of at most 100 matrices W', logistic regression. The others: our classifier, learnt on true "
        f"values. Published: {SOURCE}, section 5."
    )
    titles = ("", "edits", *map(str, published.CLASSES))
    return Table("Relation of an edit, by number of relations", titles, rows, sum("±" in "".join(row) for row in rows), note)


def _reversal(measured: Sequence[Mapping[str, Any]]) -> Table:
    rows = []
    for found in measured:
        reversal = found["reversal"]
        best, by_k = reversal["best_k"], reversal["by_k"]
        ranks = [k for k, count in enumerate(reversal["usual"]["ranks"]) for _ in range(count)]
        told = [
            ("as it is", "0", by_k[0]),
            ("bottom rank", "1", by_k[min(1, len(by_k) - 1)]),
            ("bottom rank, best k, chosen with labels", str(best), by_k[best]),
            ("bottom rank, k without labels", f"median {sorted(ranks)[len(ranks) // 2]}", reversal["usual"]),
            ("traced, without labels", DASH, reversal["traced"]),
        ]
        rows += [[f"{label(found)}: {name}", k, _n(reversal["n"]), *_agreement(cell)] for name, k, cell in told]
    ours = len(rows)
    for host, entries in published.REVERSAL.items():
        rows += [[host, str(k), "310", f"{back:.3f}", f"{left:.3f}"] for k, back, left in entries]
    found_shares = "; ".join(
        f"{label(one)} {format_score(one['reversal']['subject_found'])} of {one['reversal']['subjects']}" for one in measured
    )
    note = (
        "Next token after the edited prompt: that of the unedited host, that of the edited one. Bottom rank: W' without its k largest "
        "singular components. Without labels: k is the fewest with which the subject found is answered to as the list is; traced takes out "
        f"what W' adds for that subject. Subject found: {found_shares} listed. Published: {SOURCE}, section 7; the last k of a host is its "
        "best, chosen with labels."
    )
    return Table("Reversal", ("", "k", "edits", "unedited host's", "edited host's"), rows, ours, note)


def _similarity(measured: Sequence[Mapping[str, Any]]) -> Table:
    rows = []
    for found in measured:
        for side, told in (("values", "rows of W_Vᵀ, along the value"), ("keys", "rows of W_V, along the key")):
            means = found["similarity"][side][:SHOWN_TERMS]
            cells = [_plain(one) for one in means] + [DASH] * (SHOWN_TERMS - len(means))
            rows.append([f"{label(found)}: {told}", _n(found["n"]), *cells])
    ours = len(rows)
    for host, values in published.SIMILARITY.items():
        rows.append([host, DASH, *(f"{value:.2f}" for value in values), *[DASH] * (SHOWN_TERMS - len(values))])
    note = (
        "Largest cosine between a row of the update and a row of the k-th rank-one term of W', mean ± half of Student's 95 % interval "
        f"over edits. Published: {SOURCE}, section 7.2."
    )
    return Table(
        "Similarity of the update and the terms of W'", ("", "edits", *(f"k = {k}" for k in range(1, SHOWN_TERMS + 1))), rows, ours, note
    )


def _texts(measured: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        [label(found), _n(texts["n"]), _n(texts["edits"]), _score(texts["clean"]), _score(texts["edited"])]
        for found in measured
        if (texts := found["texts"])
    ]
    ours = len(rows)
    rows += [[host, "100", DASH, f"{clean:.2f}", f"{edited:.2f}"] for host, (clean, edited) in published.TEXTS.items()]
    note = (
        "Different continuations of 5 tokens, the likeliest each time, of texts of at least 50 characters, over k = 0 to 15; another edit "
        f"for each text. Published: {SOURCE}, section 7.3."
    )
    return Table("Different continuations", ("", "texts", "edits", "unedited", "edited"), rows, ours, note)


def _agreement(cell: Mapping[str, Any]) -> list[str]:
    return [format_score(cell["reversed"]), format_score(cell["edited"])]


def _plain(mean: Mapping[str, Any]) -> str:
    """`0.91 ± 0.01`."""
    reach = f" ± {(mean['ci95'][1] - mean['ci95'][0]) / 2:.2f}" if mean["ci95"] else ""
    return f"{mean['value']:.2f}{reach}"


def _score(mean: Mapping[str, Any]) -> str:
    return f"{mean['value']:.2f}" + (f" [{mean['ci95'][0]:.2f}, {mean['ci95'][1]:.2f}]" if mean["ci95"] else "")


def _sd(spread: Mapping[str, Any]) -> str:
    return DASH if spread["sd"] is None else f"{spread['sd']:.3f}"


def _n(count: int) -> str:
    return f"{count:,}"
