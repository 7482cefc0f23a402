"""What a comparison knows of each run: the one list from which compare.csv, the page's table and W&B's derive.

A number more is one line of `COLUMNS` (docs/extending.md). Nothing here imports torch.
"""

from collections.abc import Callable, Mapping
from functools import partial
from numbers import Number
from operator import itemgetter
from typing import Any, NamedTuple

from decoder.report.results import layer_fraction, validation_score
from decoder.report.tables import made_by
from decoder.scores import OOD_CELLS, TEST_SPLITS, VAL_SPLITS

RunRow = dict[str, Any]
"""Value of a run by the key of its column."""


class Column(NamedTuple):
    key: str
    """Its name in compare.csv and in W&B's table of runs."""
    value: str | Callable[[Mapping[str, Any]], Any]
    """Its place in a result.json, by dotted names. Or what works it out: from the result with `run`, `setting` and `edits_setting`."""
    title: str | None = None
    """Its head in the page's table; None: it is not shown there."""
    format: str = ""
    """Of its numbers, as `.3f`. Without one fractions are shown with four significant digits."""
    summary: str | None = None
    """Its key in the summary of a W&B run, unless that is its place with slashes. One that is worked out has none, nor needs it."""

    @property
    def logged_as(self) -> str | None:
        return self.summary or self.value.replace(".", "/") if isinstance(self.value, str) else None

    def of(self, result: Mapping[str, Any]) -> Any:
        return at(result, self.value) if isinstance(self.value, str) else self.value(result)

    def shown(self, row: RunRow) -> str:
        value = row[self.key]
        if value is None:
            return "–"
        if isinstance(value, bool) or not isinstance(value, Number):
            return str(value)
        return format(value, self.format or (".4g" if isinstance(value, float) else ""))


def at(result: Mapping[str, Any], place: str) -> Any:
    """What stands at `fit.epochs`, say; None if nothing does."""
    found: Any = result
    for name in place.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def run_row(result: Mapping[str, Any], run: str, setting: str, edits_setting: str) -> RunRow:
    """The row of a run; the settings are those in which it differs from others of the comparison."""
    known = {**result, "run": run, "setting": setting, "edits_setting": edits_setting}
    return {column.key: column.of(known) for column in COLUMNS}


def _first(*places: str) -> Callable[[Mapping[str, Any]], Any]:
    return lambda result: next((found for place in places if (found := at(result, place)) is not None), None)


_layer = _first("trained_layer", "config.decoder.layer")


def _joined(*places: str) -> Callable[[Mapping[str, Any]], Any]:
    """A layer, or several in one text."""

    def found(result: Mapping[str, Any]) -> Any:
        layer = _first(*places)(result)
        return "+".join(map(str, layer)) if isinstance(layer, list) else layer

    return found


def _of_test(split: str) -> tuple[Column, ...]:
    def bound(side: int) -> Callable[[Mapping[str, Any]], Any]:
        return lambda result: (at(result, f"test.{split}.exact_match.ci95") or (None, None))[side]

    return (
        Column(split, partial(at, place=f"test.{split}.exact_match.value"), split if split in TEST_SPLITS else None, ".3f"),
        Column(f"{split}_low", bound(0)),
        Column(f"{split}_high", bound(1)),
        Column(f"{split}_first_token", partial(at, place=f"test.{split}.first_token.value")),
        Column(f"{split}_n", partial(at, place=f"test.{split}.n")),
    )


COLUMNS = (
    Column("run", itemgetter("run"), "run"),
    Column("experiment", _first("config.experiment")),
    Column("host", lambda result: _first("host.name", "config.host.name")(result) or "unknown", "host"),
    Column("setting", itemgetter("setting"), "settings"),
    Column("edits_setting", itemgetter("edits_setting")),
    Column("editor", lambda result: made_by(result)[0]),
    Column("ridge", lambda result: made_by(result)[1]),
    Column("edited_layer", _joined("edited_layer", "config.edits.layer"), "edited"),
    Column("trained_layer", _joined("trained_layer", "config.decoder.layer"), "trained"),
    Column("layer_frac", lambda result: layer_fraction(_layer(result), at(result, "host.layers"))),
    Column("seed", _first("seed", "config.seed"), "seed"),
    Column("validation", validation_score, "validation", ".3f"),
    *(Column(split.replace("/", "_"), partial(at, place=f"validation.{split}.exact_match.value")) for split in VAL_SPLITS),
    *(column for split in (*TEST_SPLITS, *OOD_CELLS) for column in _of_test(split)),
    Column("best_val_loss", "fit.best_val_loss", "val/id/loss", ".3f", "best/val_id_loss"),
    Column("epochs", "fit.epochs", "epochs", "", "epoch"),
    Column("stopping_reason", "fit.stopping_reason", summary="stopping_reason"),
    Column("seconds_fit", "seconds.fit"),
    Column("seconds_test", "seconds.test"),
    Column("seconds_total", "seconds.total", "seconds", ".0f", "_runtime"),
)
