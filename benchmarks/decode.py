"""Training steps of a decoder, in edits a second: dense one at a time | factors, plain batch | factors, grown at the edit.

    python benchmarks/decode.py [out=FILE] [repeats=5]

The first way is the published one: swap one whole matrix into the host, run it, swap the next. All three make the same
gradients, which is checked before anything is timed. Hosts have random weights: speed does not depend on them.

Shape letters: B edits, M prompt vectors, T object tokens, D hidden width, F MLP width, V vocabulary.
"""

import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from common import Common, Rates, Row, alternate, compare, measure_rates, not_measured, settings, write
from rich.console import Console
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DynamicCache, GPT2Config, GPTJConfig, LlamaConfig, PretrainedConfig

from decoder.dense import applied
from decoder.edit import RankOneEdit
from decoder.host import Host
from decoder.model import ObjectDecoder
from decoder.shortcuts import last_mlp, scored_only
from decoder.swap import exchanged, swapped
from decoder.training.losses import object_loss
from decoder.training.module import random_prompt
from decoder.utils.errors import did_you_mean, run_command

UNIT = "edits/s"
AGREEMENT = 1e-4  # of float32 gradients, relative: batches and single edits are summed in other orders


@dataclass
class Settings(Common):
    only: str = ""  # cpu or gpu; empty runs the cases of both


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
    "miniature": Shape(GPT2Config(n_embd=32, n_layer=3, n_head=2, vocab_size=64, bos_token_id=0, eos_token_id=0), layer=1),
}


@dataclass(frozen=True)
class Case:
    """One setting of the sweep; the trained layer is the edited one."""

    shape: str = "gpt2"
    layer: int = 8
    batch: int = 32
    prompt: int = 5
    tokens: int = 1

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
            host, edited_layers=[case.layer], trained_layers=[case.layer], prompt_MD=random_prompt(host, case.prompt, 0)
        ).to(host.device)
        generator = torch.Generator().manual_seed(0)
        weight_DF = host.weight_DF(case.layer)
        key_BF = torch.randn(case.batch, weight_DF.shape[1], generator=generator)
        value_BD = float(weight_DF.float().std()) * torch.randn(case.batch, weight_DF.shape[0], generator=generator)
        self.edits = RankOneEdit(key_BF, value_BD).to(host.device)
        vocabulary = host.text_config.vocab_size
        self.ids_BT = torch.randint(vocabulary, (case.batch, case.tokens), generator=generator).to(host.device)
        self.optimizer = torch.optim.AdamW(self.decoder.parameters(), lr=1e-5)

    def grown(self) -> None:
        """Ours: the decoder as `train.py` runs it."""
        object_loss(self.decoder(self.edits, self.ids_BT), self.ids_BT).backward()

    def plain(self) -> None:
        """The prompt is repeated where it enters; every layer sees the whole batch."""
        prompt_BMD = self.decoder.prompt_MD.to(self.host.dtype).expand(self.case.batch, -1, -1)
        with swapped(self.host, {self.layer: self.edits}):
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
        whole = [applied(self.edits[b], weight_DF).weight_BDF[0] for b in range(self.case.batch)]
        return [weight.T.contiguous() for weight in whole] if self.host.stored_transposed(self.layer) else whole

    def _loss(self, prompt_BMD: Tensor, ids_BT: Tensor) -> Tensor:
        """The decoder's loss with one of its short cuts alone: the head on scored positions."""
        cache = DynamicCache() if ids_BT.shape[1] > 1 else None
        blocks = {int(layer): block for layer, block in self.decoder.trained.items()}
        half = self.host.dtype != torch.float32
        autocast = torch.autocast(self.host.device.type, dtype=self.host.dtype if half else None, enabled=half)
        with autocast, scored_only(self.host):
            with exchanged(self.host, blocks):
                logits_1NV = [self.host.model(inputs_embeds=prompt_BMD, **self.host.with_cache(cache), logits_to_keep=1).logits]
            if cache is not None:
                logits_1NV.append(self.host.model(ids_BT[:, :-1], **self.host.with_cache(cache)).logits)
        ids_1N = torch.cat([ids_BT[:, 0], ids_BT[:, 1:].flatten()]).unsqueeze(0)
        return object_loss(torch.cat(logits_1NV, dim=1), ids_1N)

    def apart(self, ways: Iterable[str]) -> float:
        """How far the gradients of any way are from ours, relative to their length."""
        gradients = {}
        for way in ways:
            self.optimizer.zero_grad()
            getattr(self, way)()
            gradients[way] = torch.cat([parameter.grad.flatten() for parameter in self.decoder.parameters()])
        return max(float((gradient - gradients["grown"]).norm() / gradients["grown"].norm()) for gradient in gradients.values())

    def step(self, way: str) -> None:
        self.optimizer.zero_grad()
        getattr(self, way)()
        self.optimizer.step()


