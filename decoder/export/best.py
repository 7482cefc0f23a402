"""The best run of every host and edited layer, among runs on the same edits. Nothing here imports torch.

Validation scores of other edits are scores on other validation sets: a stronger ridge or fewer facts would win by being easier.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from decoder.config.identity import OF_THE_EDITS
from decoder.export.save import CONFIG, read_config
from decoder.report.results import Found, validation_score
from decoder.utils.errors import UserError, first_difference

NOT_COMPARED = {"edits": ("layer", "batch_size", "shard_size")}
"""Settings of the edits that do not change them, and the layer, which tells decoders apart and not runs."""
OF_THE_STORE = ("store", "splits")
"""What counts of runs on a store that was given: the other settings made nothing."""


class Candidate(NamedTuple):
    run: Path
    config: dict[str, Any]
    """That of the decoder."""
    result: dict[str, Any]
    rank: tuple[float, float]
    """Validation score, then the negative validation loss: the higher, the better."""
    edits: dict[str, Any]


def best_runs(found: Found) -> list[tuple[Path, dict[str, Any], dict[str, Any]]]:
    """Run folder, decoder config and result of the best run per host and edited layer: highest validation, then lowest loss.

    Raises:
        UserError: two runs of one host and edited layer are on other edits; names them and the first difference.
    """
    best: dict[tuple[str, int], Candidate] = {}
    for run, result in found.finished.items():
        folder, score = run / (result.get("decoder") or "decoder"), validation_score(result)
        if score is None or not (folder / CONFIG).exists():
            continue
        config = read_config(folder)
        one = Candidate(run, config, result, (score, -result["fit"]["best_val_loss"]), _edits_of(result, config))
        key = config["host"]["fingerprint"], config["edited_layer"]
        _check_same_edits(best.setdefault(key, one), one)
        best[key] = max(best[key], one, key=lambda candidate: candidate.rank)
    order = sorted(best.values(), key=lambda one: (one.config["host"]["id"], one.config["edited_layer"]))
    return [(one.run, one.config, one.result) for one in order]


def _edits_of(result: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """What says which edits a run was trained and validated on; the host is known by its fingerprint."""
    settings = {name: value for name, value in (result.get("config") or {}).items() if name in OF_THE_EDITS}
    if settings.get("store"):
        return {name: settings[name] for name in OF_THE_STORE if name in settings} | {"store": config["store"]}
    # Facts are compared by content: their path may be written in many ways.
    settings["facts"] = {name: value for name, value in (settings.get("facts") or {}).items() if name != "path"} | config.get("facts", {})
    for group, names in NOT_COMPARED.items():
        settings[group] = {name: value for name, value in (settings.get(group) or {}).items() if name not in names}
    return {name: value for name, value in settings.items() if name not in ("host", "cache_dir")} | {"store": "not given"}


def _check_same_edits(first: Candidate, other: Candidate) -> None:
    if first.edits == other.edits:
        return
    stores = {"store": first.edits["store"]}, {"store": other.edits["store"]}
    ours, theirs = first_difference(*(stores if stores[0] != stores[1] else (first.edits, other.edits)))
    raise UserError(
        f"{first.run} and {other.run} are both of {first.config['host']['id']}, edited layer {first.config['edited_layer']}, but on "
        f"other edits, so their validation scores do not compare: {ours} in the first, "
        f"{theirs} in the other. Give fewer run folders, of one kind of edits"
    )
