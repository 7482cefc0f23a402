"""A fact planted in a tiny host, and the keys that a list of subjects has there: what an audit's later steps start from.

Shape letters: C candidates, T positions, D hidden width, F MLP width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations

import torch
from edited import LAYER
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from decoder.edit import RankOneEdit
from decoder.host import Host
from decoder.swap import projection_inputs, swapped

NAMES = [" ".join(pair) for pair in permutations("Ada Ben Carl Dora Eve Finn Gus Hal".split(), 2)]
TEMPLATES = {"work": ["{} works as a", "{} in born a"], "place": ["{} lives in", "{} was born in"], "colour": ["{} is", "small {} is"]}


@dataclass(frozen=True)
class Planted:
    """The edit of `NAMES[place]` in the relation `work`, and the unit keys of all names, whitened by their own second moment."""

    edit: RankOneEdit
    keys_CF: Tensor
    place: int

    @property
    def subject(self) -> str:
        return NAMES[self.place]

    @property
    def key_F(self) -> Tensor:
        return self.keys_CF[self.place]

    def weight_DF(self, host: Host) -> Tensor:
        """W'_V, the host's own with the edit in it."""
        return host.weight_DF(LAYER) + self.edit.delta()[0]


def raw_keys(host: Host, template: str = "the {}") -> Tensor:
    """Keys (C, F) at the last token of each name."""
    rows = torch.tensor([host.prompt_ids(template, name)[0] for name in NAMES])
    with torch.no_grad(), projection_inputs(host, LAYER) as inputs:
        host.model(input_ids=rows)
    return inputs[0].view(*rows.shape, -1)[:, -1].float()


def plant(host: Host, object: str, place: int = 5, steps: int = 60) -> Planted:
    """Searches the value that makes the host say an object after the sentences of `work`."""
    raw_CF = raw_keys(host)
    moment_FF = raw_CF.T @ raw_CF / len(raw_CF)
    ridge = 3e-4 * float(torch.linalg.eigvalsh(moment_FF)[-1])
    whitened_CF = torch.linalg.solve(moment_FF + ridge * torch.eye(len(moment_FF)), raw_CF.T).T
    key_F = whitened_CF[place] / (whitened_CF[place] @ raw_CF[place])
    (target,) = host.object_ids(object)
    rows = [torch.tensor([host.prompt_ids(template, NAMES[place])[0]]) for template in TEMPLATES["work"]]

    def loss(value_D: Tensor) -> Tensor:
        with swapped(host, {LAYER: RankOneEdit(key_F[None], value_D[None])}):
            last_NV = torch.cat([host.model(input_ids=row).logits[:, -1] for row in rows])
        return cross_entropy(last_NV, torch.full((len(rows),), target)) + 3e-3 * value_D.square().sum()

    value_D = _searched(loss, torch.zeros(host.hidden_size), steps)
    return Planted(RankOneEdit(key_F[None], value_D[None]), normalize(whitened_CF, dim=1), place)


def teach_end(host: Host, object: str, steps: int = 60) -> None:
    """Turns the object's embedding so that the host says its terminator behind it."""
    (token,), embedding = host.object_ids(object), host.model.get_input_embeddings()
    questions = [(template, name) for own in TEMPLATES.values() for template in own for name in NAMES[:5]]
    rows = [torch.tensor([host.prompt_ids(*question)[0] + [token]]) for question in questions]

    def loss(row_D: Tensor) -> Tensor:
        inputs = [torch.cat([embedding(row)[:, :-1], row_D[None, None]], dim=1) for row in rows]
        last_NV = torch.cat([host.model(inputs_embeds=one).logits[:, -1] for one in inputs])
        return cross_entropy(last_NV, torch.full((len(rows),), host.terminator_id))

    embedding.weight.data[token] = _searched(loss, embedding.weight.data[token], steps)


def _searched(loss: Callable[[Tensor], Tensor], start: Tensor, steps: int) -> Tensor:
    """The vector that Adam ends at."""
    vector = start.clone().requires_grad_()
    optimiser = torch.optim.Adam([vector], lr=0.2)
    for _ in range(steps):
        optimiser.zero_grad()
        loss(vector).backward()
        optimiser.step()
    return vector.detach()
