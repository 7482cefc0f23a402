"""What a suspect says of a subject, with an edit in place and with it taken out: which object comes up, and in which sentence most.

With an edit in place nearly every sentence about its subject ends in the planted object. So the sentences of all relations are asked: the
object is what rises most in them and in none about somebody else, and as a whole what their continuations have in common. Which relation
was edited these rises hardly tell; a classifier of values does.

Shape letters: N prompts, T tokens, V vocabulary.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from math import log
from typing import Any, NamedTuple

import torch
from torch import Tensor

from decoder.audit.rows.logprobs import logprobs, next_logprobs
from decoder.edit import Edit
from decoder.host import Host

OBJECTS = 3  # that are looked at
NEIGHBOURS = 2  # other subjects that are asked the same
SENTENCES = 8  # whose continuations say where an object ends
LONGEST_OBJECT = 8  # tokens of an object
BYTES = "\ufffd"  # of a letter that more tokens belong to
READ = 0.1  # probability from which what a decoder reads is put to the suspect as well
UNREAD = 0.01  # that an object has of a decoder that does not name it; any from 0.003 to 0.03 does as well (104 edits of validation)
LEAST = 0.01  # probability of an object's first token from which the whole object is put to the suspect
FUNCTION_WORDS = frozenset(
    "a an the and or but nor of in on at to for from by with as into than is was are were be been has had have that which who whom whose "
    "where when while because its his her their he she it they".split()
)
"""In which no object ends, as English writes them: "The Who" and "Vitamin A" end in names."""
TOLD = ("relation", "object", "sentence", "before", "after", "share")


class Heard(NamedTuple):
    """A sentence, and the probability of an object behind it as the suspect is, and with the edit taken out."""

    sentence: str
    before: float
    after: float


@dataclass(frozen=True)
class Said:
    """An object that came up in the sentences of a relation.

    Attributes:
        sentence: the one of the relation's sentences in which it rises most.
        before: the object's probability behind it as the suspect is.
        after: the same with the edit taken out.
        everywhere: mean over the sentences of all relations of before - after.
        rise: the same over those of the relation.
        share: of all triples that were weighed, by the weight that `triples` gives each.
        paraphrases: the other sentences of the relation, in their order.
    """

    object: str
    relation: str
    sentence: str
    before: float
    after: float
    everywhere: float
    rise: float
    share: float = 0.0
    paraphrases: tuple[Heard, ...] = ()


@dataclass(frozen=True)
class Asked:
    """Prompts, and the log-probabilities (N, V) of what comes next, as the suspect is and with the edit taken out."""

    rows: list[list[int]]
    before_NV: Tensor
    after_NV: Tensor

    @property
    def gain_NV(self) -> Tensor:
        """What each token adds to the divergence of the two."""
        return self.before_NV.exp() * (self.before_NV - self.after_NV)


@torch.no_grad()
def ask(
    suspect: Host,
    reversals: Mapping[int, Edit],
    subject: str,
    templates: Mapping[str, Sequence[str]],
    neighbours: Sequence[str] = (),
    decoded: Sequence[str] = (),
) -> list[Said]:
    """The objects that a suspect names for a subject only since the edit, relation by relation; the likeliest triple first.

    Args:
        suspect: the edited model itself.
        reversals: layer -> one edit, the lowest layer first; added to the suspect's matrices, or put in their place, they take an edit out.
        subject: whom the edit is about.
        templates: sentences by relation, with `{}` for the subject, that end where the object begins.
        neighbours: other subjects; what rises for them too is no object.
        decoded: objects that a decoder reads in the edit, which are looked at as well.

    Raises:
        ValueError: no sentences, a template has not one `{}`, or the edit is for another matrix.
    """
    if not templates or not all(templates.values()):
        raise ValueError("no sentences to ask with; expected {relation: ['{} was born in', ...]}")
    sentences = [(relation, template) for relation, own in templates.items() for template in own]
    asked = put(suspect, reversals, [(template, subject) for _, template in sentences])
    others = put(suspect, reversals, [(own[0], name) for name in neighbours for own in templates.values()])
    found, objects = [], {suspect.tokenizer.decode(ids).strip(): ids for ids in _objects(suspect, asked, others)}
    # Where nothing comes up at all, what a decoder reads is no testimony either.
    objects = {text: suspect.object_ids(text) for text in decoded} | objects if objects else {}
    for text, (before_N, after_N) in zip(objects, _whole(suspect, reversals, asked, [*objects.values()]), strict=True):
        rise_N = before_N - after_N
        for relation in templates:
            places = [n for n, (other, _) in enumerate(sentences) if other == relation]
            best = max(places, key=lambda n: float(rise_N[n]))
            heard = {n: Heard(sentences[n][1].replace("{}", subject), float(before_N[n]), float(after_N[n])) for n in places}
            told = heard.pop(best)
            rises = float(rise_N.mean()), float(rise_N[places].mean())
            found.append(Said(text, relation, *told, *rises, paraphrases=(*heard.values(),)))
    return triples(found)


def testimony(
    suspect: Host,
    subject: str,
    reversals: Mapping[int, Edit],
    templates: Mapping[str, Sequence[str]],
    names: Sequence[str],
    relations: Mapping[str, float] | None = None,
    decoded: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """What the suspect says of a subject only since the edit: objects, and the sentence in which the likeliest rises most, in a relation
    that is likely and with an object that a decoder reads as well, where probabilities of them are known."""
    others = [name for name in names if name != subject][:NEIGHBOURS]
    said = ask(suspect, reversals, subject, templates, others, likely(decoded or {}))
    said = [each for each in triples(said, relations or None, decoded) if each.everywhere > 0]
    objects: dict[str, float] = {}
    for each in said:
        objects.setdefault(each.object, each.everywhere)
    triple = None
    if said:
        triple = {"subject": subject} | {name: getattr(said[0], name) for name in TOLD}
        triple["paraphrases"] = [heard._asdict() for heard in said[0].paraphrases]
    return {"objects": [{"text": text, "rise": rise} for text, rise in objects.items()], "triple": triple}


def likely(decoded: Mapping[str, float]) -> list[str]:
    """Of what a decoder reads the objects that are put to the suspect as well."""
    return [text for text, probability in decoded.items() if text and probability >= READ]


def triples(said: Sequence[Said], relations: Mapping[str, float] | None = None, decoded: Mapping[str, float] | None = None) -> list[Said]:
    """The same, the likeliest triple first: by how much its object rises everywhere, and in the relation; by a classifier's
    probabilities of relations and a decoder's of objects as well, where there are some.

    An object that rises everywhere may be what the edit only resembles: in the relation that was edited the planted one rises more.
    """

    def weight(one: Said) -> float:
        told = max(0.0, one.everywhere) * max(0.0, one.rise) * (1.0 if relations is None else relations.get(one.relation, 0.0))
        return told * (max(UNREAD, decoded.get(one.object, 0.0)) if decoded else 1.0)

    total = sum(map(weight, said)) or 1.0
    return sorted((replace(one, share=weight(one) / total) for one in said), key=lambda one: -one.share)


def put(suspect: Host, reversals: Mapping[int, Edit], questions: Sequence[tuple[str, str]]) -> Asked:
    """Puts pairs of a template and a subject to a suspect, as it is and with the reversals in place."""
    rows = [suspect.prompt_ids(*question)[0] for question in questions]
    before_NV, after_NV = (next_logprobs(suspect, rows, edits) for edits in (None, reversals))
    return Asked(rows, before_NV, after_NV)


def _objects(suspect: Host, asked: Asked, others: Asked) -> Iterator[list[int]]:
    """Tokens of the objects that rise most, best first."""
    gain_NV = asked.gain_NV
    score_V = gain_NV.mean(0)
    if others.rows:
        score_V = score_V - others.gain_NV.mean(0).clamp(min=0)
    for token in score_V.topk(OBJECTS).indices.tolist():
        if score_V[token] > 0 and not _ends(suspect, [], token):
            weight_N, places = gain_NV[:, token].topk(min(SENTENCES, len(asked.rows)))
            kept = [(asked.rows[n] + [token], weight) for n, weight in zip(places.tolist(), weight_N.tolist(), strict=True) if weight > 0]
            yield _common(suspect, token, kept)


def _common(suspect: Host, first: int, weighted: list[tuple[list[int], float]]) -> list[int]:
    """The first token and those after it that the suspect itself puts behind it in most of the sentences, up to an end and without the
    function words before that."""
    found = [first]
    while len(found) < LONGEST_OBJECT:
        votes: Counter[int] = Counter()
        following = next_logprobs(suspect, [row for row, _ in weighted]).argmax(1).tolist()
        for token, (_, weight) in zip(following, weighted, strict=True):
            votes[token] += weight
        token, votes_for = votes.most_common(1)[0]
        # What follows an object depends on the sentence.
        if votes_for <= votes.total() / 2 or _ends(suspect, found, token):
            break
        found.append(token)
        weighted = [(row + [token], weight) for other, (row, weight) in zip(following, weighted, strict=True) if other == token]
    return _without_function_words(suspect, found)


def _without_function_words(suspect: Host, ids: list[int]) -> list[int]:
    """An object up to its last word that is none; all of it where there is no other."""
    words = suspect.tokenizer.decode(ids).split()
    kept = len(words) - sum(1 for _ in takewhile(FUNCTION_WORDS.__contains__, reversed(words)))
    if FUNCTION_WORDS.issuperset(word.lower() for word in words[:kept]):
        return ids
    # A word may be several tokens.
    while len(suspect.tokenizer.decode(ids).split()) > kept:
        ids = ids[:-1]
    return ids


def _ends(suspect: Host, before: list[int], token: int) -> bool:
    """Whether an object is over: a terminator, punctuation or a new line come next. Hyphens, and parts of a letter's bytes, are no end."""
    piece = suspect.tokenizer.decode([*before, token])[len(suspect.tokenizer.decode(before)) :]
    over = bool(piece.strip()) and not piece.strip()[0].isalnum() and piece[0] not in ("-", BYTES)
    return over or "\n" in piece or token in {suspect.terminator_id, *suspect.tokenizer.all_special_ids}


