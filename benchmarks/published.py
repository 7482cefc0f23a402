"""Editors' loops as their authors run them, written for reading and for being compared with: one edit at a time, nothing shared or kept.

Shape letters: N rows, T positions, K scored places, D hidden width, F MLP width, V vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from data.editors.rome import BARE, ESSENCE, Rome
from data.facts.fact import EditRequest, FactSet
from data.keys.cache import KeyStatistics
from decoder.config import RomeConfig
from decoder.config.editors import FineTuneConfig
from decoder.host import Host


@dataclass
class Task:
    """What both ways are given."""

    host: Host
    cfg: RomeConfig
    rome: Rome
    facts: FactSet
    requests: list[EditRequest]
    moments: Mapping[int, KeyStatistics] = field(default_factory=dict)


class Published:
    """One edit as ROME's authors make it: all its sentences in one batch, all of the host, the logits of every position, at every step."""

    def __init__(self, task: Task, request: EditRequest) -> None:
        self.host, self.cfg, self.layer = task.host, task.cfg, task.cfg.layer
        fact, targets = request.fact, self.host.object_ids(request.object)
        prompts = [self.host.prompt_ids(context.replace(BARE, fact.prompt), fact.subject) for context in task.rome.contexts]
        essence, essence_lookup = self.host.prompt_ids(ESSENCE, fact.subject)
        rows = [ids + targets[:-1] for ids, _ in prompts] + [essence]
        self.bare = torch.tensor([prompts[0][0]]), prompts[0][1]
        self.ids_NT = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
        self.mask_NT = torch.nn.utils.rnn.pad_sequence([torch.ones(len(row), dtype=torch.long) for row in rows], batch_first=True)
        self.lookup_N = torch.tensor([lookup for _, lookup in prompts] + [essence_lookup])
        self.row_K = torch.tensor([n for n in range(len(prompts)) for _ in targets])
        self.place_K = torch.tensor([len(ids) - 1 + t for ids, _ in prompts for t in range(len(targets))])
        self.label_K = torch.tensor(targets * len(prompts))
        self.delta_D = torch.zeros(self.host.hidden_size, requires_grad=True)
        self.adam = torch.optim.Adam([self.delta_D], lr=self.cfg.lr)
        self.output_D = self.clean_V = None

    @torch.no_grad()
    def keys(self) -> tuple[Tensor, Tensor]:
        """Mean key over the contexts, and the bare prompt's, by passes of their own."""
        found = []
        with self.host.down_proj(self.layer).register_forward_hook(lambda module, args, output: found.append(args[0])):
            self.host.model(self.ids_NT[:-1], attention_mask=self.mask_NT[:-1], use_cache=False)
            self.host.model(self.bare[0], use_cache=False)
        contexts = len(self.lookup_N) - 1
        return found[0][torch.arange(contexts), self.lookup_N[:-1]].double().mean(0), found[1][0, self.bare[1]].double()

    def forward(self) -> Tensor:
        """The loss."""
        rows = torch.arange(len(self.ids_NT))

        def add(module: torch.nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
            if self.output_D is None:
                self.output_D = output[0, self.lookup_N[0]].detach().clone()
            return output.index_put((rows, self.lookup_N), self.delta_D, accumulate=True)

        with self.host.down_proj(self.layer).register_forward_hook(add):
            logprobs_NTV = self.host.model(self.ids_NT, attention_mask=self.mask_NT, use_cache=False).logits.log_softmax(-1)
        nll = -logprobs_NTV[self.row_K, self.place_K, self.label_K].mean()
        now_V = logprobs_NTV[-1, self.lookup_N[-1]]
        self.clean_V = now_V.detach() if self.clean_V is None else self.clean_V
        kl = (now_V.exp() * (now_V - self.clean_V)).sum()
        return nll + self.cfg.kl * kl + self.cfg.decay * self.delta_D.norm() / self.output_D.norm() ** 2

    def step(self) -> None:
        self.adam.zero_grad()
        self.forward().backward()
        self.adam.step()
        with torch.no_grad():
            self.delta_D *= (self.cfg.clamp * self.output_D.norm() / self.delta_D.norm()).clamp(max=1)


class PublishedFineTune:
    """Fine-tuning of one W_V on one sentence: the whole host, the weight itself trained by Adam."""

    def __init__(self, host: Host, layer: int, cfg: FineTuneConfig, request: EditRequest) -> None:
        self.host, self.module = host, host.down_proj(layer)
        ids, targets = host.prompt_ids(request.fact.prompt, request.fact.subject)[0], host.object_ids(request.object)
        self.ids_1T = torch.tensor([ids + targets[:-1]])
        self.label_T = torch.tensor([*ids[1:], *targets])
        self.weight = torch.nn.Parameter(self.module.weight.detach().clone())
        self.adam = torch.optim.Adam([self.weight], lr=cfg.lr)

    def step(self) -> None:
        own, self.module.weight = self.module.weight, self.weight
        try:
            logits_TV = self.host.model(self.ids_1T, use_cache=False).logits[0]
            self.adam.zero_grad()
            torch.nn.functional.cross_entropy(logits_TV, self.label_T).backward()
            self.adam.step()
        finally:
            self.module.weight = own

    def delta_DF(self) -> Tensor:
        delta = (self.weight - self.module.weight).detach()
        return delta if isinstance(self.module, torch.nn.Linear) else delta.T
