"""The best run of every host and edited layer, among runs on the same edits. Nothing here imports torch.

Validation scores of other edits are scores on other validation sets: a stronger ridge or fewer facts would win by being easier.
"""

from pathlib import Path
from typing import Any, NamedTuple

from decoder.config.identity import OF_THE_EDITS, as_today, difference
from decoder.config.options import layers_text
from decoder.export.formats import layers_of
from decoder.export.save import CONFIG, read_config
from decoder.report.results import Found, validation_score
from decoder.utils.errors import UserError

NOT_COMPARED = {"host", "cache_dir", "store", "facts.path", "edits.layer", "edits.batch_size", "edits.shard_size"}
"""Settings and groups that do not change the edits or are compared by content, and the layer, which tells decoders apart and not runs."""


class Candidate(NamedTuple):
    """A finished run whose decoder may be the best of its host and edited layer."""

    run: Path
    decoder: Path
    """Its folder."""
    config: dict[str, Any]
    """That of the decoder."""
    result: dict[str, Any]
    validation: float


def best_runs(found: Found) -> list[Candidate]:
    """The best run per host and edited layer, in their order: highest validation, then lowest loss.

    Raises:
        UserError: two runs of one host and edited layer are on other edits; names them and the first difference.
    """
    best: dict[tuple[Any, ...], Candidate] = {}
    for run, result in found.finished.items():
        folder, score = run / (result.get("decoder") or "decoder"), validation_score(result)
        if score is None or not (folder / CONFIG).exists():
            continue
        one = Candidate(run, folder, read_config(folder), result, score)
        key = one.config["host"]["fingerprint"], *layers_of(one.config)
        _check_same_edits(best.setdefault(key, one), one)
        best[key] = max(best[key], one, key=lambda candidate: (candidate.validation, -candidate.result["fit"]["best_val_loss"]))
    return sorted(best.values(), key=lambda one: (one.config["host"]["id"], layers_of(one.config)))


def _edits_of(one: Candidate) -> dict[str, Any]:
    """What says which edits a run was trained and validated on; the host is known by its fingerprint."""
    settings = as_today(one.result.get("config") or {})
    made = {
        name: value
        for name, value in settings.items()
        if (group := name.partition(".")[0]) in OF_THE_EDITS and not {name, group} & NOT_COMPARED
    }
    if settings["store"]:
        # The other settings made nothing.
        drawn = {name: value for name, value in made.items() if name.startswith("splits.") and not name.endswith("_per_relation")}
        return {"store": one.config["store"]} | drawn
    return {"store": "not given"} | made | {f"facts.{name}": value for name, value in one.config.get("facts", {}).items()}


def _check_same_edits(first: Candidate, other: Candidate) -> None:
    if not (found := difference(_edits_of(first), _edits_of(other))):
        return
    layer = layers_text(first.config["edited_layer"])
    raise UserError(
        f"{first.run} and {other.run} are both of {first.config['host']['id']}, edited layer {layer}, but on other edits, "
        f"so their validation scores do not compare: {found[0]} in the first, "
        f"{found[1]} in the other. Give fewer run folders, of one kind of edits"
    )
