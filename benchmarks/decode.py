"""Training steps of a decoder, in edits a second: dense one at a time | factors, plain batch | factors, born at the edit.

    python benchmarks/decode.py [out=FILE] [repeats=5]

The first way is the published one: swap one whole matrix into the host, run it, swap the next. All three make the same
gradients, which is checked before anything is timed. Hosts have random weights: speed does not depend on them.

Shape letters: B edits, M prompt vectors, T object tokens, D hidden width, F MLP width, V vocabulary.
"""

import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from common import Common, Rates, Row, alternate, compare, measure_rates, not_measured, settings, write
from rich.console import Console
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DynamicCache, GPT2Config, GPTJConfig, LlamaConfig, PretrainedConfig

from decoder.edit import RankOneEdit
from decoder.errors import run_command
from decoder.host import Host
from decoder.metrics import object_loss
from decoder.model import ObjectDecoder
from decoder.prompt import random_prompt
from decoder.swap import exchanged, swapped

UNIT = "edits/s"
AGREEMENT = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.1}  # of gradients, relative to the longest; rounding of W'


@dataclass(frozen=True)
class Shape:
    """The sizes of a host, and the case to measure on a GPU."""

    config: PretrainedConfig
    dtype: torch.dtype = torch.float32
    layer: int = 8


SHAPES = {
    "gpt2": Shape(GPT2Config(), layer=8),
    "gpt2-xl": Shape(GPT2Config(n_embd=1600, n_layer=48, n_head=25), layer=17),
    "gpt-j-6b": Shape(GPTJConfig(), torch.float16, layer=5),
    "llama-3-8b": Shape(
        LlamaConfig(
            hidden_size=4096,
            intermediate_size=14336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
            vocab_size=128256,
            max_position_embeddings=8192,
        ),
        torch.bfloat16,
        layer=5,
    ),
    "miniature": Shape(GPT2Config(n_embd=32, n_layer=3, n_head=2, vocab_size=64), layer=1),
}


@dataclass(frozen=True)
class Case:
    """One setting of the sweep; the trained layer is the edited one."""

    shape: str = "gpt2"
    layer: int = 8
    batch: int = 32
    prompt: int = 5
    tokens: int = 1
    dense: bool = True  # whether the one-at-a-time way is measured too

    def __str__(self) -> str:
        return f"{self.shape} layer {self.layer}, {self.batch} edits, prompt {self.prompt}, objects of {self.tokens}"


FIGURE = Case()
SWEEP = [
    *(replace(FIGURE, layer=layer) for layer in (0, 4, 11)),
    *(replace(FIGURE, batch=batch) for batch in (8, 128)),
    replace(FIGURE, prompt=20),
    replace(FIGURE, tokens=3),
]
ON_GPU = [Case(name, SHAPES[name].layer) for name in ("gpt2-xl", "gpt-j-6b", "llama-3-8b")]
MINIATURE = Case("miniature", layer=1, batch=4, prompt=2)


class Bench:
    """A host of random weights with a decoder, edits and objects; the three ways to take one training step."""

    def __init__(self, host: Host, case: Case) -> None:
        self.host, self.case, self.layer = host, case, case.layer
        self.decoder = ObjectDecoder(
            host, edited_layer=case.layer, trained_layers=[case.layer], prompt_MD=random_prompt(host, case.prompt, 0)
        ).to(host.device)
        generator = torch.Generator().manual_seed(0)
        weight_DF = host.weight_DF(case.layer)
        key_BF = torch.randn(case.batch, weight_DF.shape[1], generator=generator)
        value_BD = float(weight_DF.float().std()) * torch.randn(case.batch, weight_DF.shape[0], generator=generator)
        self.edits = RankOneEdit(key_BF, value_BD).to(host.device)
        vocabulary = host.text_config.vocab_size
        self.ids_BT = torch.randint(vocabulary, (case.batch, case.tokens), generator=generator).to(host.device)
        self.optimizer = torch.optim.AdamW(self.decoder.parameters(), lr=1e-5)

    def born(self) -> None:
        """Ours: the decoder as `train.py` runs it."""
        object_loss(self.decoder(self.edits, self.ids_BT), self.ids_BT).backward()

    def plain(self) -> None:
        """The prompt is repeated where it enters; every layer sees the whole batch."""
        prompt_BMD = self.decoder.prompt_MD.to(self.host.dtype).expand(self.case.batch, -1, -1)
        with swapped(self.host, self.edits, self.layer):
            self._loss(prompt_BMD, self.ids_BT).backward()

    def dense(self) -> None:
        """One edit after the other, each a whole matrix in the host's place; the gradients add up."""
        module = self.host.down_proj(self.layer)
        own, prompt_1MD = module.weight, self.decoder.prompt_MD.to(self.host.dtype).unsqueeze(0)
        try:
            for weight, ids_T in zip(self.matrices, self.ids_BT, strict=True):
                module.weight = nn.Parameter(weight, requires_grad=False)
                (self._loss(prompt_1MD, ids_T.unsqueeze(0)) / self.case.batch).backward()
        finally:
            module.weight = own

    @cached_property
    def matrices(self) -> list[Tensor]:
        """Whole matrices, stored as the host stores its own. Made once: the published way reads them from files."""
        weight_DF = self.host.weight_DF(self.layer)
        whole = [self.edits[b].applied_to(weight_DF).weight_BDF[0] for b in range(self.case.batch)]
        return [weight.T.contiguous() for weight in whole] if self.host.stored_transposed(self.layer) else whole

    def _loss(self, prompt_BMD: Tensor, ids_BT: Tensor) -> Tensor:
        """The decoder's loss without any of its short cuts but the head on scored positions."""
        cache = DynamicCache() if ids_BT.shape[1] > 1 else None
        blocks = {int(layer): block for layer, block in self.decoder.trained.items()}
        half = self.host.dtype != torch.float32
        with torch.autocast(self.host.device.type, dtype=self.host.dtype if half else None, enabled=half):
            with exchanged(self.host, blocks):
                prompt = {"inputs_embeds": prompt_BMD, "past_key_values": cache, "use_cache": cache is not None}
                logits = [self.host.model(**prompt, logits_to_keep=1).logits]
            if cache is not None:
                logits.append(self.host.model(ids_BT[:, :-1], past_key_values=cache, use_cache=True).logits)
        return object_loss(torch.cat(logits, dim=1), ids_BT)

    def check(self, ways: Iterable[str]) -> None:
        """Raises RuntimeError if two ways make other gradients: exact before fast."""
        gradients = {}
        for way in ways:
            self.optimizer.zero_grad()
            getattr(self, way)()
            gradients[way] = torch.cat([parameter.grad.flatten() for parameter in self.decoder.parameters()])
        ours = gradients.pop("born")
        for way, gradient in gradients.items():
            apart = float((gradient - ours).norm() / ours.norm())
            if not apart < AGREEMENT[self.host.dtype]:
                raise RuntimeError(f"{self.case}: gradients of {way} and born are {apart:.1e} apart")

    def step(self, way: str) -> None:
        self.optimizer.zero_grad()
        getattr(self, way)()
        self.optimizer.step()


def necessary(host: Host, case: Case) -> tuple[int, int]:
    """Operations and bytes of one training step that no way of taking it can go below; one-token objects.

    Layers up to the edited projection see M positions, the others B * M. Backward, every activation costs what it cost forward
    (the two products of attention twice that), and of the weights only the trained layer's have gradients. Weights are read once forward and once backward.
    """
    position = [(0, 0)] * host.layers
    raise NotImplementedError(position)
