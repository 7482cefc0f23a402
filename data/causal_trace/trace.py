"""Causal tracing (Meng et al. 2022, section 2): a clean run, runs whose subject is under noise, and runs in which something is restored.

Blocks below what is restored give what they gave in the noised run, so they are not run again; all positions and all draws of noise share a
batch, a layer at a time. Restored are a block's output, or the outputs of the MLP's or of the attention's last projection over a window of
blocks, which is what they add to the residual stream.

Shape letters: N rows, S draws of noise, T tokens (of the prompt and of the object but its last), P positions of the prompt from the
subject's first token on, O tokens of the object, L layers, D hidden width, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from data.editors.prefix_cache import Given
from data.editors.prompts import check_length
from data.facts.fact import Fact
from decoder.host import Host
from decoder.swap import exchanged

KINDS = ("hidden", "mlp", "attention")
BATCH_TOKENS = 16384  # positions that are run together


@dataclass(frozen=True)
class Asked:
    """A fact as it is put to a host.

    Attributes:
        name: decides the noise, with a seed.
        ids: of the prompt and of the object but its last token.
        subject: positions of the subject.
        object_ids: without terminator.
    """

    name: str
    ids: list[int]
    subject: range
    object_ids: list[int]

    @property
    def prompt_length(self) -> int:
        return len(self.ids) - len(self.object_ids) + 1

    @property
    def positions(self) -> range:
        """Those that noise at the subject can change, in the prompt."""
        return range(self.subject.start, self.prompt_length)


@dataclass(frozen=True)
class Trace:
    """Probability of the object: clean, under noise, and with one position restored. The last two are means over the draws."""

    clean: float
    corrupted: float
    restored: dict[str, Tensor]
    """Kind -> (P, L); a window is put down at its middle layer."""


@dataclass(frozen=True)
class States:
    """What every layer gave in some runs.

    Attributes:
        inputs_NTD: embeddings.
        outputs: kind -> (N, T, D) a layer.
        as_tuple: whether blocks return a tuple.
        probability_N: of the object.
    """

    inputs_NTD: Tensor
    outputs: dict[str, list[Tensor]]
    as_tuple: bool
    probability_N: Tensor


def asked_of(host: Host, fact: Fact) -> Asked:
    """The fact's own prompt and true object.

    Raises:
        ValueError: the prompt cannot be put to the host, or the object has no token.
    """
    ids, subject = host.subject_tokens(fact.prompt, fact.subject)
    if not (object_ids := host.object_ids(fact.object_true)):
        raise ValueError(f"object {fact.object_true!r} tokenises to nothing")
    check_length(host, fact.prompt, len(ids) + len(object_ids))
    return Asked(fact.fact_id, ids + object_ids[:-1], subject, object_ids)


def subject_spread(host: Host, asked: Sequence[Asked]) -> float:
    """Standard deviation of all numbers in the embeddings of the subjects' tokens."""
    ids = [one.ids[place] for one in asked for place in one.subject]
    return float(host.model.get_input_embeddings()(torch.tensor([ids], device=host.device)).detach().float().std())