def necessary(bench: Bench) -> tuple[int, int]:
    """Operations and bytes of one training step on one-token objects, grown at the edit.

    Blocks up to the edited one see M positions, the others B * M; the last MLP, above the edit, and the head see B. Backward, activations
    cost what they cost forward (the two products of attention twice that), and of the weights only the trained block's have gradients.
    Weights are read twice.
    """
    host, case = bench.host, bench.case
    operations = 4 * case.batch * host.unembedding_VD.numel()
    for layer, block in enumerate(host.blocks):
        positions = case.prompt * (1 if layer <= case.layer else case.batch)
        operations += 4 * _matrices(block) * positions + 12 * case.prompt * host.hidden_size * positions
    if case.layer < host.layers - 1 and (mlp := last_mlp(host)):
        operations -= 4 * _matrices(mlp) * case.batch * (case.prompt - 1)
    operations += 2 * _matrices(bench.decoder.trained) * case.prompt
    return operations, 2 * sum(parameter.nbytes for parameter in host.model.parameters())


def _matrices(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.dim() == 2)


def random_host(name: str, device: str) -> Host:
    shape = SHAPES[name]
    with torch.device(device), torch.random.fork_rng():
        torch.manual_seed(0)
        return Host(AutoModelForCausalLM.from_config(shape.config, dtype=shape.dtype), None, name=name)


def measure(host: Host, case: Case, rates: Rates, repeats: int) -> list[Row]:
    """Ours against both other ways.

    Raises:
        RuntimeError: the ways make other gradients: exact before fast. In half precision, where whole matrices are rounded, how far
            they are apart is only noted.
    """
    bench, ways = Bench(host, case), ("dense", "plain", "grown")
    apart = bench.apart(ways)
    if host.dtype == torch.float32 and not apart < AGREEMENT:
        raise RuntimeError(f"{case}: gradients are {apart:.1e} apart")
    seconds = alternate({way: partial(bench.step, way) for way in ways}, repeats)
    floor = rates.floor_seconds(*necessary(bench)) if case.tokens == 1 else None
    title = "figure/decode-" if case == FIGURE else f"{case}: "
    row = {"amount": case.batch, "unit": UNIT, "floor_seconds": floor, "note": f"gradients {apart:.0e} apart"}
    return [compare(title + name, seconds["grown"], seconds[way], **row) for way, name in (("dense", "dense"), ("plain", "factors"))]


@run_command
def main(argv: list[str] | None = None) -> None:
    cfg = settings(Settings, sys.argv[1:] if argv is None else argv)
    groups = {"cpu": [FIGURE, *SWEEP], "gpu": ON_GPU} if not cfg.miniature else {"cpu": [MINIATURE]}
    if cfg.only:
        if cfg.only not in groups:
            raise ValueError(f"only={cfg.only}: {did_you_mean(cfg.only, groups)}")
        groups = {cfg.only: groups[cfg.only]}
    rows = []
    for where, cases in groups.items():
        device = "cuda" if where == "gpu" else "cpu"
        if where == "gpu" and not torch.cuda.is_available():
            rows += [not_measured(str(case), UNIT, "no GPU") for case in cases]
            continue
        hosts: dict[str, Host] = {}
        for case in cases:
            if case.shape not in hosts:
                hosts.clear()  # before the next takes memory
                hosts[case.shape] = random_host(case.shape, device)
                rates = measure_rates(device, SHAPES[case.shape].dtype, width=256 if cfg.miniature else 2048)
            rows += measure(hosts[case.shape], case, rates, cfg.repeats)
            Console().print(f"  {case}: {rows[-1].ours:.1f} {UNIT}", style="dim", highlight=False)
    write("decode", rows, cfg.out)


if __name__ == "__main__":
    main()
