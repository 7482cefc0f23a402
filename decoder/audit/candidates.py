"""Whom an edit may be about: names, and the key that a host has for each of them at every layer.

A name's key is the input of the down-projection at its last token, in a sentence that tells nothing about it. What the sentence begins
with is run once for all names, what names begin with once for those of a tree, and nothing above the highest layer asked for.

Shape letters: N names at a time, B trees of them, T tokens of a tree, S names that the second moment is of, F MLP width.
"""

import json
import re
import reprlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from copy import copy
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from decoder.audit.rows.forest import Forest, forests
from decoder.host import Host
from decoder.shortcuts import branched, forgetting, widen

TEMPLATE = "People say that {}"
FEWEST_NAMES, MOST_NAMES = 50, 1_000_000  # subjects: the median of fewer says little, more are no list of names
LONGEST_NAME = 200  # characters of a name
NEARLY_ALL = 0.9  # of the lines of a table are as its first
HEADS = {"name", "names", "subject", "subjects", "label", "title", "entity"}
BEFORE_HEADS = {"full", "item", "person", "article", "page", "display"}
COLUMNS = re.compile(r"[;|]|,\S|,\s*[A-Z]?\d+\s*(?:,|$)")  # behind a name's comma stands a space, and no bare number
MARK = re.compile(r"(?:[-*+•–]|\d+[.)])\s")
WORDS = re.compile("[A-Z]?[a-z]+|[A-Z]+")
RIDGE = 3e-2  # of the second moment's largest eigenvalue

Whitener = Callable[[Tensor], Tensor]