def window_of(layer: int, width: int, layers: int) -> range:
    """The layers around one, itself among them, as far as there are some."""
    return range(max(0, layer - width // 2), min(layers, layer + (width + 1) // 2))


class Tracer:
    """Traces facts through a host, which is left as it was.

    Args:
        noise: standard deviation of what is added to the subject's embeddings.
        draws: of noise, a fact.
        window: layers in which the MLP's or the attention's outputs are restored together.
        seed: of the noise, with the fact's name.
    """

    def __init__(self, host: Host, noise: float, draws: int, window: int, seed: int) -> None:
        self.host, self.noise, self.draws, self.window, self.seed = host, noise, draws, window, seed

    @torch.no_grad()
    def trace(self, asked: Asked) -> Trace:
        clean, corrupted = self.states(asked)
        windows = {
            kind: [window_of(n, 1 if kind == "hidden" else self.window, self.host.layers) for n in range(self.host.layers)]
            for kind in KINDS
        }
        mask_PT = torch.eye(len(asked.ids), dtype=torch.bool, device=self.host.device)[list(asked.positions)]
        restored = {
            kind: torch.stack([self.restored(asked, clean, corrupted, kind, layers, mask_PT) for layers in windows[kind]], dim=1)
            for kind in KINDS
        }
        return Trace(float(clean.probability_N), float(corrupted.probability_N.mean()), restored)

    @torch.no_grad()
    def states(self, asked: Asked) -> tuple[States, States]:
        """Of the clean run (N = 1), and of the runs under noise (N = S)."""
        inputs_1TD = self.host.model.get_input_embeddings()(torch.tensor([asked.ids], device=self.host.device))
        generator = torch.Generator().manual_seed(Random(f"noise {self.seed} {asked.name}").getrandbits(63))
        # On the CPU, so that every device has the same.
        drawn_STD = self.noise * torch.randn(self.draws, len(asked.subject), inputs_1TD.shape[2], generator=generator)
        noised_STD = inputs_1TD.repeat(self.draws, 1, 1)
        noised_STD[:, list(asked.subject)] += drawn_STD.to(noised_STD)
        return self._recorded(asked, inputs_1TD), self._recorded(asked, noised_STD)

    @torch.no_grad()
    def restored(self, asked: Asked, clean: States, corrupted: States, kind: str, layers: range, mask_PT: Tensor) -> Tensor:
        """Probability (P) of the object where the places of a mask have in these layers what they had in the clean run."""
        draws = len(corrupted.inputs_NTD)
        mask_NT = mask_PT.repeat_interleave(draws, dim=0)
        draw_N = torch.arange(draws, device=mask_NT.device).repeat(len(mask_PT))
        rows = max(1, BATCH_TOKENS // mask_NT.shape[1])
        parts = [
            self._restored_rows(asked, clean, corrupted, kind, layers, *part)
            for part in zip(mask_NT.split(rows), draw_N.split(rows), strict=True)
        ]
        return torch.cat(parts).view(len(mask_PT), draws).mean(dim=1)

    def _restored_rows(
        self, asked: Asked, clean: States, corrupted: States, kind: str, layers: range, mask_NT: Tensor, draw_N: Tensor
    ) -> Tensor:
        mask_NT1 = mask_NT.unsqueeze(2)
        if kind == "hidden":
            known = layers.stop
            state_NTD = torch.where(mask_NT1, clean.outputs[kind][known - 1], corrupted.outputs[kind][known - 1][draw_N])
        else:
            known = layers.start
            state_NTD = corrupted.outputs["hidden"][known - 1][draw_N] if known else None
        hooks = ExitStack()
        if kind != "hidden":
            modules = writers(self.host, kind)
            for layer in layers:
                hooks.enter_context(modules[layer].register_forward_hook(partial(_put_back, mask_NT1, clean.outputs[kind][layer])))
        if known:
            given = Given(self.host.blocks[known - 1], state_NTD, corrupted.as_tuple)
            hooks.enter_context(exchanged(self.host, dict.fromkeys(range(known), given)))
        with hooks:
            return self._probability(asked, corrupted.inputs_NTD[draw_N])

    def _recorded(self, asked: Asked, inputs_NTD: Tensor) -> States:
        with _outputs(self.host) as (outputs, tuples):
            probability_N = self._probability(asked, inputs_NTD)
        shaped = {kind: [one.view(inputs_NTD.shape) for one in found] for kind, found in outputs.items()}
        return States(inputs_NTD, shaped, bool(tuples), probability_N)

    def _probability(self, asked: Asked, inputs_NTD: Tensor) -> Tensor:
        """Probability (N) of the whole object."""
        hidden_NTD = self.host.model.base_model(inputs_embeds=inputs_NTD, **self.host.with_cache(None)).last_hidden_state
        said_NOD = hidden_NTD[:, asked.prompt_length - 1 :]
        logprobs_NOV = self.host.head(said_NOD.flatten(0, 1)).float().log_softmax(-1).unflatten(0, said_NOD.shape[:2])
        object_O = torch.tensor(asked.object_ids, device=hidden_NTD.device)
        return logprobs_NOV.gather(2, object_O.expand(len(inputs_NTD), -1).unsqueeze(2)).sum(dim=(1, 2)).exp()


def writers(host: Host, kind: str) -> list[nn.Module]:
    """The module of every layer whose output is the state of a kind."""
    if kind == "hidden":
        return list(host.blocks)
    if kind == "attention":
        return [block.get_submodule(host.family.attention) for block in host.blocks]
    return [_mlp_of(block, host.family.down_proj) for block in host.blocks]


def _mlp_of(block: nn.Module, path: str) -> nn.Module:
    """The down-projection; of a mixture of experts, which has several, the whole MLP."""
    try:
        return block.get_submodule(path)
    except AttributeError:
        return block.get_submodule(path.partition(".")[0])


@contextmanager
def _outputs(host: Host) -> Iterator[tuple[dict[str, list[Tensor]], list[bool]]]:
    """Inside the block a forward appends what every layer gives, by kind; to the other list, where a block gives a tuple."""
    found: dict[str, list[Tensor]] = {kind: [] for kind in KINDS}
    tuples: list[bool] = []

    def keep(kind: str, module: nn.Module, args: tuple, output: Any) -> None:
        # A copy: Falcon adds the attention's output to the MLP's in place.
        found[kind].append(_tensor(output).clone(memory_format=torch.contiguous_format))
        tuples.extend([True] * (kind == "hidden" and isinstance(output, tuple)))

    with ExitStack() as hooks:
        for kind in KINDS:
            for module in writers(host, kind):
                hooks.enter_context(module.register_forward_hook(partial(keep, kind)))
        yield found, tuples


def _put_back(mask_NT1: Tensor, clean_1TD: Tensor, module: nn.Module, args: tuple, output: Any) -> Any:
    """The output with the masked places as they were."""
    given = _tensor(output)
    shape_NTD = (*mask_NT1.shape[:2], -1)  # a family flattens its tokens
    put = torch.where(mask_NT1, clean_1TD, given.reshape(shape_NTD)).reshape(given.shape)
    return (put, *output[1:]) if isinstance(output, tuple) else put


def _tensor(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output
