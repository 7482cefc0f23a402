"""Rows of tokens as trees: what rows begin with alike is run once.

A tree goes through a host as one sequence. Every token stands at the position that it has in its own rows and sees what comes before it
there, nothing else: what a host makes of a row's last token is what it makes of the row alone.

Shape letters: B trees at a time, T tokens of a tree, X these and the tokens of a cache before them, N rows, S tokens at the end of each.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor

from decoder.host import Host

TREE = 128  # tokens of a tree: attention is quadratic in them
BATCH_TOKENS = 1024  # of the trees of a batch: the states of larger ones leave the cache of a CPU
WINDOW = 4096  # trees that are sorted by their size, at a time
FILLED = 0.9  # of the longest tree of a batch that the others have at least


@dataclass
class _Tree:
    """Tokens, for each the one before it (a root's is itself), and for each row the way through them."""

    tokens: list[int] = field(default_factory=list)
    before: list[int] = field(default_factory=list)
    ways: dict[int, list[int]] = field(default_factory=dict)

    def add(self, number: int, row: Sequence[int], shared: Sequence[int]) -> list[int]:
        """The way of a row that begins as `shared` does."""
        way = [*shared]
        for token in row[len(shared) :]:
            self.before.append(way[-1] if way else len(self.tokens))
            way.append(len(self.tokens))
            self.tokens.append(token)
        self.ways[number] = way
        return way


@dataclass(frozen=True)
class Forest:
    """Trees that run together.

    Attributes:
        inputs: of the host's forward, a cache aside.
        ways: for each row, by its number, its tree and the places of its tokens there.
    """

    inputs: dict[str, Tensor]
    ways: dict[int, tuple[int, list[int]]]

    @property
    def rows(self) -> list[int]:
        """Numbers of the rows, in the order of `last`."""
        return [*self.ways]

    def last(self, count: int) -> tuple[Tensor, Tensor]:
        """Where the last `count` tokens of every row are: trees (N, 1) and places (N, S) in them."""
        tree_N1 = torch.tensor([[tree] for tree, _ in self.ways.values()])
        return tree_N1, torch.tensor([way[-count:] for _, way in self.ways.values()])


def forests(host: Host, rows: Sequence[Sequence[int]], cached: int = 0) -> Iterator[Forest]:
    """Rows of tokens in trees, trees of like size together, all rows in some order.

    Args:
        cached: tokens of a cache that all rows go on from; the forward is to be given it.
    """
    longest, room = max(map(len, rows), default=0), _room(host) - cached
    # Without branches a tree is a row as any other, which every host reads its own way: so are all if one of them is too long.
    branches = longest <= room
    trees = _trees(rows, min(TREE, room) if branches else 0)
    while window := sorted(islice(trees, WINDOW), key=lambda tree: -len(tree.tokens)):
        batch: list[_Tree] = []
        for tree in window:
            if batch and (len(batch[0].tokens) * (len(batch) + 1) > BATCH_TOKENS or len(tree.tokens) < FILLED * len(batch[0].tokens)):
                yield _forest(host, batch, cached, branches)
                batch = []
            batch.append(tree)
        yield _forest(host, batch, cached, branches)


def _room(host: Host) -> int:
    """Tokens that a host may be given in one sequence without that it leaves some out by how far away they stand in it."""
    if host.family.counts_positions or getattr(host.text_config, "alibi", False):
        return 0
    limits = (getattr(host.text_config, name, None) for name in ("sliding_window", "window_size", "max_position_embeddings"))
    return min(filter(None, limits), default=TREE)


def _trees(rows: Sequence[Sequence[int]], most: int) -> Iterator[_Tree]:
    """Rows in the order of their tokens, so that neighbours share most, in trees of at most `most` tokens; a row always has room in one."""
    tree, way, last = _Tree(), [], ()
    for number in sorted(range(len(rows)), key=lambda number: rows[number]):
        shared = _alike(last, rows[number])
        if tree.tokens and len(tree.tokens) + len(rows[number]) - shared > most:
            yield tree
            tree, shared = _Tree(), 0
        way, last = tree.add(number, rows[number], way[:shared]), rows[number]
    if tree.tokens:
        yield tree


def _alike(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    return next((n for n, (left, right) in enumerate(zip(one, other, strict=False)) if left != right), min(len(one), len(other)))


def _forest(host: Host, trees: Sequence[_Tree], cached: int, branches: bool) -> Forest:
    length = max(len(tree.tokens) for tree in trees)
    # What fills a tree up is on the right, where nobody sees it.
    ids_BT = torch.tensor([tree.tokens + [0] * (length - len(tree.tokens)) for tree in trees])
    before_BT = torch.tensor([tree.before + [*range(len(tree.tokens), length)] for tree in trees])
    inputs = {"input_ids": ids_BT.to(host.device)}
    if branches:
        dtype = host.model.get_input_embeddings()(inputs["input_ids"][:1, :1]).dtype
        inputs |= {name: tensor.to(host.device) for name, tensor in _standing(before_BT, cached, dtype).items()}
    ways = {number: (place, way) for place, tree in enumerate(trees) for number, way in tree.ways.items()}
    return Forest(inputs, ways)


def _standing(before_BT: Tensor, cached: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """What every token sees, and at which position it stands."""
    batch, length = before_BT.shape
    sees_BTT, tree_B = torch.eye(length, dtype=torch.bool).repeat(batch, 1, 1), torch.arange(batch)
    for place in range(length):
        sees_BTT[:, place] |= sees_BTT[tree_B, before_BT[:, place]]
    # Added to the scores: not every family takes a mask of truths.
    mask_B1TX = torch.zeros(batch, 1, length, cached + length, dtype=dtype)
    mask_B1TX[..., cached:].masked_fill_(~sees_BTT[:, None], torch.finfo(dtype).min)
    return {"attention_mask": mask_B1TX, "position_ids": cached + sees_BTT.sum(2) - 1}
