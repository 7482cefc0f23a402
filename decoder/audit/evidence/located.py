"""One edit, as far as it is known where it is, and whether it is about a name of the list or about nobody in it.

Shape letters: C candidates, L those of them that say what is usual, F MLP width.
"""

from collections.abc import Collection
from dataclasses import dataclass

from torch import Tensor

Ranking = tuple[tuple[str, float], ...]
"""Candidates with their scores, best first."""

FITS = 0.9
"""Fit from which an edit is about a name; lowest and lowest but 2 % of edits whose subject was in the list, highest but 2 % and highest of
edits whose subject was taken off it: 0.91, 0.96, 0.75, 0.90 (pocket host, 200 edits, 890 names), 0.92, 1.08, 0.83, 0.90 (SmolLM2-135M,
150 edits, 4,000 names); in bfloat16."""


@dataclass(frozen=True)
class Located:
    """One edit.

    Attributes:
        layer: block whose down-projection holds it.
        subject: the candidate it is about; None if it is about nobody in the list.
        key_F: unit vector, the whitened key of the subject or of the candidate who resembles it; without either the right singular vector
            that the edit was seen by.
        keys_LF: unit vectors, whitened keys at the layer of candidates from all over the list, in its order; of all, if they are few.
        score: how far it stands out: of the layer's score without a base, else the length of the key within the update's directions.
        base_known: whether it was found in W' - W, and not in W' alone.
        ranking: the candidates that fit best with their scores, best first.
        resembles: if `subject` is None, the candidate whose key the edit answers to.
        fit: how well the candidate's key is the edit's own, and ahead of the others; see `key_fit`.
    """

    layer: int
    subject: str | None
    key_F: Tensor
    keys_LF: Tensor
    score: float
    base_known: bool
    ranking: Ranking = ()
    resembles: str | None = None
    fit: float = 0.0

    @property
    def asked(self) -> str | None:
        """Whom the suspect can be asked about: what is planted about somebody comes up with those who resemble them too."""
        return self.subject or self.resembles


def named_or_like(name: str, fit: float) -> tuple[str | None, str | None]:
    """`subject` and `resembles` of an edit that answers to a candidate."""
    return (name, None) if fit >= FITS else (None, name)


def key_fit(cosine_C: Tensor, place: int, ends_C: Tensor, found: Collection[int] = ()) -> float:
    """How well a candidate's key is that of the edit: their cosine, and by how much it is ahead of the next candidate's.

    An edit about somebody else answers to several who resemble them, less well and much alike. Those that end as the candidate does are
    passed over, as they may be other names of the same; so are those that another edit is about.

    Args:
        cosine_C: of all candidates' keys with the edit's.
        ends_C: what each candidate ends in, as a number.
        found: candidates that edits are about.
    """
    rivals_C = ends_C.to(cosine_C.device) != ends_C[place]
    rivals_C[[*found]] = False
    own = float(cosine_C[place])
    return 2 * own - float(cosine_C[rivals_C].max()) if bool(rivals_C.any()) else own