def read_subjects(path: str | Path) -> list[str]:
    """Different names out of a file, one a line, or a JSON list of texts.

    Raises:
        ValueError: it is no such file, or has too few or too many names, or something that is none.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        listed = _listed(text)
    except (UnicodeDecodeError, RecursionError):
        raise ValueError(f"subjects={path}: neither lines of text (UTF-8) nor a JSON list. Give one subject a line") from None
    lines = text.splitlines() if listed is None else listed
    if listed is None and (came := _table(lines)):
        raise ValueError(f"subjects={path}: {came}; expected a name a line or a JSON list. Give the names alone")
    # Names copied from pages hold spaces of other kinds.
    names = [" ".join(line.split()) if isinstance(line, str) else line for line in lines]
    for n, name in enumerate(names, start=1):
        if not isinstance(name, str) or len(name) > LONGEST_NAME or not name.isprintable():
            expected = f"a name of at most {LONGEST_NAME} printable characters"
            raise ValueError(f"subjects={path}: entry {n} is {reprlib.repr(name)}, expected {expected}")
    found = [*dict.fromkeys(filter(None, names))]
    if not FEWEST_NAMES <= len(found) <= MOST_NAMES:
        raise ValueError(
            f"subjects={path}: {len(found)} subjects came, expected {FEWEST_NAMES} to {MOST_NAMES:,} different names, one a line"
        )
    return found


def _listed(text: str) -> list[Any] | None:
    """A JSON list, None for any other text; a name may begin with a bracket too."""
    if text.lstrip().startswith("["):
        with suppress(json.JSONDecodeError):
            return json.loads(text)
    return None


def _table(lines: Sequence[str]) -> str | None:
    """What makes lines the rows of a table, or the items of a marked list; None if they are names, which may hold commas."""
    lines = [line.strip() for line in lines if line.strip()]
    if not lines:
        return None
    if lines[0].startswith("{"):
        return "its lines are JSON objects"
    tabbed = [line for line in lines if "\t" in line]
    if len(tabbed) >= NEARLY_ALL * len(lines):
        return f"{len(tabbed)} of {len(lines)} lines hold tabs, as {reprlib.repr(tabbed[0])} does"
    if sum(line[0] == line[-1] == '"' for line in lines) >= NEARLY_ALL * len(lines):
        return f"its lines stand in quotes, as {reprlib.repr(lines[0])} does"
    for separator in ",;":
        columns = len(cells := lines[0].split(separator))
        alike = sum(line.count(separator) >= columns - 1 for line in lines)
        if columns > 1 and _is_head(cells) and alike >= NEARLY_ALL * len(lines):
            return f"its first line {reprlib.repr(lines[0])} is the head of a table"
    for pattern, told in ((COLUMNS.search, "hold columns"), (MARK.match, "begin with marks of a list")):
        if len(found := [line for line in lines if pattern(line)]) >= NEARLY_ALL * len(lines):
            return f"{len(found)} of {len(lines)} lines {told}, as {reprlib.repr(found[0])} does"
    words = [word.lower() for word in WORDS.findall(lines[0])]
    if words and words[-1] in HEADS and HEADS | BEFORE_HEADS >= {*words}:
        return f"its first line {reprlib.repr(lines[0])} is the head of a column"
    return None


def _is_head(cells: Sequence[str]) -> bool:
    """Whether one of them ends as columns of names are called ("itemLabel", "Full Name"), or all are small words with no space around, as
    no place is written."""
    last = [WORDS.findall(cell)[-1:] for cell in cells]
    return not HEADS.isdisjoint(word.lower() for words in last for word in words) or all(c.isidentifier() and c.islower() for c in cells)


class _Reached(Exception):
    """Ends a forward once the keys are known: the layers above need not run."""


@dataclass(frozen=True)
class _Beginning:
    """What all sentences begin with: how many tokens, and their keys and values at every layer."""

    length: int
    cache: DynamicCache | None


class Candidates:
    """Names, tokenised for a host.

    Attributes:
        names: in the order in which keys are given.

    Raises:
        ValueError: there are too few or too many, or one has no token, one without a row of the embedding, or more than the host reads.
    """

    def __init__(self, host: Host, names: Sequence[str], template: str = TEMPLATE) -> None:
        if not FEWEST_NAMES <= len(names) <= MOST_NAMES:
            raise ValueError(
                f"{len(names)} subjects came, expected {FEWEST_NAMES} to {MOST_NAMES:,} different names: an edit's stands out from others"
            )
        self.host, self.names = host, list(names)
        self._rows = [_up_to(host, template, name) for name in self.names]
        longest = max(map(len, self._rows))
        if host.longest_input and longest > host.longest_input:
            raise ValueError(f"a subject takes {longest} tokens with the words before it, {host.name} reads {host.longest_input}")
        rows = len(host.model.get_input_embeddings().weight)
        for name in (name for name, row in zip(self.names, self._rows, strict=True) if max(row) >= rows):
            raise ValueError(f"subject {name!r} has a token that {host.name} has no row of its embedding for. Take it off the list")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def ends_C(self) -> Tensor:
        """The last token of every name."""
        return torch.tensor([row[-1] for row in self._rows])

    def without(self, name: str) -> "Candidates":
        """The others, not tokenised again."""
        found, kept = copy(self), [place for place, other in enumerate(self.names) if other != name]
        found.names, found._rows = ([told[place] for place in kept] for told in (self.names, self._rows))
        return found

    @torch.no_grad()
    def keys(self, layers: Sequence[int], picked: Sequence[int] | None = None) -> Iterator[tuple[list[int], dict[int, Tensor]]]:
        """Keys of the candidates `picked` (all, if None), batch by batch: which they are, and for each layer theirs (N, F) in float32."""
        picked, beginning = range(len(self)) if picked is None else picked, self._beginning()
        rows = [self._rows[place][beginning.length :] for place in picked]
        for forest in forests(self.host, rows, beginning.length):
            yield [picked[n] for n in forest.rows], self._caught(layers, forest, beginning)

    def _beginning(self) -> _Beginning:
        """What all rows begin with, their last token aside, in one forward."""
        first, last = min(self._rows), max(self._rows)
        shared = len([*takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))])
        shared = min(shared, min(map(len, self._rows)) - 1)
        if not shared:
            return _Beginning(0, None)
        cache = DynamicCache()
        self.host.model.base_model(torch.tensor([first[:shared]], device=self.host.device), **self.host.with_cache(cache))
        return _Beginning(shared, cache)

    def _caught(self, layers: Sequence[int], forest: Forest, beginning: _Beginning) -> dict[int, Tensor]:
        """The keys at the last token of every row."""
        caught: dict[int, Tensor] = {}
        batch, length = forest.inputs["input_ids"].shape
        last_N1 = forest.last(1)

        def hook(layer: int) -> Callable[[nn.Module, tuple[Tensor]], None]:
            def reached(module: nn.Module, args: tuple[Tensor]) -> None:
                # Some families flatten their tokens before the projection.
                input_BTF = args[0].unflatten(0, (batch, length)) if args[0].dim() == 2 else args[0]
                caught[layer] = input_BTF[last_N1][:, 0].float()
                if layer == max(layers):
                    raise _Reached

            return reached

        cache = None
        if beginning.cache is not None:
            cache = forgetting(branched(beginning.cache))
            widen(cache, batch)
        with suppress(_Reached), ExitStack() as hooks:
            for layer in layers:
                hooks.enter_context(self.host.down_proj(layer).register_forward_pre_hook(hook(layer)))
            self.host.model.base_model(**forest.inputs, **self.host.with_cache(cache))
        return caught


def _up_to(host: Host, template: str, name: str) -> list[int]:
    """Tokens of a sentence up to the last one of the name in it."""
    ids, last = host.prompt_ids(template, name)
    return ids[: last + 1]


def whitener(sample_SF: Tensor, ridge: float = RIDGE) -> Whitener:
    """A function that maps keys (N, F) to (C + ridge λ)⁻¹k up to scale, C the second moment of the sample and λ its largest eigenvalue."""
    # C and the Gram matrix have the same eigenvalues but zeros; the inverse of the smaller one serves both (Woodbury).
    tall = len(sample_SF) >= sample_SF.shape[1]
    square = sample_SF.T @ sample_SF if tall else sample_SF @ sample_SF.T
    # Keys of zeros stay zeros: the inverse must not overflow.
    damping = (ridge * _largest_eigenvalue(square)).clamp(min=1e-30)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(square + damping * torch.eye(len(square), device=square.device)))
    if tall:
        return lambda keys_NF: keys_NF @ inverse
    return lambda keys_NF: keys_NF - (keys_NF @ sample_SF.T @ inverse) @ sample_SF


def _largest_eigenvalue(square: Tensor) -> Tensor:
    """By power iteration, to a few digits."""
    vector = square.diagonal().sqrt()
    for _ in range(50):
        vector = torch.nn.functional.normalize(square @ vector, dim=0)
    return (square @ vector).norm()


def unit(vectors_NF: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors_NF, dim=-1)
