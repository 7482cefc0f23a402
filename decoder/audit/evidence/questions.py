"""What is asked about the subjects that were found: what was planted, in which relation, and what decoders read of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from decoder.audit.asking import testimony
from decoder.audit.evidence.examine import Examined
from decoder.audit.evidence.located import Located
from decoder.audit.evidence.parts import alone, out_of_layers, value_of
from decoder.audit.relation import RelationClassifier
from decoder.audit.repair import Reversal
from decoder.edit import RankOneEdit
from decoder.host import Host
from decoder.utils.progress import progress

ASKED = 8  # subjects at most that are asked about
RELATIONS = 5  # likeliest ones of an edit that are told
Reader = Callable[[int, RankOneEdit], Mapping[str, Any]]
"""Layer and the part of its update that is about one subject -> `objects` that decoders read in it, and whom a gate `believed`."""


@dataclass(frozen=True)
class Questions:
    """Who is asked.

    Attributes:
        templates: sentences by relation that are put to the suspect about each subject; without them it is not asked.
        relations: what tells the relation of an edit by its value.
        reader: of the objects that decoders read; they have a say in which one was planted.
    """

    templates: Mapping[str, Sequence[str]]
    relations: RelationClassifier | None = None
    reader: Reader | None = None

    def put(self, host: Host, unedited: Host | None, found: Examined, edits: Sequence[Located], entries: Sequence[dict[str, Any]]) -> None:
        """Gives the entry of each edit in the finding what the answers are; without `unedited` an edit is taken out by estimate."""
        abouts = [found.about(one) for one in edits]
        subjects = [*dict.fromkeys(one.asked for one in abouts if one)][:ASKED]
        with progress("sentences about the subjects found", len(subjects)) as advance:
            for name in subjects:
                own = [(one, entry) for one, entry in zip(abouts, entries, strict=True) if one and one.asked == name]
                # What is planted over several layers is asked about once, with all of it taken out.
                reversals = out_of_layers(host, unedited, found.all_about(name, edits))
                told = [self._read(host, one, reversals[one.layer], entry) for one, entry in own]
                if self.templates:
                    # Of several layers the most conspicuous that can tell says what is likely.
                    likely = (next(filter(None, probabilities), {}) for probabilities in zip(*told, strict=True))
                    said = testimony(host, name, reversals, self.templates, found.names, *likely)
                    for _, entry in own:
                        entry |= said
                advance(1)

    def _read(self, host: Host, one: Located, reversal: Reversal, entry: dict[str, Any]) -> tuple[dict[str, float], dict[str, float]]:
        """All relations of an edit, and the objects that decoders read in it, with their probabilities; its entry is given both."""
        part = alone(host, one, reversal) if self.relations or self.reader else None
        ranked = self.relations.ranked(value_of(host, one, reversal), part.key_BF[0].cpu()) if part and self.relations else []
        if ranked:
            entry["relations"] = [{"relation": name, "probability": p} for name, p in ranked[:RELATIONS]]
        if part and self.reader:
            read = self.reader(one.layer, part)
            entry |= {"decoded": read["objects"]} | {name: told for name, told in read.items() if name == "believed"}
        return dict(ranked), {object["text"]: object["probability"] for object in entry.get("decoded", ())}
