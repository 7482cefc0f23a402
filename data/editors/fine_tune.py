"""Fine-tuning of one W_V on one sentence, by Adam, every edit its own matrix (Zhu et al. 2020; the baselines of Meng et al. 2022).

    FT    no bound, on the whole sentence; `edits.loss=last` is the published loss, which looks for every object token where the prompt ends
    FT-L  no entry of W_V moves by more than a box
    FT-M  on the object alone, as EasyEdit has it

Inputs of the edited projection do not depend on its matrix. So one clean pass gives them, every step adds x ΔWᵀ to what the clean matrix
made of them and runs the blocks above, and the gradient of each ΔW is a product of two small matrices.

Shape letters: B edits, N rows, S positions, R rank, D hidden width, F MLP width.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.optim.adam import adam

from data.editors import Edited
from data.editors.batched import Batched
from data.editors.prefix_cache import Suffixes, clean_pass
from data.editors.prompts import Row, prompt_row, target_ids
from data.editors.value_search import BETA1, BETA2, EPSILON, Adam, DeltaSearch, Job
from data.facts.fact import EditRequest
from data.keys.cache import KeyStatistics
from decoder.checkpoint.rounding import strongest
from decoder.config.editors import FineTuneConfig
from decoder.edit import LowRankEdit
from decoder.host import Host
from decoder.swap import projection_inputs

COPIES = 5  # of every ΔW while it is searched for: itself, its gradient, Adam's two moments, what an operation makes
LEFT_OVER = 1e-4  # a singular value below this share of the largest is nothing


class FineTune(Batched):
    """Fine-tunes one layer of a host, which is bit-identical after every call.

    Args:
        host: whose layer is edited.
        cfg: every setting of the method.
    """

    whiten = None

    def __init__(self, host: Host, cfg: FineTuneConfig) -> None:
        super().__init__(host, cfg.layer, cfg)
        each = COPIES * host.weight_DF(cfg.layer).numel() * torch.float32.itemsize
        self.batch_size = min(cfg.batch_size, max(1, host.memory_budget // each))

    @classmethod
    def prepare(cls, host: Host, cfg: FineTuneConfig, texts: Sequence[str], statistics: Mapping[int, KeyStatistics]) -> "FineTune":
        return cls(host, cfg)

    def edit(self, requests: Sequence[EditRequest], advance: Callable[[int], None] | None = None) -> Edited:
        """Makes the edits, `batch_size` together or as many as the host's memory budget allows.

        Args:
            requests: one that cannot be made (object without a token, prompt without {}, empty subject) is skipped and listed.
            advance: is told how many more requests are done.
        """
        jobs, skipped = self.jobs(requests)
        weight_DF = self.host.weight_DF(self.edited_layer).cpu()
        width, mlp_width = weight_DF.shape
        delta_BDF, *_ = self.solved(jobs, advance) or (torch.empty(0, width, mlp_width),)
        finite_B = delta_BDF.flatten(1).isfinite().all(dim=1).tolist()
        skipped += [(requests[job.index].edit_id, "the update is not finite") for job, ok in zip(jobs, finite_B, strict=True) if not ok]
        order = sorted((b for b, ok in enumerate(finite_B) if ok), key=lambda b: jobs[b].index)
        edits = LowRankEdit(torch.zeros(len(order), self.cfg.rank, mlp_width), torch.zeros(len(order), self.cfg.rank, width))
        matrices = {}
        for place, b in enumerate(order):
            key_RF, value_RD, is_whole = factors(delta_BDF[b], self.cfg.rank)
            edits.key_BRF[place, : len(key_RF)], edits.value_BRD[place, : len(key_RF)] = key_RF, value_RD
            if is_whole:
                matrices[place] = (weight_DF.float() + delta_BDF[b]).to(weight_DF.dtype)
        return Edited([jobs[b].index for b in order], edits, skipped, matrices=matrices)

    def _job(self, index: int, request: EditRequest) -> Job:
        fact, targets = request.fact, target_ids(self.host, request.object)
        row = prompt_row(self.host, fact.prompt, fact.subject, targets)
        prompt = row.ids[: len(row.ids) - len(targets) + 1]
        rows = {
            "sentence": [Row(row.ids, 0, [*row.ids[1:], targets[-1]])],
            "target": [Row(row.ids, 0, targets)],
            "last": [Row(prompt, 0, [target]) for target in targets],
        }
        return Job(index, rows[self.cfg.loss], essence=0)

    def _solve(self, jobs: Sequence[Job]) -> tuple[Tensor, ...]:
        """ΔW, steps and losses of a batch of jobs."""
        with projection_inputs(self.host, self.edited_layer) as inputs:
            suffixes = clean_pass(self.host, self.edited_layer, [row for job in jobs for row in job.rows])
        x_NSF = inputs[-1].reshape(*suffixes.ids_NS.shape, -1).float()
        with self._products():
            return MatrixSearch(self._by_shortcut(suffixes, len(jobs[0].rows)), jobs, self.cfg, x_NSF).run()


class _InPlace(Adam):
    """The same step in one pass over memory, which matrices take nearly all their time for."""

    def moved(self, found_BD: Tensor, grad_BD: Tensor) -> Tensor:
        before = torch.tensor(float(self.time), device=grad_BD.device)
        self.time += 1
        # The CPU's kernel goes by memory, whatever the strides say.
        states = [found_BD], [grad_BD.contiguous()], [self.mean_BD], [self.square_BD], [], [before]
        plain = {"amsgrad": False, "weight_decay": 0.0, "maximize": False}
        adam(*states, fused=True, beta1=BETA1, beta2=BETA2, eps=EPSILON, lr=self.lr, **plain)
        return found_BD


class MatrixSearch(DeltaSearch):
    """The search for the matrices ΔW of a batch of jobs, whose rows are all suffix; `found_BD` is (B, D, F)."""

    def __init__(self, suffixes: Suffixes, jobs: Sequence[Job], cfg: FineTuneConfig, x_NSF: Tensor) -> None:
        self._x_NSF, self._box = x_NSF, getattr(cfg, "box", None)
        super().__init__(suffixes, jobs, cfg)
        self._adam = _InPlace(self._delta_BD, cfg.lr)

    def _shape(self, suffixes: Suffixes) -> tuple[int, ...]:
        return suffixes.output_ND.shape[1], self._x_NSF.shape[2]

    def _bounded(self, delta_BD: Tensor) -> Tensor:
        return delta_BD if self._box is None else delta_BD.clamp_(-self._box, self._box)

    def _keep(self, keep: list[int]) -> list[int]:
        rows = super()._keep(keep)
        self._x_NSF = self._x_NSF[rows, : self._suffixes.ids_NS.shape[1]]
        return rows

    def _loss(self) -> Tensor:
        delta_NDF = self._delta_BD if len(self._x_NSF) == len(self._jobs) else self._delta_BD.index_select(0, self._scored.edit_N)
        # In this order the gradient lies in memory as ΔW does.
        return self._read((delta_NDF @ self._x_NSF.mT).mT)[0]


def factors(delta_DF: Tensor, rank: int) -> tuple[Tensor, Tensor, bool]:
    """Keys (R, F) of length 1 and values (R, D) of an update of at most a rank, else its strongest and True."""
    left_DR, size_R, right_FR = strongest(delta_DF, rank + 1)
    kept = int((size_R > LEFT_OVER * size_R[0]).sum()) or 1
    is_whole = kept > rank
    kept = 1 if is_whole else kept
    return right_FR[:, :kept].T.float(), (left_DR[:, :kept] * size_R[:kept]).T.float(), is_whole


EDITORS = {"ft": FineTune, "ft-l": FineTune, "ft-m": FineTune}
