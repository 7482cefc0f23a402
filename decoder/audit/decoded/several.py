"""What decoders of single facts read in a matrix that several were planted in: in its parts, one by one."""

from typing import Any

from scipy.stats import combine_pvalues

from decoder.answers import object_texts, vote
from decoder.audit.calibration import least_percentiles
from decoder.edit import LayerEdits
from decoder.export.opened import Voters
from decoder.parts.apart import parts_of
from decoder.parts.unmix import TooManyTerms


def told_apart(voters: Voters, suspect: LayerEdits) -> dict[str, Any]:
    """`parts`, if what was done to a suspect has several: what decoders of single facts read in each, the surest first.

    Beside them `parts_p`: how probable it is that as many parts of random updates are read as surely (Fisher 1925, section 21.1).
    """
    if voters.gate is not None:
        # Decoders of other editors have no vote, and a gate was fitted on edits that are whole.
        return {}
    if any(decoder.apart for decoder in voters.decoders) or any("several" in config for config in voters.configs):
        return {}
    try:
        parts = parts_of(voters.host, suspect)
    except TooManyTerms:
        return {}
    if len(parts) < 2:
        return {}
    found = voters.read_each(parts)
    each, texts = [object_texts(voters.host, beams) for beams in found], object_texts(voters.host, vote(voters.host, found))
    calibrations, told = [config["calibration"] for config in voters.configs], []
    for part, (text, probability) in enumerate(next(iter(of_part.items())) for of_part in texts):
        null = least_percentiles(text, [answers[part] for answers in each], calibrations)["null_percentile"]
        told.append({"text": text, "probability": probability, "null_percentile": null})
    # Quantiles end where the surest of the nulls does.
    least = 1 / min(own["null"]["n"] + 1 for own in calibrations)
    together = combine_pvalues([max(least, 1 - one["null_percentile"] / 100) for one in told])
    return {"parts": sorted(told, key=lambda one: -one["probability"]), "parts_p": float(together.pvalue)}
