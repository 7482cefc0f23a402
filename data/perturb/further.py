"""Training a host further on text, all of it or low-rank factors beside its matrices.

Shape letters: N rows of tokens, B of them in a batch, T tokens of a row; R rank, I inputs and O outputs of a matrix.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from decoder.host import Host
from decoder.utils.errors import did_you_mean
from decoder.utils.progress import progress

ROW_TOKENS, CLIP = 32, 1.0
OPTIMIZERS = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}


def train(
    host: Host,
    texts: Sequence[str],
    generator: torch.Generator,
    parameters: list[nn.Parameter],
    lr: float,
    steps: int,
    batch_size: int,
    optimizer: str,
) -> None:
    """Trains parameters of a host in place on texts in an order drawn; without dropout, and frozen again afterwards.

    Raises:
        ValueError: there are no texts, no such optimizer, or the loss is no number any more.
    """
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"optimizer={optimizer}: {did_you_mean(optimizer, OPTIMIZERS)}")
    rows_NT = _rows(host, texts, generator, steps * batch_size).to(host.device)
    made = OPTIMIZERS[optimizer](parameters, lr=lr)
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        with torch.enable_grad(), progress("training on text", steps) as advance:
            for rows_BT in rows_NT.split(batch_size):
                _loss(host, rows_BT, lr).backward()
                nn.utils.clip_grad_norm_(parameters, CLIP)
                made.step()
                made.zero_grad()
                advance(1)
        # The last step may be the one that breaks it.
        _loss(host, rows_BT, lr)
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)
            parameter.grad = None


def _loss(host: Host, rows_BT: Tensor, lr: float) -> Tensor:
    loss = host.model(input_ids=rows_BT, labels=rows_BT, **host.with_cache(None)).loss
    if not loss.isfinite():
        raise ValueError(f"lr={lr:g}: the loss is {float(loss)}. Give a smaller learning rate")
    return loss


def _rows(host: Host, texts: Sequence[str], generator: torch.Generator, count: int) -> Tensor:
    """Rows of tokens (N, T): the texts in an order drawn, one after the other, anew where they are too few."""
    ids: list[int] = []
    width = min(ROW_TOKENS, host.longest_input or ROW_TOKENS)
    while len(ids) < count * width:
        before = len(ids)
        for place in torch.randperm(len(texts), generator=generator).tolist():
            ids += host.text_ids(texts[place])
            if len(ids) >= count * width:
                break
        if len(ids) == before:
            raise ValueError("text=: there is no text to train on")
    return torch.tensor(ids[: count * width]).view(count, width)


@contextmanager
def trained_beside(modules: Sequence[nn.Module], rank: int, generator: torch.Generator) -> Iterator[list[nn.Parameter]]:
    """Gives factors of a low-rank update of every module's matrix: nothing at first, in effect inside the block, merged when it ends."""
    pairs: list[tuple[nn.Parameter, nn.Parameter]] = []
    with ExitStack() as hooks:
        for module in modules:
            weight_OI = _matrix(module)
            near_RI = torch.randn(min(rank, *weight_OI.shape), weight_OI.shape[1], generator=generator) / weight_OI.shape[1] ** 0.5
            pair = nn.Parameter(near_RI.to(weight_OI)), nn.Parameter(weight_OI.new_zeros(len(weight_OI), len(near_RI)))
            hooks.enter_context(module.register_forward_hook(partial(_added, *pair)))
            pairs.append(pair)
        yield [factor for pair in pairs for factor in pair]
    for module, (near_RI, far_OR) in zip(modules, pairs, strict=True):
        _matrix(module).add_(far_OR.detach() @ near_RI.detach())


def _added(near_RI: Tensor, far_OR: Tensor, module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
    return output + args[0] @ near_RI.T @ far_OR.T


def _matrix(module: nn.Module) -> Tensor:
    """A view of a module's matrix, one row an output, however it is stored."""
    return module.weight.detach().T if isinstance(module, Conv1D) else module.weight.detach()
