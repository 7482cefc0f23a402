"""ROME (Meng et al. 2022): one rank-one edit of a down-projection for each request, every edit on the clean host.

    key    mean key at the subject's last token over contexts, whitened by the keys' second moment: u = C⁻¹k̄ / ‖C⁻¹k̄‖
    value  r = δ / (k₀·u), k₀ the key of the bare prompt, so that ΔW = r uᵀ gives ΔW k₀ = δ. Added to the projection's output there, δ
           has the least mean NLL(object) + KL term + decay (`value_search.py`)

ROME so has two keys. Gupta et al. 2024 (r-ROME, p-ROME) take one everywhere, which keeps ΔW from exploding where u·k₀ is small:

    r-ROME  r = (v₀ + δ - ō) / (k̄·u), v₀ and ō the clean outputs at the bare prompt and their mean over contexts: W'k̄ + b = v₀ + δ
    p-ROME  u = C⁻¹k₀ / ‖C⁻¹k₀‖ and r = δ / (k₀·u)

Shape letters: B edits, D hidden width, F MLP width.
"""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from data.editors import Edited
from data.editors.batched import Batched
from data.editors.prefix_cache import Suffixes, clean_pass
from data.editors.prompts import Row, prompt_row, target_ids
from data.editors.value_search import Job, optimise, row_starts
from data.facts.fact import EditRequest
from data.facts.together import host_id, refuse_repeated
from data.keys.cache import KeyStatistics
from data.keys.whiten import Solver, whitener
from decoder.config import RomeConfig
from decoder.edit import LayerEdits, LowRankEdit, RankOneEdit
from decoder.host import Host
from decoder.swap import swapped

BARE = "{}"
ESSENCE = "{} is a"
CONTEXT_WORDS = range(3, 16)


@dataclass(frozen=True)
class RomeResult(Edited):
    """What ROME tells beside its edits, whose keys have length 1.

    Attributes:
        delta_BD: δ; what a ROME or p-ROME edit adds to the projection's output at the subject of the bare prompt.
        steps_B: updates made.
        loss_B: loss at the last forward.
    """

    delta_BD: Tensor
    steps_B: Tensor
    loss_B: Tensor


