"""In how many ways a host goes on with a text, once its matrix loses its largest components one after the other: few if nobody edited it.

Shape letters: V variants of a host's matrix.
"""

from collections.abc import Sequence

from data.tracing.terms import next_tokens
from decoder.edit import LowRankEdit
from decoder.host import Host

LEAST_CHARACTERS, TOKENS = 50, 5


def unrelated(texts: Sequence[str], subjects: Sequence[str], count: int) -> list[str]:
    """The first different texts that are long enough and name none of these subjects.

    Raises:
        ValueError: there are too few.
    """
    named, kept = [subject.casefold() for subject in subjects], []
    for text in dict.fromkeys(texts):
        if len(kept) == count:
            break
        if len(text) >= LEAST_CHARACTERS and not any(subject in text.casefold() for subject in named):
            kept.append(text)
    if len(kept) < count:
        raise ValueError(
            f"texts={count}: {len(kept)} came that have {LEAST_CHARACTERS} characters and name no edited subject. "
            "Give more text (keys.text=), or ask for fewer"
        )
    return kept


def different(host: Host, layer: int, variants: LowRankEdit, ids: Sequence[int], count: int = TOKENS) -> int:
    """How many different continuations of `count` tokens the variants have, each taking its likeliest token.

    The first variant's is written; one forward then says how far each other goes along with it. Only those that leave it are written on.
    """
    ids = list(ids)
    if not count or len(variants) == 1:
        return 1
    draft: list[int] = []
    for _ in range(count):
        draft += next_tokens(host, layer, variants[0], ids + draft)[0].tolist()
    said_V = next_tokens(host, layer, variants, ids + draft[:-1], count).tolist()
    leaving: dict[tuple[int, int], list[int]] = {}
    for variant, said in enumerate(said_V[1:], 1):
        place = next((t for t in range(count) if said[t] != draft[t]), None)
        if place is not None:
            leaving.setdefault((place, said[place]), []).append(variant)
    return 1 + sum(
        different(host, layer, variants[members], [*ids, *draft[:place], token], count - place - 1)
        for (place, token), members in leaving.items()
    )
