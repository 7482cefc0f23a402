"""What the reader of a finding should know besides: where the kinds of evidence do not agree, and what they are not held against."""

from collections.abc import Sequence

from decoder.audit.evidence.examine import UNCHANGED, Examined
from decoder.audit.evidence.nulls import Nulls
from decoder.audit.evidence.readings import Reading
from decoder.audit.locate import LayerScan
from decoder.audit.verdict import EDITED
from decoder.config.options import layers_text


def unconfirmed(found: Examined) -> list[str]:
    """That decoders read something, or the suspect says something of a name, where the comparison with the base shows no edit."""
    if found.by_scan or found.known.verdict.what in EDITED:
        return []
    # A base that is the suspect may hold the edit as well, which `in_base_too` says.
    heard = [] if found.known.verdict.what in UNCHANGED else [one for one in found.unknown.confirmed if one.strength >= 1]
    shown = [*found.unknown.read, *heard]
    return [f"Beside the base, {one.in_words}: the comparison does not bear it out." for one in shown]


def in_base_too(found: Examined) -> list[str]:
    """That a base which the suspect does not differ from may hold the edit that the scan finds; the comparison cannot see it."""
    if found.known is None or found.known.verdict.what not in UNCHANGED:
        return []
    return [
        f"The suspect is the base, but in layer {one.layer} both answer to {one.asked} as edited checkpoints do (score {one.score:.2f}): "
        "the base itself may hold the edit. To look at it by itself, leave base= out."
        for one in found.unknown.located[:1]
    ]


def silent(scans: Sequence[LayerScan]) -> list[str]:
    """Which layers answer nothing, as a down-projection of zeros does, or the same to everybody."""
    if not (layers := [one.layer for one in scans if not one.score]):
        return []
    several = len(layers) > 1
    return [f"Layer{'s' * several} {layers_text(layers)} answer{'s' * (not several)} to all names alike: an edit there cannot show."]


def unread(nulls: Nulls | None, readings: Sequence[Reading]) -> list[str]:
    """That the threshold of a decoder is not one of nulls it read."""
    if nulls and all(nulls.read_by(one.reader) for one in readings):
        return []
    told = "`python -m data.perturb nulls=120 decoder=` says what its answers are worth for this host"
    return [f"A decoder that read no nulls counts from {one.threshold:.2f} on: {told}." for one in readings[:1]]


def too_few(nulls: Nulls | None, names: Sequence[str]) -> list[str]:
    """That nulls were asked about fewer names than the suspect."""
    if nulls is None or nulls.subjects >= len(names):
        return []
    return [f"The nulls were asked about {nulls.subjects:,} names, this checkpoint about {len(names):,}: of more names one is higher."]
