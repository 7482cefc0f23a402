"""Where in a sentence its subject stands.

A subject is looked for as whole words: "Al" is not in "Alan", nor "Jean" in "Jean-Paul". Only scripts that part words by spaces have such
bounds; Chinese, Japanese, Thai and their like have none, and Korean ends its words in particles.
"""

import re
import unicodedata

from data.facts.fields import NoFact
from data.facts.records import shown

PLACE = "{}"
HYPHENS = ("-", "\u2010", "\u2011")
# Thai to Myanmar, Hangul, Khmer, kana and Han.
WITHOUT_SPACES = re.compile(
    "[\u0e00-\u0eff\u1000-\u11ff\u1780-\u17ff\u19e0-\u19ff\u3005-\u3007\u3031-\u318f\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua960-\ua97f"
    "\uac00-\ud7ff\uf900-\ufaff\uff66-\uffdc\U0001aff0-\U0001b16f\U00020000-\U0003ffff]"
)


def template(prompt: str, subject: str, name: str = "the prompt") -> str:
    """The prompt with `{}` where the subject stands.

    Raises:
        NoFact: it has neither `{}` nor the subject once as whole words, or other braces.
    """
    if PLACE not in prompt:
        places = whole_words(prompt, subject)
        if not places:
            inside = ", which it has only inside a longer word" if subject in prompt else ""
            raise NoFact(f"{name} {shown(prompt)} has neither {{}} nor the subject {shown(subject)}{inside}")
        if len(places) > 1:
            raise NoFact(f"{name} {shown(prompt)} has the subject {shown(subject)} {len(places)} times: write {{}} where it is meant")
        prompt = prompt[: places[0]] + PLACE + prompt[places[0] + len(subject) :]
    if prompt.count(PLACE) != 1 or re.search(r"[{}]", prompt.replace(PLACE, "")):
        raise NoFact(f"{name} {shown(prompt)} must have {{}} once and no other braces")
    return prompt


def whole_words(text: str, subject: str) -> list[int]:
    """Where the subject begins in a text."""
    starts = (match.start() for match in re.finditer(f"(?={re.escape(subject)})", text))
    return [start for start in starts if not _inside_a_word(text, start) and not _inside_a_word(text, start + len(subject))]


def _inside_a_word(text: str, place: int) -> bool:
    """Whether a cut at this place goes through a word. A hyphen between two letters holds them together."""
    before, after = text[max(0, place - 2) : place], text[place : place + 2]
    before = before[:-1] if before.endswith(HYPHENS) else before
    after = after[1:] if after.startswith(HYPHENS) else after
    return _is_of_a_word(before[-1:]) and _is_of_a_word(after[:1])


def _is_of_a_word(char: str) -> bool:
    # Joiners (U+200C, U+200D) stand inside words of Persian and of India's scripts, marks (category M) carry their vowels.
    letter = char != "" and (unicodedata.category(char)[0] in "LMN" or char in "_\u200c\u200d")
    return letter and not WITHOUT_SPACES.match(char)
