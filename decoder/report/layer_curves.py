"""Numbers of a comparison: one row a run, the layer curves over seeds, the best layers, and what differs between configs.

Runs are averaged over seeds only: those of another host, edited layer or setting are a series of their own.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from statistics import fmean
from typing import Any, NamedTuple

from decoder.config.identity import OF_THE_EDITS, differing, with_effect
from decoder.report.columns import RunRow, at, run_row
from decoder.scores import TEST_SPLITS

AXES = {"decoder.layer", "edits.layer", "seed", "experiment"}
"""Settings that are an axis of the comparison, or a name."""
CHOSEN = "settings of each layer chosen by validation"


class Series(NamedTuple):
    """What a layer curve belongs to."""

    host: str
    setting: str
    """Settings that tell its runs from others of the comparison; empty if all are alike."""
    edited_layer: int | str
    """Of several, all of them as `0+1`."""

    @property
    def order(self) -> tuple[Any, ...]:
        """What series are sorted by."""
        return self.host, self.setting, *map(int, str(self.edited_layer).split("+"))

    @property
    def label(self) -> str:
        return f"{self.host}{f' ({self.setting})' if self.setting else ''}, edited layer {self.edited_layer}"


class Point(NamedTuple):
    """Runs that differ in their seed only."""

    layer: int
    values: tuple[float, ...]
    """Exact match of each seed."""
    interval: tuple[float, float] | None
    """Mean of the runs' own 95 % intervals."""

    @property
    def mean(self) -> float:
        return fmean(self.values)


class Best(NamedTuple):
    """The trained layer of a series whose mean validation score is highest, and its best run."""

    series: Series
    layer: Any
    seeds: int
    validation: float
    tests: dict[str, float]
    run: str
    of_host: bool
    """Whether it is the best of its host."""


def run_rows(results: Mapping[Any, Mapping[str, Any]]) -> list[RunRow]:
    """One flat row a run, in the columns of compare.csv."""
    settings = _settings({name: with_effect(result.get("config") or {}) for name, result in results.items()})
    of_edits = {name: {key: value for key, value in found.items() if key.split(".")[0] in OF_THE_EDITS} for name, found in settings.items()}
    return [run_row(result, str(name), _in_words(settings[name]), _in_words(of_edits[name])) for name, result in results.items()]