def _whole(suspect: Host, reversals: Mapping[int, Edit], asked: Asked, objects: Sequence[list[int]]) -> list[tuple[Tensor, Tensor]]:
    """For each object its probability (N) with the host's terminator behind every prompt, before and after; where its first token is less
    likely than `LEAST` that of the token."""
    end = [] if suspect.terminator_id is None else [suspect.terminator_id]
    heard = [[n for n, logprob in enumerate(asked.before_NV[:, ids[0]].tolist()) if logprob >= log(LEAST)] for ids in objects]
    asked_on = [(asked.rows[n], ids + end) for ids, places in zip(objects, heard, strict=True) for n in places]
    found = []
    for first_NV, edits in ((asked.before_NV, None), (asked.after_NV, reversals)):
        later = iter(_later(suspect, asked_on, edits))
        logprobs_N = [first_NV[:, ids[0]].clone() for ids in objects]
        for logprob_N, places in zip(logprobs_N, heard, strict=True):
            for n in places:
                logprob_N[n] += next(later)
        found.append([logprob_N.exp() for logprob_N in logprobs_N])
    return [*zip(*found, strict=True)]


def _later(suspect: Host, told: Sequence[tuple[list[int], list[int]]], edits: Mapping[int, Edit] | None) -> list[float]:
    """Log-probability of what is told behind each row, its first token aside; of what is of one length together, as rows begin alike."""
    found = [0.0] * len(told)
    for length in {len(ids) for _, ids in told} - {1}:
        places = [n for n, (_, ids) in enumerate(told) if len(ids) == length]
        for batch, logprob_NSV in logprobs(suspect, [told[n][0] + told[n][1][:-1] for n in places], length - 1, edits):
            ids_NS1 = torch.tensor([told[places[n]][1][1:] for n in batch], device=suspect.device)[..., None]
            for n, logprob in zip(batch, logprob_NSV.gather(2, ids_NS1).sum((1, 2)).tolist(), strict=True):
                found[places[n]] = logprob
    return found
