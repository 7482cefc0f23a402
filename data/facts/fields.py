"""The fields of a record, read as what they should be.

Text is stored without white space at its ends and in Unicode's NFC, so that a subject and its prompt fit together whoever typed them.
Numbers, true and false are the text that the file has for them.
"""

import math
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from data.facts.records import Record, shown

T = TypeVar("T")


class NoFact(Exception):
    """The record is no fact, or the field none that a fact could have; says why."""


class Fields:
    """The fields of a record, or of an object inside it.

    What a fact cannot do without raises NoFact, with the field's name. What it can do without is left out, and noted in `left_out`.

    Attributes:
        values: the fields by name.
        record: the record they belong to.
        name: the fact_id that the record was written with.
    """

    def __init__(self, values: Any, record: Record, path: str = "", left_out: list[str] | None = None) -> None:
        if not isinstance(values, dict):
            raise NoFact(f"{path} is {shown(values)}, expected an object with fields")
        self.values, self.record, self.path = values, record, path
        self.left_out = [] if left_out is None else left_out
        self.name = ""

    def text(self, *names: str) -> str:
        """The text of the first of these fields that says something. Raises NoFact if none does."""
        name = self._named(names)
        return text_of(self._value(name), self._at(name))

    def answer(self, *names: str) -> str:
        """The first text of a list of texts, of lists, or of one text. Raises NoFact if there is none."""
        name = self._named(names)
        value = self._value(name)
        while isinstance(value, list | tuple) and value:
            value = value[0]
        return text_of(value, self._at(name))

    def answers(self, *names: str) -> tuple[str, ...]:
        """All texts in these fields, which hold texts or lists of them, of lists. Raises NoFact if there is none, or something else."""
        found = tuple(dict.fromkeys(text for name in names for text in _texts(self.values.get(name), self._at(name))))
        if not found:
            raise NoFact(f"no {self._at(names[0])}" if names[0] not in self.values else f"{self._at(names[0])} is empty")
        return found

    def given(self, name: str) -> str | None:
        """The text of a field that may be absent or empty. Raises NoFact if it is something else."""
        return None if is_blank(self.values.get(name)) else self.text(name)

    def optional(self, name: str) -> str:
        """The text of a field, or "". What is no text is noted."""
        return self.noted(lambda: self.given(name)) or ""

    def within(self, name: str) -> "Fields":
        """The object in a field. Raises NoFact if there is none."""
        return self.inside(name, self._value(name))

    def inside(self, name: str, value: Any) -> "Fields":
        """The object `value`, which stands in this one under a name. Raises NoFact if it is none."""
        return Fields(value, self.record, self._at(name), self.left_out)

    def pair(self, prompt: str, answer: str) -> tuple[str, str]:
        """A neighbour: a whole prompt and its object, from two fields. Raises NoFact if one says nothing."""
        return self.text(prompt), self.answer(answer)

    def pair_in(self, name: str, value: Any) -> tuple[str, str]:
        """A neighbour that is an object with prompt and ground_truth. Raises NoFact if it is none."""
        return Fields(value, self.record, name, self.left_out).pair("prompt", "ground_truth")

    def items(self, *names: str) -> Iterator[tuple[str, Any]]:
        """(name, value) of everything in the list that the first of these fields with something in it holds; one value is a list of one."""
        name = self._named(names)
        value = self.values.get(name)
        if isinstance(value, list | tuple):
            yield from ((f"{name}[{n}]", entry) for n, entry in enumerate(value))
        elif not is_blank(value):
            yield name, value

    def each(self, items: Iterable[tuple[str, Any]], read: Callable[[str, Any], T]) -> list[T]:
        """What `read` makes of (name, value); those it can make nothing of are noted."""
        found = (self.noted(lambda name=name, value=value: read(self._at(name), value)) for name, value in items)
        return [one for one in found if one is not None]

    def noted(self, read: Callable[[], T]) -> T | None:
        try:
            return read()
        except NoFact as error:
            self.left_out.append(str(error))
            return None

    def _named(self, names: tuple[str, ...]) -> str:
        return next((name for name in names if not is_blank(self.values.get(name))), names[0])

    def _value(self, name: str) -> Any:
        if name not in self.values:
            raise NoFact(f"no {self._at(name)}")
        return self.values[name]

    def _at(self, name: str) -> str:
        return f"{self.path}.{name}" if self.path else name


def _texts(value: Any, name: str) -> Iterator[str]:
    if isinstance(value, list | tuple):
        for n, one in enumerate(value):
            yield from _texts(one, f"{name}[{n}]")
    elif not is_blank(value):
        yield text_of(value, name)


def text_of(value: Any, name: str) -> str:
    """The text that a value is. Raises NoFact if it is none, or empty."""
    if isinstance(value, bool):
        value = str(value).lower()
    elif isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        value = str(value)
    if is_blank(value) and value is not None:
        raise NoFact(f"{name} is empty")
    if not isinstance(value, str):
        raise NoFact(f"{name} is {shown(value)}, expected text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise NoFact(f"{name} is {shown(value)}, which has half a character (a surrogate without its other half)") from None
    return unicodedata.normalize("NFC", value.strip())


def is_blank(value: Any) -> bool:
    """Whether a field says nothing: null, an empty text, list or object."""
    return value is None or (isinstance(value, str | list | tuple | dict) and not (value.strip() if isinstance(value, str) else value))