class Rome(Batched):
    """ROME on one layer of a host. The host is bit-identical after every call.

    Args:
        host: whose layer is edited.
        edited_layer: 0-based block whose down-projection carries the edit.
        cfg: every setting of the method.
        statistics: second moment of the layer's keys; may be None with ridge `identity`.
        contexts: templates the prompt is put into; the first is the bare "{}".

    Attributes:
        whiten: keys k (B, F) -> C⁻¹k.
        batch_size: edits made together from here on.

    Raises:
        ValueError: a ridge that is none, a precision the device has not, or contexts that do not start with the bare one.
    """

    direction: Literal["mean", "bare"] = "mean"
    """Which key is whitened into u."""
    constraint: Literal["mean", "bare"] = "bare"
    """At which key the edited projection gives the new value."""

    def __init__(self, host: Host, edited_layer: int, cfg: RomeConfig, statistics: KeyStatistics | None, contexts: Sequence[str]) -> None:
        if not contexts or contexts[0] != BARE or any(context.count(BARE) != 1 for context in contexts):
            raise ValueError(f"contexts {list(contexts)!r}: expected the bare {{}} first and one {{}} in each")
        super().__init__(host, edited_layer, cfg)
        self.contexts, self.whiten = list(contexts), self.solver(statistics, cfg)
        self._before: LowRankEdit | None = None

    @staticmethod
    def solver(statistics: KeyStatistics | None, cfg: RomeConfig) -> Solver:
        """What turns a key into the direction of its edit."""
        return whitener(statistics, cfg.ridge)

    @classmethod
    def prepare(cls, host: Host, cfg: RomeConfig, texts: Sequence[str], statistics: Mapping[int, KeyStatistics]) -> "Rome":
        """ROME at `cfg.layer`, with contexts from texts like those the host was trained on."""
        (layer,) = cfg.layers
        return cls(host, layer, cfg, statistics.get(layer), sample_contexts(texts, cfg.contexts, cfg.seed))

    @property
    def layers(self) -> list[int]:
        """Those that are edited."""
        return [self.edited_layer]

    def edit(self, requests: Sequence[EditRequest], advance: Callable[[int], None] | None = None) -> RomeResult:
        """Makes the edits, `batch_size` together: `cfg.batch_size`, halved whenever that is too much for the memory.

        Args:
            requests: one that cannot be made (object without a token, prompt without {}, empty subject) is skipped and listed.
            advance: is told how many more requests are done.

        Raises:
            RuntimeError, MemoryError: what the device raises if not even one edit fits.
        """
        jobs, skipped = self.jobs(requests)
        if (found := self.solved(jobs, advance)) is None:
            empty = RankOneEdit(torch.empty(0, self.host.mlp_size(self.edited_layer)), torch.empty(0, self.host.hidden_size))
            return RomeResult([], empty, skipped, empty.value_BD, torch.empty(0, dtype=torch.long), torch.empty(0))
        key_BF, value_BD, delta_BD, steps_B, loss_B, _ = found
        finite_B = (key_BF.isfinite().all(dim=1) & value_BD.isfinite().all(dim=1)).tolist()
        skipped += [(requests[job.index].edit_id, "key or value is not finite") for job, ok in zip(jobs, finite_B, strict=True) if not ok]
        order = sorted((b for b, ok in enumerate(finite_B) if ok), key=lambda b: jobs[b].index)
        kept = [jobs[b].index for b in order]
        return RomeResult(kept, RankOneEdit(key_BF[order], value_BD[order]), skipped, delta_BD[order], steps_B[order], loss_B[order])

    def edit_together(self, hosts: Sequence[Sequence[EditRequest]], advance: Callable[[int], None] | None = None) -> Edited:
        """Plants several facts in each host, one after the other, each on what those before it left.

        Args:
            hosts: the requests of each, as many in all. A host that one of them cannot be made in is skipped and listed, and one with
                a subject twice.
            advance: is told how many more requests are done.

        Raises:
            ValueError: the host's blocks do more with the projection's output than add it, so that the clean matrix would be needed.
        """
        jobs_BN, kept, skipped = [], [], []
        for b, requests in enumerate(hosts):
            try:
                refuse_repeated(requests, [request.edit_id for request in requests])
                jobs_BN.append([self._job(len(kept), request) for request in requests])
                kept.append(b)
            except ValueError as error:
                skipped.append((host_id(requests), str(error)))
        if not kept:
            return Edited([], LayerEdits({layer: self._no_terms(layer) for layer in self.layers}).unwrapped, skipped)
        edits = LayerEdits(self._terms(jobs_BN, advance))
        finite_B = torch.stack([_finite(terms) for terms in edits.by_layer.values()]).all(dim=0).tolist()
        skipped += [(host_id(hosts[b]), "key or value is not finite") for b, ok in zip(kept, finite_B, strict=True) if not ok]
        strongest = {layer: _strongest_first(terms) for layer, terms in edits[torch.tensor(finite_B)].by_layer.items()}
        return Edited([b for b, ok in zip(kept, finite_B, strict=True) if ok], LayerEdits(strongest).unwrapped, skipped)

    def _no_terms(self, layer: int) -> LowRankEdit:
        return LowRankEdit(*(torch.empty(0, 1, width) for width in (self.host.mlp_size(layer), self.host.hidden_size)))

    def _terms(self, jobs_BN: list[list[Job]], advance: Callable[[int], None] | None) -> dict[int, LowRankEdit]:
        """A term a fact in each layer, keys of length 1."""
        terms: list[tuple[Tensor, ...]] = []
        try:
            for turn in zip(*jobs_BN, strict=True):
                terms.append(self._in_order(list(turn), advance))
                self._before = LowRankEdit(*(torch.stack([term[part] for term in terms], dim=1) for part in (0, 1)))
            return {self.edited_layer: self._before}
        finally:
            self._before = None

    def _in_order(self, jobs: list[Job], advance: Callable[[int], None] | None) -> tuple[Tensor, ...]:
        """What `_solve` finds for jobs numbered from 0 up, in the order of these numbers."""
        found = self.solved(jobs, advance)
        order = torch.tensor([job.index for job in jobs]).argsort()
        return tuple(part[order] for part in found)

    def _job(self, index: int, request: EditRequest) -> Job:
        fact, targets = request.fact, target_ids(self.host, request.object)
        rows = [prompt_row(self.host, context.replace(BARE, fact.prompt), fact.subject, targets) for context in self.contexts]
        ids, lookup = self.host.prompt_ids(ESSENCE, fact.subject)
        # By causality nothing after the subject counts, so a bare prompt that starts with the subject is its own essence row.
        seen = ids[: lookup + 1]
        if seen == rows[0].ids[: rows[0].lookup + 1]:
            return Job(index, rows, essence=0)
        return Job(index, [*rows, Row(seen, lookup, [])], essence=len(rows))

    def _solve(self, jobs: Sequence[Job]) -> tuple[Tensor, ...]:
        """Keys, values, deltas, steps, losses, and the keys k that the constraint is about, of a batch of jobs."""
        suffixes, starts = self._clean(jobs), row_starts(jobs)
        with self._products():
            delta_BD, steps_B, loss_B = optimise(suffixes, jobs, self.cfg)
        unit_BF, value_BD, key_BF = self._factors(suffixes, starts, delta_BD.double())
        return unit_BF.float(), value_BD.float(), delta_BD, steps_B, loss_B, key_BF

    def _factors(self, suffixes: Suffixes, starts: Sequence[int], delta_BD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Keys of length 1 and values of edits that add δ to the output at the keys k, which come last; all in float64."""
        key_BF = {"bare": suffixes.key_NF[starts].double().cpu(), "mean": self._mean(suffixes.key_NF, starts)}
        whitened_BF = self.whiten(key_BF[self.direction])
        unit_BF = whitened_BF / whitened_BF.norm(dim=1, keepdim=True)
        if self.constraint == "mean":
            delta_BD = delta_BD + suffixes.output_ND[starts].double().cpu() - self._mean(suffixes.output_ND, starts)
        value_BD = delta_BD / (key_BF[self.constraint] * unit_BF).sum(dim=1, keepdim=True)
        return unit_BF, value_BD, key_BF[self.constraint]

    def _mean(self, rows_NX: Tensor, starts: Sequence[int], first: int = 0) -> Tensor:
        """The mean over each job's contexts from the `first` on, float64 on the CPU."""
        return torch.stack([rows_NX[n + first : n + len(self.contexts)].double().mean(dim=0) for n in starts]).cpu()

    def _clean(self, jobs: Sequence[Job]) -> Suffixes:
        rows = [row for job in jobs for row in job.rows]
        if self._before is not None:
            return self._on_what_is_there(jobs, rows)
        # Rows of one context begin alike in all jobs.
        suffixes = clean_pass(self.host, self.edited_layer, rows, [context for job in jobs for context in range(len(job.rows))])
        return self._by_shortcut(suffixes, len(jobs[0].rows))

    def _on_what_is_there(self, jobs: Sequence[Job], rows: list[Row]) -> Suffixes:
        """The rows, each on the host as the facts before have left it."""
        if not self._shortcut:
            raise ValueError(
                f"edits.facts_per_host: {self.host.name} has a norm behind W_V, so facts cannot follow each other. Use memit or emmet"
            )
        before = self._before[torch.tensor([job.index for job in jobs for _ in job.rows])].to(self.host.device)
        with swapped(self.host, {self.edited_layer: before}):
            return clean_pass(self.host, self.edited_layer, rows).above()


def _finite(terms: LowRankEdit) -> Tensor:
    """Which edits (B,) hold neither NaN nor infinity."""
    return terms.key_BRF.isfinite().flatten(1).all(dim=1) & terms.value_BRD.isfinite().flatten(1).all(dim=1)


def _strongest_first(terms: LowRankEdit) -> LowRankEdit:
    order_BR1 = terms.value_BRD.norm(dim=2).argsort(dim=1, descending=True)[:, :, None]
    return LowRankEdit(terms.key_BRF.take_along_dim(order_BR1, 1), terms.value_BRD.take_along_dim(order_BR1, 1))


class RRome(Rome):
    """r-ROME: the mean key everywhere."""

    constraint = "mean"


class PRome(Rome):
    """p-ROME: the bare prompt's key everywhere."""

    direction = "bare"


EDITORS = {"rome": Rome, "r-rome": RRome, "p-rome": PRome}


def sample_contexts(texts: Sequence[str], count: int, seed: int) -> list[str]:
    """The bare "{}" and `count` - 1 distinct first sentences of the texts, each to precede the prompt.

    Raises:
        ValueError: the texts have too few sentences.
    """
    # Braces would be taken for the subject's place.
    openings = (re.split(r"(?<=[.!?])\s+", re.sub(r"[{}]", "", text).strip(), maxsplit=1)[0] for text in texts)
    sentences = sorted({opening for opening in openings if len(opening.split()) in CONTEXT_WORDS})
    if len(sentences) < count - 1:
        raise ValueError(f"edits.contexts={count}: the texts have {len(sentences)} sentences to precede a prompt. Give more text")
    return [BARE, *(f"{sentence} {BARE}" for sentence in random.Random(seed).sample(sentences, count - 1))]
