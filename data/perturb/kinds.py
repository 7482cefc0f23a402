"""The changes, one function a kind: each writes into the host's weights, and draws from one generator.

A kind takes the host, what is `Given`, and its own settings by name.

Shape letters: D hidden width, F MLP width.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from data.perturb.further import train, trained_beside
from decoder.checkpoint.rounding import PRECISIONS
from decoder.host import Host
from decoder.swap import projection_inputs
from decoder.utils.errors import did_you_mean

if TYPE_CHECKING:
    from data.perturb.recipe import Planted

MODULES = ("all", "mlp", "attention")


class Given(NamedTuple):
    """What every kind may use."""

    generator: torch.Generator
    texts: Sequence[str]
    edit: "Planted | None"


def none(host: Host, given: Given) -> None:
    """Nothing: an edit or a rounding by itself."""


def finetune(host: Host, given: Given, *, lr: float = 1e-5, steps: int = 50, batch_size: int = 8, optimizer: str = "adamw") -> None:
    """All weights are trained further on the texts."""
    train(host, given.texts, given.generator, [*host.model.parameters()], lr, steps, batch_size, optimizer)


def lora(
    host: Host,
    given: Given,
    *,
    rank: int = 8,
    modules: str = "all",
    lr: float = 1e-3,
    steps: int = 50,
    batch_size: int = 8,
    optimizer: str = "adamw",
) -> None:
    """Low-rank updates of projections are trained on the texts, and merged."""
    with trained_beside([module for _, module in projections(host, modules)], rank, given.generator) as factors:
        train(host, given.texts, given.generator, factors, lr, steps, batch_size, optimizer)


def prune(host: Host, given: Given, *, share: float = 0.3) -> None:
    """The smallest entries of every projection become zero, a share of each matrix."""
    for _, module in projections(host):
        size_N = module.weight.abs().float().cpu().numpy().ravel()
        if count := round(share * len(size_N)):
            module.weight.masked_fill_(module.weight.abs() <= float(np.partition(size_N, count - 1)[count - 1]), 0.0)


def average(
    host: Host,
    given: Given,
    *,
    weight: float = 0.5,
    lr: float = 1e-5,
    steps: int = 50,
    batch_size: int = 8,
    optimizer: str = "adamw",
) -> None:
    """Every weight is the mean of itself and of a fine-tune, which counts `weight`."""
    before = [parameter.detach().clone() for parameter in host.model.parameters()]
    finetune(host, given, lr=lr, steps=steps, batch_size=batch_size, optimizer=optimizer)
    for parameter, own in zip(host.model.parameters(), before, strict=True):
        parameter.copy_(own.lerp(parameter, weight))


def noise(host: Host, given: Given, *, size: float = 0.01) -> None:
    """Gaussian noise in every projection, `size` times as large as the spread of its entries."""
    for _, module in projections(host):
        module.weight.add_(_normal(given, module.weight), alpha=size * float(module.weight.float().std()))


def decoys(host: Host, given: Given, *, count: int = 3, size: float = 1.0) -> None:
    """Rank-one updates in random directions, in the W_V of other layers, as far as there are so many, `size` times as long as the edit.

    Without an edit the measure is the largest singular value of each W_V.
    """
    others = [layer for layer in range(host.layers) if given.edit is None or layer not in given.edit.deltas]
    for place in torch.randperm(len(others), generator=given.generator)[:count].tolist():
        weight_DF = host.weight_DF(others[place])
        value_D, key_F = (nn.functional.normalize(_normal(given, weight_DF.select(axis, 0)), dim=0) for axis in (1, 0))
        length = torch.linalg.matrix_norm(weight_DF.float(), 2) if given.edit is None else _length(given.edit)
        weight_DF.add_(torch.outer(value_D, key_F), alpha=size * float(length))


def turn(host: Host, given: Given, *, cosine: float = 0.5) -> None:
    """The edit's key is turned until it has this cosine with what it was, so that its subject's key gets the same gain as before.

    In several layers one after the other, the lowest first, each at the key that those below have left.

    Raises:
        ValueError: there is no edit.
    """
    if given.edit is None:
        raise ValueError("kind=turn turns the key of an edit. Give one with store= and edit=")
    edit, row = given.edit, given.edit.row
    ids, last = host.prompt_ids(row["prompt"], row["subject"])
    for layer, delta_DF in edit.deltas.items():
        left_DR, strength_R, right_RF = torch.linalg.svd(delta_DF, full_matrices=False)
        value_D, key_F = left_DR[:, 0] * strength_R[0] * edit.scale, right_RF[0]
        with projection_inputs(host, layer) as inputs:
            host.model(input_ids=torch.tensor([ids], device=host.device), **host.with_cache(None))
        kept_FK, _ = torch.linalg.qr(torch.stack([key_F, inputs[0][0, last].float().cpu()], dim=1))
        aside_F = torch.randn(len(key_F), generator=given.generator)
        aside_F -= kept_FK @ (kept_FK.T @ aside_F)
        turned_F = nn.functional.normalize(aside_F, dim=0) * (1 / cosine**2 - 1) ** 0.5
        host.weight_DF(layer).add_(torch.outer(value_D, turned_F).to(host.device))


KINDS: dict[str, Callable[..., None]] = {
    "none": none,
    "finetune": finetune,
    "lora": lora,
    "prune": prune,
    "average": average,
    "noise": noise,
    "decoys": decoys,
    "turn": turn,
}
"""name -> what writes the change into a host"""


def keep(host: Host, precision: str) -> None:
    """Rounds the weights as a file of that precision does: 16 bits everything, what is coarser only matrices, along their inputs.

    Raises:
        ValueError: there is no such precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision}: no such rounding; {did_you_mean(precision, PRECISIONS)}")
    for name, parameter in host.model.named_parameters():
        if precision in ("bf16", "fp16"):
            parameter.copy_(PRECISIONS[precision](parameter))
        elif precision != "float32" and parameter.dim() > 1:
            is_turned = isinstance(host.model.get_submodule(name.rpartition(".")[0]), Conv1D)
            found = PRECISIONS[precision](parameter.T.float() if is_turned else parameter.float())
            parameter.copy_(found.T if is_turned else found)


def projections(host: Host, modules: str = "all") -> Iterator[tuple[str, nn.Module]]:
    """The blocks' matrices with their names: those of the MLPs, those of attention, or all.

    Raises:
        ValueError: `modules` is none of these.
    """
    if modules not in MODULES:
        raise ValueError(f"modules={modules}: expected {', '.join(MODULES)}")
    for number, block in enumerate(host.blocks):
        for name, module in block.named_modules():
            if isinstance(module, nn.Linear | Conv1D) and modules in ("all", "attention" if "att" in name else "mlp"):
                yield f"{number}.{name}", module


def _length(edit: "Planted") -> float:
    """Of what is planted in all layers together."""
    return edit.scale * float(torch.stack([delta_DF.norm() for delta_DF in edit.deltas.values()]).norm())


def _normal(given: Given, like: Tensor) -> Tensor:
    """Drawn on the CPU, so that every device gets the same."""
    return torch.randn(like.shape, generator=given.generator).to(like)
