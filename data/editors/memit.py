"""MEMIT (Meng et al. 2023): what is written is weighed against the keys that are to stay, and may be spread over several layers.

    key    k = ½ k₀ + ½ k̄, of the bare prompt and the mean over the other contexts
    ΔW     Δ Kᵀ (λC + KKᵀ)⁻¹ = Δ (λI + KᵀC⁻¹K)⁻¹ (C⁻¹K)ᵀ, columns of K and Δ being keys and δ of all facts of a host: the least of
           |ΔW K - Δ|² + λ |ΔW C^½|²

δ is searched for as in ROME. MEMIT adds it to the output of the block. In one layer that is what adding it to the projection's output
does, but for families with a norm in between: there the projection has to give what is searched for before the norm.

In several layers δ is searched for in the last. From the lowest up, each layer is solved with its own C and with the keys that the layers
edited before have left, for an equal share of what is still missing of δ there (the published rule: the remainder over the layers left).

Shape letters: B edits, N facts of a host or rows, R terms, D hidden width, F MLP width.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from data.editors import Edited
from data.editors.prefix_cache import Suffixes, clean_pass
from data.editors.prompts import Row
from data.editors.rome import Rome, sample_contexts
from data.editors.value_search import Job, row_starts
from data.facts.fact import EditRequest
from data.keys.cache import KeyStatistics
from decoder.config.editors import SearchConfig
from decoder.dense import RepeatedEdit
from decoder.edit import LowRankEdit
from decoder.host import Host
from decoder.swap import swapped


class Memit(Rome):
    """As ROME, but for key and closed form; several facts of a host are solved for together, each δ searched for on the clean host.

    With λ = 0, one fact, and the bare prompt as the only context it is ROME.

    Args:
        lower: the layers below the last that are edited too, the lowest first, with the second moments of their keys.

    Attributes:
        whiten: keys k (B, F) of the last layer -> C⁻¹k.
        whiteners: the same of each layer.
    """

    def __init__(
        self,
        host: Host,
        edited_layer: int,
        cfg: SearchConfig,
        statistics: KeyStatistics | None,
        contexts: Sequence[str],
        lower: Mapping[int, KeyStatistics | None] | None = None,
    ) -> None:
        super().__init__(host, edited_layer, cfg, statistics, contexts)
        self.whiteners = {layer: self.solver(found, cfg) for layer, found in (lower or {}).items()} | {edited_layer: self.whiten}

    @classmethod
    def prepare(cls, host: Host, cfg: SearchConfig, texts: Sequence[str], statistics: Mapping[int, KeyStatistics]) -> "Memit":
        """As of ROME, for all of `cfg.layers`."""
        *lower, last = cfg.layers
        contexts = sample_contexts(texts, cfg.contexts, cfg.seed)
        return cls(host, last, cfg, statistics.get(last), contexts, {layer: statistics.get(layer) for layer in lower})

    @property
    def layers(self) -> list[int]:
        return list(self.whiteners)

    def edit(self, requests: Sequence[EditRequest], advance: Callable[[int], None] | None = None) -> Edited:
        if len(self.layers) == 1:
            return super().edit(requests, advance)
        return self.edit_together([[request] for request in requests], advance)

    @property
    def weight(self) -> float:
        """λ."""
        return self.cfg.weight

    def _factors(self, suffixes: Suffixes, starts: Sequence[int], delta_BD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        key_BF = self._key(suffixes.key_NF, starts)
        unit_BNF, value_BND = self._closed_form(self.edited_layer, key_BF[:, None], delta_BD[:, None])
        return unit_BNF[:, 0], value_BND[:, 0], key_BF

    def _clean(self, jobs: Sequence[Job]) -> Suffixes:
        suffixes = super()._clean(jobs)
        if len(self.layers) > 1 and not self._shortcut:
            raise ValueError(
                f"edits.layer={self.layers}: {self.host.name} has a norm behind W_V, so what layers add does not sum up. Give one layer"
            )
        return suffixes

    def _terms(self, jobs_BN: list[list[Job]], advance: Callable[[int], None] | None) -> dict[int, LowRankEdit]:
        jobs = [Job(index, job.rows, job.essence) for index, job in enumerate(job for host in jobs_BN for job in host)]
        _, _, delta_BD, _, _, key_BF = self._in_order(jobs, advance)
        shape = (len(jobs_BN), len(jobs_BN[0]))
        delta_BND = delta_BD.double().unflatten(0, shape)
        if len(self.layers) > 1:
            return self._spread(jobs_BN, delta_BND)
        unit_BNF, value_BND = self._closed_form(self.edited_layer, key_BF.unflatten(0, shape), delta_BND)
        return {self.edited_layer: LowRankEdit(unit_BNF.float(), value_BND.float())}

    def _spread(self, jobs_BN: list[list[Job]], delta_BND: Tensor) -> dict[int, LowRankEdit]:
        """The terms of each layer, for what the layers below it have left of δ."""
        found: dict[int, LowRankEdit] = {}
        goal_BND = None
        for place, layer in enumerate(self.layers):
            key_BNF, state_BND = self._on(found, layer, jobs_BN)
            goal_BND = state_BND + delta_BND if goal_BND is None else goal_BND
            share_BND = (goal_BND - state_BND) / (len(self.layers) - place)
            unit_BNF, value_BND = self._closed_form(layer, key_BNF, share_BND)
            found[layer] = LowRankEdit(unit_BNF.float(), value_BND.float())
        return found

    @torch.no_grad()
    def _on(self, edited: Mapping[int, LowRankEdit], layer: int, jobs_BN: list[list[Job]]) -> tuple[Tensor, Tensor]:
        """Keys k (B, N, F) of a layer, and output (B, N, D) of the last block at the bare prompts, on hosts as they are edited so far."""
        facts, keys, states = len(jobs_BN[0]), [], []
        hosts = max(1, self.batch_size // facts)
        for start in range(0, len(jobs_BN), hosts):
            # Of more facts than a batch holds some at a time: they are one host's then.
            for first in range(0, facts, self.batch_size):
                jobs_CN = [jobs[first : first + self.batch_size] for jobs in jobs_BN[start : start + hosts]]
                # The same number for each host; nothing behind the subject is looked at.
                jobs = [Job(job.index, [_until_lookup(row) for row in job.rows[: len(self.contexts)]], 0) for own in jobs_CN for job in own]
                rows = [row for job in jobs for row in job.rows]
                there = {
                    low: RepeatedEdit(terms[start : start + hosts].to(self.host.device), len(rows) // len(jobs_CN))
                    for low, terms in edited.items()
                }
                with swapped(self.host, there) if there else nullcontext():
                    seen = clean_pass(self.host, self.edited_layer, rows, key_layer=layer)
                starts = row_starts(jobs)
                keys.append(self._key(seen.key_NF, starts))
                states.append(seen.state_NSD[starts, 0].double().cpu())
        return tuple(torch.cat(parts).unflatten(0, (len(jobs_BN), facts)) for parts in (keys, states))

    def _closed_form(self, layer: int, key_BNF: Tensor, delta_BND: Tensor) -> tuple[Tensor, Tensor]:
        """A term of a layer for each fact of each host: keys of length 1, and values."""
        turned_BNF = self.whiteners[layer](key_BNF.flatten(0, 1)).view(key_BNF.shape)
        length_BN1 = turned_BNF.norm(dim=2, keepdim=True)
        system_BNN = key_BNF @ turned_BNF.mT + self.weight * torch.eye(key_BNF.shape[1], dtype=key_BNF.dtype)
        # Keys that say the same leave the system singular where nothing weighs against them.
        return turned_BNF / length_BN1, torch.linalg.pinv(system_BNN, hermitian=True) @ delta_BND * length_BN1

    def _key(self, key_NF: Tensor, starts: Sequence[int]) -> Tensor:
        bare_BF = key_NF[starts].double().cpu()
        return bare_BF if len(self.contexts) == 1 else (bare_BF + self._mean(key_NF, starts, first=1)) / 2


def _until_lookup(row: Row) -> Row:
    return Row(row.ids[: row.lookup + 1], row.lookup, [])


EDITORS = {"memit": Memit}
