"""Suggestions for misspelt names."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """What exists, the nearest match first: "did you mean 'rome'? Known: rome, r-rome"."""
    known = sorted(known)
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    question = f"did you mean {nearest[0]!r}? " if nearest else ""
    return f"{question}known: {', '.join(known)}"
