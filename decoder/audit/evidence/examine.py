"""What a suspect shows: one kind of evidence by what its layers answer to the candidates, another by how it differs from its base.

Shape letters: R directions, F MLP width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from decoder.audit.candidates import Candidates
from decoder.audit.evidence.confirmed import Confirmation, confirm
from decoder.audit.evidence.located import Located, Ranking, key_fit, named_or_like
from decoder.audit.evidence.readings import Reading
from decoder.audit.locate import LayerScan, closer, scan
from decoder.audit.verdict import Compared, Verdict, edited_layers, known, threshold, unknown
from decoder.host import Host

UNCHANGED = ("identical", "rounded or quantised")


@dataclass(frozen=True)
class Evidence:
    """What one kind of evidence says of a suspect.

    Attributes:
        scores: of every layer.
        threshold: score from which a layer is edited.
        located: the edits, the most conspicuous layer first.
        strength: of the most conspicuous layer, in thresholds: what suspects and nulls are compared by.
        read: what decoders read where nothing else shows an edit: about whom is not known.
        confirmed: what the suspect says of names that nearly stand out, where nobody stands out; the strongest first.
    """

    verdict: Verdict
    scores: dict[int, float]
    threshold: float
    located: list[Located]
    strength: float
    read: Sequence[Reading] = ()
    confirmed: Sequence[Confirmation] = ()

    @property
    def stands_out(self) -> bool:
        """Whether somebody stands out by itself."""
        return max(self.scores.values()) >= self.threshold

    @property
    def facts(self) -> int:
        """How many facts were written, one a subject: one that is spread over layers is located in each of them."""
        nobody = sum(one.asked is None for one in self.located)
        return len({one.asked for one in self.located if one.asked}) + nobody + len(self.read)


class Examined(NamedTuple):
    """Both kinds of evidence, and what the layers answer to the candidates; `known` is None without a comparison."""

    known: Evidence | None
    unknown: Evidence
    scans: list[LayerScan]
    names: list[str]

    @property
    def by_scan(self) -> bool:
        """Whether the scan has the last word: without a base, or where it alone finds an edit: that one is in the base as well, or hidden
        under an adapter that is stronger than it. What decoders or sentences alone show counts for less than a base."""
        if self.known is None:
            return True
        verdict = self.known.verdict
        return verdict.exit_code != 3 and verdict.what not in UNCHANGED and bool(self.unknown.located) and self.unknown.stands_out

    @property
    def located(self) -> list[Located]:
        """Every edit that either kind shows."""
        return [*(self.known.located if self.known else ()), *self.unknown.located]

    def about(self, edit: Located) -> Located | None:
        """The edit, if somebody can be asked about it, else what the scan saw in its layer: whom an update is not seen to be about, it
        may see."""
        seen = (other for other in self.unknown.located if other.layer == edit.layer)
        return edit if edit.asked else next(seen, None)

    def all_about(self, name: str, located: Sequence[Located]) -> list[Located]:
        """Those of the edits whose `about` asks of this name, in whatever layers they are."""
        return [edit for edit in located if (seen := self.about(edit)) and seen.asked == name]


def examine(
    host: Host,
    candidates: Candidates,
    compared: Compared | None = None,
    readings: Sequence[Reading] = (),
    templates: Mapping[str, Sequence[str]] | None = None,
) -> Examined:
    """What the layers of a suspect answer to the candidates, what decoders read in them, and what the differences from its base have to do
    with the candidates; with sentences by relation also what it says of those who nearly stand out."""
    names, updates = candidates.names, compared.updates if compared else {}
    scans = scan(host, candidates, updates, compared.spikes if compared else ())
    scores, least = {one.layer: one.score for one in scans}, threshold(scans)
    edited = edited_layers(scans)
    confirmed = confirm(host, candidates, scans, least, templates) if templates and not edited else []
    shown = [one.layer for one in confirmed if one.strength >= 1]
    # Whom else they might be about takes the keys of all.
    again = {one.layer: one for one in closer(host, candidates, scans, shown, least=0.0, most=1)}
    edited += [again[layer] for layer in shown]
    located = _from_scans(edited, candidates)
    read: list[Reading] = []
    for one in readings:
        told = {edit.layer for edit in located} | {layer for other in read for layer in other.layers}
        read += [one] if one.strength >= 1 and told.isdisjoint(one.layers) else []
    strength = max([max(scores.values()) / least, *(one.strength for one in confirmed)])
    by_scan = Evidence(unknown(scans, readings, confirmed), scores, least, located, strength, read, confirmed)
    if compared is None:
        return Examined(None, by_scan, scans, names)
    verdict = known(compared, scans)
    in_base = _from_updates(scans, {layer: updates[layer] for layer in verdict.layers}, candidates)
    # An edit shows by what its change is, or by whom that is about.
    along = {one.layer: one.along_top[0][1] / one.along_least for one in scans if one.along_top}
    about_somebody = max((min(length, compared.room(layer)) for layer, length in along.items()), default=0.0)
    strength = max(about_somebody, max(compared.scores.values()) / compared.threshold)
    return Examined(Evidence(verdict, compared.scores, compared.threshold, in_base, strength), by_scan, scans, names)


def _from_scans(scans: Sequence[LayerScan], candidates: Candidates) -> list[Located]:
    """The edits of layers that are taken for edited, in their order."""
    found, names = [], candidates.names
    for one in scans:
        places = [place for place, _ in one.hits]
        rankings = [named(one.top, names), *(((names[place], score),) for place, score in one.hits[1:])]
        for (place, score), ranking, key_F, fit_C in zip(one.hits, rankings, one.hit_HF, one.fit_HC, strict=True):
            fit = key_fit(fit_C, place, candidates.ends_C, places)
            subject, resembles = named_or_like(names[place], fit)
            found.append(Located(one.layer, subject, key_F, one.keys_LF, score, False, ranking, resembles, fit))
    return found


def _from_updates(scans: Sequence[LayerScan], updates: Mapping[int, Tensor], candidates: Candidates) -> list[Located]:
    """Edits that the updates show, in their order: one a direction, with its subject where one of the list is along it."""
    found, scan_of, names = [], {one.layer: one for one in scans}, candidates.names
    for one in (scan_of[layer] for layer in updates):
        ranking, places = named(one.along_top, names), [place for place, _ in one.along]
        for (place, score), key_F in zip(one.along, one.along_AF, strict=True):
            rest = ranking if place == places[0] else ((names[place], score),)
            fit = key_fit(one.inside_C, place, candidates.ends_C, places)
            subject, resembles = named_or_like(names[place], fit)
            found.append(Located(one.layer, subject, key_F, one.keys_LF, score, True, rest, resembles, fit))
        if not one.along:
            fit = key_fit(one.inside_C, one.along_top[0][0], candidates.ends_C)
            key_F = updates[one.layer].to(one.keys_LF)[0]
            found.append(Located(one.layer, None, key_F, one.keys_LF, ranking[0][1], True, ranking, fit=fit))
    return found


def named(ranked: Sequence[tuple[int, float]], names: Sequence[str]) -> Ranking:
    """Candidates by name."""
    return tuple((names[place], score) for place, score in ranked)
