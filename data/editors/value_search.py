"""The search for δ, which the value of a ROME edit is made of: added to the projection's output at the subject's last token, it makes the
host say the object.

Many edits are optimised in one batch. The loss is a sum over edits and Adam is elementwise, so each edit gets what it would get alone;
an edit that is done leaves the batch.

Shape letters: B edits, N rows, K scored tokens, R read states, S suffix positions, D hidden width, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from data.editors.prefix_cache import Suffixes
from data.editors.prompts import Row
from decoder.config.editors import FineTuneConfig, SearchConfig

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


@dataclass(frozen=True)
class Job:
    """The rows of one request.

    Attributes:
        index: of the request.
        rows: the bare prompt, the other contexts, and the essence row if the bare prompt's lookup does not serve.
        essence: which row's lookup the KL term is measured at.
    """

    index: int
    rows: list[Row]
    essence: int

    @property
    def size(self) -> tuple[int, int]:
        return max(row.suffix for row in self.rows), max(row.lookup for row in self.rows)


def row_starts(jobs: Sequence[Job]) -> list[int]:
    """Index of each job's first row when the rows of all jobs are strung together."""
    return [0, *accumulate(len(job.rows) for job in jobs[:-1])]


@dataclass(frozen=True)
class _Scored:
    """Where the loss is read: edit of each row; row, column, label, edit and weight of each token; row of each edit's KL term.

    `read_R2` lists the rows and columns of both, none twice.
    """

    edit_N: Tensor
    row_K: Tensor
    column_K: Tensor
    label_K: Tensor
    edit_K: Tensor
    weight_K: Tensor
    essence_B: Tensor
    read_R2: Tensor

    @classmethod
    def of(cls, jobs: Sequence[Job], device: torch.device) -> "_Scored":
        tokens, weights = [], []
        for b, (job, start) in enumerate(zip(jobs, row_starts(jobs), strict=True)):
            rows = [(n, row) for n, row in enumerate(job.rows, start) if row.targets]
            for n, row in rows:
                tokens += [(n, place - row.lookup, label, b) for place, label in zip(row.scored, row.targets, strict=True)]
                weights += [1 / (len(rows) * len(row.targets))] * len(row.targets)
        row_K, column_K, label_K, edit_K = torch.tensor(tokens, device=device).T
        essences = [start + job.essence for job, start in zip(jobs, row_starts(jobs), strict=True)]
        return cls(
            edit_N=torch.tensor([b for b, job in enumerate(jobs) for _ in job.rows], device=device),
            row_K=row_K,
            column_K=column_K,
            label_K=label_K,
            edit_K=edit_K,
            weight_K=torch.tensor(weights, device=device),
            essence_B=torch.tensor(essences, device=device),
            read_R2=torch.tensor(sorted({(n, column) for n, column, *_ in tokens} | {(n, 0) for n in essences}), device=device),
        )


class Adam:
    """Adam with torch's defaults on a stack of vectors, or of matrices, from which some can be taken."""

    def __init__(self, like_BD: Tensor, lr: float) -> None:
        self.lr, self.time = lr, 0
        self.mean_BD, self.square_BD = torch.zeros_like(like_BD), torch.zeros_like(like_BD)

    def select(self, keep: list[int]) -> None:
        self.mean_BD, self.square_BD = self.mean_BD[keep], self.square_BD[keep]

    def moved(self, found_BD: Tensor, grad_BD: Tensor) -> Tensor:
        """What was found so far after one more step."""
        self.time += 1
        self.mean_BD = BETA1 * self.mean_BD + (1 - BETA1) * grad_BD
        self.square_BD = BETA2 * self.square_BD + (1 - BETA2) * grad_BD.square()
        scale_BD = (self.square_BD / (1 - BETA2**self.time)).sqrt() + EPSILON
        return found_BD + -self.lr / (1 - BETA1**self.time) * self.mean_BD / scale_BD


def optimise(suffixes: Suffixes, jobs: Sequence[Job], cfg: SearchConfig) -> tuple[Tensor, Tensor, Tensor]:
    """The vectors δ of the jobs, by at most `cfg.steps` forwards and one update fewer.

    An edit stops where its loss falls below `cfg.stop_loss`; after each update δ is projected on the ball of `cfg.clamp` times the
    norm of the clean output at the bare prompt's lookup.

    Returns:
        delta_BD, steps_B (updates) and loss_B (last forward), on the CPU.
    """
    return DeltaSearch(suffixes, jobs, cfg).run()


