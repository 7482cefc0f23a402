"""What an edit and taking it out do to the prompts it was made for and to a neutral text: what the benchmarks of audits count.

Shape letters: N rows, T tokens, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from data.facts.fact import FactSet
from data.perturb.drawn import manual
from data.perturb.text import fact_text
from decoder.audit.evidence.effect import all_logprobs, divergence, next_tokens, text_rows
from decoder.edit import Edit
from decoder.host import Host

PARAPHRASES = 2  # of an edited prompt


class Asked(NamedTuple):
    """A planted fact: its edited prompt with `{}` for the subject, the relation whose sentences paraphrase it, and what was planted."""

    prompt: str
    relation_name: str
    subject: str
    object: str


class Prompts:
    """What edits' prompts, paraphrases of them and a neutral text are gone on with by the host as it is when this is made.

    Args:
        asked: name of a suspect -> what is planted in it.
        rows: of neutral text, that say what else an edit moves.
    """

    def __init__(self, host: Host, facts: FactSet, asked: Mapping[str, Sequence[Asked]], rows: int) -> None:
        self.host, templates = host, {fact.relation_name: fact.templates for fact in facts.facts}
        self.rows: dict[str, list[list[int]]] = {}
        self.objects: dict[str, list[int]] = {}
        for name, planted in asked.items():
            said = [(one, text) for one in planted for text in (one.prompt, *_others(one.prompt, templates[one.relation_name]))]
            self.rows[name] = [host.prompt_ids(text, one.subject)[0] for one, text in said]
            self.objects[name] = [host.object_ids(one.object)[0] for one, _ in said]
        self.clean = {name: next_tokens(host, own) for name, own in self.rows.items()}
        self.text = text_rows(host, fact_text(facts, -1) if host.name == "pocket" else manual(), rows)
        self.clean_NTV = all_logprobs(host, self.text)

    def effect(self, name: str, edits: Mapping[int, Edit] | None = None) -> dict[str, Any]:
        """Prompts whose next token is the host's own again, those it is the planted object's, and KL(clean ‖ this) elsewhere."""
        found = next_tokens(self.host, self.rows[name], edits)
        back = [token == own for token, own in zip(found, self.clean[name], strict=True)]
        planted = [token == own for token, own in zip(found, self.objects[name], strict=True)]
        return {"back": back, "planted": planted, "kl": divergence(self.clean_NTV, all_logprobs(self.host, self.text, edits))}


def _others(prompt: str, templates: Sequence[str]) -> list[str]:
    return [one for one in templates if one != prompt][:PARAPHRASES]