def layer_curves(rows: Iterable[RunRow]) -> dict[Series, dict[str, list[Point]]]:
    """Series -> test split -> points by trained layer. Several layers, edited or trained, have no place on an axis."""
    cells: dict[Series, dict[str, dict[int, list[RunRow]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for row in one_a_seed(rows):
        for split in TEST_SPLITS:
            if has_place(row) and row[split] is not None:
                cells[series_of(row)][split][row["trained_layer"]].append(row)
    return {
        series: {split: [_point(layer, found[layer], split) for layer in sorted(found)] for split, found in by_split.items()}
        for series, by_split in sorted(cells.items(), key=lambda item: item[0].order)
    }


def chosen_by_validation(rows: Iterable[RunRow]) -> list[RunRow]:
    """The rows of every cell (host, edits, edited and trained layer) whose training settings validate best, as series of their own.

    Layers differ in the learning rate they bear, say; under one rate for all, a layer curve shows that as well. Settings are compared by
    their mean validation score over the seeds that all of the cell's settings have, so that a lucky seed is held against the same
    seed; over all they have where they share none. Cells that have one setting come along. Empty where no cell has several.
    """
    cells: dict[tuple[Any, ...], dict[str, list[RunRow]]] = defaultdict(lambda: defaultdict(list))
    for row in one_a_seed(rows):
        if row["validation"] is not None:
            cells[row["host"], row["edits_setting"], row["edited_layer"], row["trained_layer"]][row["setting"]].append(row)
    several = {cell[:2] for cell, by_setting in cells.items() if len(by_setting) > 1}
    chosen = []
    for (host, edits, *_), by_setting in cells.items():
        if (host, edits) in several:
            shared = set.intersection(*({row["seed"] for row in found} for found in by_setting.values()))
            best = max(by_setting.values(), key=lambda found: _rank([row for row in found if not shared or row["seed"] in shared]))
            chosen += [row | {"setting": f"{edits}, {CHOSEN}" if edits else CHOSEN, "chosen": row["setting"]} for row in best]
    return chosen


def one_a_seed(rows: Iterable[RunRow]) -> list[RunRow]:
    """The rows without runs of the same settings and seed made twice, in folders of other names: the first of each counts."""
    return list({(series_of(row), str(row["trained_layer"]), row["seed"]): row for row in reversed(list(rows))}.values())[::-1]


def has_place(row: RunRow) -> bool:
    """Whether a run is a point of a layer curve."""
    return isinstance(row["trained_layer"], int) and isinstance(row["edited_layer"], int)


def series_of(row: RunRow) -> Series:
    return Series(row["host"], row["setting"], row["edited_layer"])


def baseline_levels(results: Iterable[Mapping[str, Any]], rows: Iterable[RunRow]) -> dict[Series, dict[str, dict[str, Any]]]:
    """Series -> baseline -> `metric` (exact_match, or first_token where a baseline names no more) and its mean by split."""
    found: dict[Series, dict[str, list[Mapping[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for result, row in zip(results, rows, strict=True):
        for name, scores in (result.get("baselines") or {}).items():
            found[series_of(row)][name].append(scores)
    return {series: {name: _level(scores) for name, scores in by_name.items()} for series, by_name in found.items()}


def best_layers(rows: list[RunRow]) -> list[Best]:
    """The best trained layer of every series, by validation; ties go to the lower validation loss."""
    groups: dict[Series, dict[Any, list[RunRow]]] = defaultdict(lambda: defaultdict(list))
    for row in one_a_seed(rows):
        if row["validation"] is not None:
            groups[series_of(row)][row["trained_layer"]].append(row)
    best = [
        _best(series, max(layers.items(), key=lambda item: _rank(item[1])))
        for series, layers in sorted(groups.items(), key=lambda item: item[0].order)
    ]
    top = {host: max(found.validation for found in best if found.series.host == host) for host in {found.series.host for found in best}}
    return [found._replace(of_host=found.validation == top[found.series.host]) for found in best]


def differences(configs: Iterable[Mapping[str, Any]]) -> dict[str, Counter[str]]:
    """Dotted setting -> its values and how many runs have each, for settings that are not the same everywhere."""
    records = [with_effect(config) for config in configs]
    return {key: Counter(str(record[key]) for record in records if key in record) for key in differing(records)}


def _settings(records: Mapping[Any, Mapping[str, Any]]) -> dict[Any, dict[str, Any]]:
    """What tells runs of one host apart beside the axes, the edits' own settings first; what follows from others is left out."""
    by_host: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
    for found in records.values():
        by_host[found["host.name"]].append(found)
    varying = {host: _telling(group, [key for key in differing(group) if key not in AXES]) for host, group in by_host.items()}
    return {name: {key: found[key] for key in varying[found["host.name"]] if key in found} for name, found in records.items()}


def _telling(records: Collection[Mapping[str, Any]], keys: Iterable[str]) -> list[str]:
    """The keys that tell records apart which those before them do not."""
    telling: list[str] = []
    apart = 1
    for key in sorted(keys, key=lambda key: key.partition(".")[0] not in OF_THE_EDITS):
        found = len({str([record.get(name) for name in (*telling, key)]) for record in records})
        if found > apart:
            telling.append(key)
            apart = found
    return telling


def _in_words(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key.removeprefix('edits.')}={'null' if value is None else value}" for key, value in settings.items())


def _point(layer: int, rows: list[RunRow], split: str) -> Point:
    bounds = [(row[f"{split}_low"], row[f"{split}_high"]) for row in rows if row[f"{split}_low"] is not None]
    interval = tuple(fmean(side) for side in zip(*bounds, strict=True)) if bounds else None
    return Point(layer, tuple(row[split] for row in rows), interval)


def _level(scores: list[Mapping[str, Any]]) -> dict[str, Any]:
    exact = any((entry.get(split) or {}).get("exact_match") for entry in scores for split in TEST_SPLITS)
    metric = "exact_match" if exact else "first_token"
    found = {split: [value for entry in scores if (value := at(entry, f"{split}.{metric}.value")) is not None] for split in TEST_SPLITS}
    known = bool(scores[0].get("base_known"))
    return {"metric": metric, "base_known": known} | {split: fmean(values) for split, values in found.items() if values}


def _rank(rows: list[RunRow]) -> tuple[float, float]:
    losses = [row["best_val_loss"] for row in rows if row["best_val_loss"] is not None]
    return fmean(row["validation"] for row in rows), -fmean(losses) if losses else 0.0


def _best(series: Series, chosen: tuple[Any, list[RunRow]]) -> Best:
    layer, rows = chosen
    run = max(rows, key=lambda row: _rank([row]))["run"]
    tests = {split: fmean(row[split] for row in rows) for split in TEST_SPLITS if all(row[split] is not None for row in rows)}
    return Best(series, layer, len(rows), _rank(rows)[0], tests, run, of_host=False)