class DeltaSearch:
    """The search for the vectors δ of a batch of jobs, step by step.

    Attributes:
        found_BD, steps_B, loss_B: of the edits that are done: δ, updates made, loss at the last forward; on the CPU.
    """

    def __init__(self, suffixes: Suffixes, jobs: Sequence[Job], cfg: SearchConfig | FineTuneConfig) -> None:
        self.device = suffixes.output_ND.device
        self.found_BD = torch.zeros(len(jobs), *self._shape(suffixes))
        self.steps_B, self.loss_B = torch.zeros(len(jobs), dtype=torch.long), torch.zeros(len(jobs))
        self._suffixes, self._jobs, self._active, self._cfg = suffixes, list(jobs), list(range(len(jobs))), cfg
        self._norm_B = suffixes.output_ND[row_starts(jobs)].float().norm(dim=1)
        self._delta_BD, self._clean_BV = torch.zeros_like(self.found_BD, device=self.device), None
        self._adam, self._scored = Adam(self._delta_BD, cfg.lr), _Scored.of(jobs, self.device)

    def run(self) -> tuple[Tensor, Tensor, Tensor]:
        """`found_BD`, `steps_B` and `loss_B` after at most `cfg.steps` forwards."""
        for step in range(self._cfg.steps):
            if not self.step(last=step == self._cfg.steps - 1):
                break
        return self.found_BD, self.steps_B, self.loss_B

    def step(self, last: bool = False) -> bool:
        """One forward, and an update of the edits that go on; all are done after the last one. Returns whether any goes on."""
        with torch.enable_grad(), _tf32(self._cfg.precision == "tf32"):
            self._delta_BD.requires_grad_()
            loss_B = self._loss()
            stop = [last or loss < self._cfg.stop_loss for loss in loss_B.tolist()]
            self._finish(stop, loss_B.detach())
            if all(stop):
                return False
            (grad_BD,) = torch.autograd.grad(loss_B[[b for b, flag in enumerate(stop) if not flag]].sum(), self._delta_BD)
        self._delta_BD = self._delta_BD.detach()
        if any(stop):
            keep = [b for b, flag in enumerate(stop) if not flag]
            self._keep(keep)
            grad_BD = grad_BD[keep]
        self._delta_BD = self._bounded(self._adam.moved(self._delta_BD, grad_BD))
        return True

    def _shape(self, suffixes: Suffixes) -> tuple[int, ...]:
        """Of what is searched for, for each edit."""
        return suffixes.output_ND.shape[1:]

    def _bounded(self, delta_BD: Tensor) -> Tensor:
        over_B = delta_BD.norm(dim=1) / (self._cfg.clamp * self._norm_B)
        return delta_BD / over_B.clamp(min=1)[:, None]

    def _finish(self, stop: list[bool], loss_B: Tensor) -> None:
        done = [b for b, flag in enumerate(stop) if flag]
        places = [self._active[b] for b in done]
        self.found_BD[places], self.loss_B[places] = self._delta_BD.detach()[done].cpu(), loss_B[done].cpu()
        self.steps_B[places] = self._adam.time

    def _keep(self, keep: list[int]) -> list[int]:
        """Takes the edits that are done out of the batch; returns the rows of those that stay."""
        starts = row_starts(self._jobs)
        rows = [starts[b] + n for b in keep for n in range(len(self._jobs[b].rows))]
        self._suffixes = self._suffixes.select(rows)
        self._jobs, self._active = [self._jobs[b] for b in keep], [self._active[b] for b in keep]
        self._scored = _Scored.of(self._jobs, self.device)
        self._delta_BD, self._norm_B = self._delta_BD[keep], self._norm_B[keep]
        self._clean_BV = None if self._clean_BV is None else self._clean_BV[keep]
        self._adam.select(keep)
        return rows

    def _loss(self) -> Tensor:
        """Loss of each edit; the first call, where δ = 0, keeps the log-probabilities at the essence row's lookup before the edit."""
        norm_B, cfg = self._norm_B, self._cfg
        nll_B, essence_BV = self._read(self._delta_BD.index_select(0, self._scored.edit_N))
        if self._clean_BV is None:
            self._clean_BV = essence_BV.detach()
        kl_B = (essence_BV.exp() * (essence_BV - self._clean_BV)).sum(dim=1)
        # The norm over the squared norm, as ROME's own code has it.
        decay_B = self._delta_BD.norm(dim=1) / norm_B.square()
        return nll_B + cfg.kl * kl_B + cfg.decay * decay_B

    def _read(self, change: Tensor) -> tuple[Tensor, Tensor]:
        """NLL of each edit's targets and log-probabilities (B, V) at its essence row's lookup, the projection's output being changed."""
        scored, hidden_NSD = self._scored, self._suffixes.hidden(change, self._scored.read_R2)
        columns = hidden_NSD.shape[1]
        places = torch.cat([scored.row_K * columns + scored.column_K, scored.essence_B * columns])
        picked = hidden_NSD.flatten(0, 1).index_select(0, places)
        logprobs = self._suffixes.host.head(picked).float().log_softmax(dim=-1)
        token_KV, essence_BV = logprobs.split([len(scored.row_K), len(self._jobs)])
        nll_K = -token_KV.gather(1, scored.label_K[:, None]).squeeze(1)
        return torch.zeros_like(self._norm_B).index_add(0, scored.edit_K, nll_K * scored.weight_K), essence_BV


@contextmanager
def _tf32(wanted: bool) -> Iterator[None]:
    """Inside the block the products of float32 matrices may be in TF32."""
    before = torch.get_float32_matmul_precision()
    try:
        if wanted:
            torch.set_float32_matmul_precision("high")
        yield
    finally:
        if wanted:
            torch.set_float32_matmul_precision(before)
