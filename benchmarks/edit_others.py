"""MEMIT, EMMET and AlphaEdit of many facts, and fine-tuning of several edits, against the plain loops; rows of `edit.py`.

The three share their front end: keys and the search for values, which the plain loop does fact by fact. Then the plain way solves for W_V's
width F, as the published code does, and ours for the number of facts. Both give the same update, which is checked first.

Shape letters: B edits, N facts, D hidden width, F MLP width.
"""

import dataclasses
from typing import Any

import torch
from common import Row, alternate, compare
from published import Published, PublishedFineTune, Task
from torch import Tensor

from data.editors import load_editor
from data.editors.fine_tune import MatrixSearch
from data.editors.prefix_cache import clean_pass
from data.editors.value_search import DeltaSearch
from data.keys.cache import KeyStatistics
from decoder.config.editors import EDITORS, SearchConfig
from decoder.swap import projection_inputs

CONTEXTS, CHECKED, SAMPLED = 6, 3, 4  # contexts as published; facts whose update is compared; facts that the plain loop is timed on
AGREEMENT = 1e-3  # of the updates, relative: solves of float32 keys on both sides
WEIGHT = 1.0


def editor(name: str, task: Task, moment: KeyStatistics, **settings: Any) -> Any:
    """An editor of the task's host with the task's search and contexts."""
    shared = {field.name: getattr(task.cfg, field.name) for field in dataclasses.fields(SearchConfig) if field.name != "editor"}
    cfg = dataclasses.replace(EDITORS[name](editor=name, **shared), **settings)
    return load_editor(name)(task.host, task.cfg.layer, cfg, moment, task.rome.contexts[:CONTEXTS])


def solved(name: str, moment_FF: Tensor, project_FF: Tensor, key_NF: Tensor, delta_ND: Tensor) -> Tensor:
    """The update (D, F) by systems of width F."""
    if name == "memit":
        return torch.linalg.solve(WEIGHT * moment_FF + key_NF.T @ key_NF, key_NF.T @ delta_ND).T
    if name == "emmet":
        turned_NF = key_NF @ torch.linalg.inv(moment_FF)
        return torch.linalg.solve(turned_NF @ key_NF.T, delta_ND).T @ turned_NF
    system_FF = project_FF @ key_NF.T @ key_NF + WEIGHT * torch.eye(len(moment_FF), dtype=key_NF.dtype)
    return torch.linalg.solve(system_FF, project_FF @ key_NF.T @ delta_ND).T


def plain_key(one: Published) -> Tensor:
    """Half the bare prompt's key, half the mean of the other contexts'."""
    mean_F, bare_F = one.keys()
    others_F = (CONTEXTS * mean_F - bare_F) / (CONTEXTS - 1)
    return (bare_F + others_F) / 2


def together(task: Task, moment: KeyStatistics, repeats: int, steps: int) -> list[Row]:
    """Rows of all facts of the task planted in one host."""
    moment_FF = moment.moment_FF.double()
    moment_FF = moment_FF + 0.03 * torch.linalg.eigvalsh(moment_FF)[-1] * torch.eye(len(moment_FF), dtype=torch.float64)
    value_F, vector_FF = torch.linalg.eigh(moment.moment_FF.double())
    threshold = float(value_F.median())
    project_FF = vector_FF[:, value_F < threshold] @ vector_FF[:, value_F < threshold].T
    settings = {
        "memit": {"weight": WEIGHT, "ridge": 0.03},
        "emmet": {"ridge": 0.03},
        "alphaedit": {"weight": WEIGHT, "threshold": threshold},
    }
    editors = {name: editor(name, task, moment, **own) for name, own in settings.items()}
    few = dataclasses.replace(task, rome=editors["memit"])
    apart = {name: _difference(name, one, few, moment_FF, project_FF) for name, one in editors.items()}
    memit, requests = editors["memit"], task.requests
    plain = [Published(few, request) for request in requests[:SAMPLED]]
    jobs = sorted(memit.jobs(requests)[0], key=lambda job: job.size)
    rows, groups = [row for job in jobs for row in job.rows], [n for job in jobs for n in range(len(job.rows))]
    suffixes = clean_pass(task.host, task.cfg.layer, rows, groups).above()
    search = DeltaSearch(suffixes, jobs, task.cfg)
    more = len(requests) / len(plain)
    step = alternate({"plain": lambda: [one.step() for one in plain], "ours": search.step}, repeats)
    ways = {"plain": lambda: [plain_key(one) for one in plain], "ours": lambda: clean_pass(task.host, task.cfg.layer, rows, groups)}
    keys = alternate(ways, repeats)
    generator = torch.Generator().manual_seed(0)
    key_NF = torch.randn(len(requests), len(moment_FF), dtype=torch.float64, generator=generator)
    delta_ND = torch.randn(len(requests), task.host.hidden_size, dtype=torch.float64, generator=generator)
    found = []
    for name, one in editors.items():
        solve = alternate(
            {
                "plain": lambda name=name: solved(name, moment_FF, project_FF, key_NF, delta_ND),
                "ours": lambda one=one: one._closed_form(one.whiten, key_NF[None], delta_ND[None]),
            },
            repeats,
        )
        whole = {
            way: [k * scale + steps * s * scale + c for k, s, c in zip(keys[way], step[way], solve[way], strict=True)]
            for way, scale in (("plain", more), ("ours", 1.0))
        }
        note = f"{len(requests)} facts in one host, {CONTEXTS} contexts, {steps} steps; the plain loop timed on {len(plain)} facts; "
        note += f"solve alone {sum(solve['plain']) / sum(solve['ours']):.0f} times; updates differ by {apart[name]:.0e}"
        found.append(compare(f"figure/{name}-together", whole["ours"], whole["plain"], amount=len(requests), unit="facts/s", note=note))
    return found


def _difference(name: str, one: Any, task: Task, moment_FF: Tensor, project_FF: Tensor) -> float:
    """The relative distance between both ways' updates of a few facts; raises ValueError if it is more than rounding."""
    requests, keys, deltas = task.requests[:CHECKED], [], []
    ours_DF = one.edit_together([requests]).edits.delta()[0].double()
    for request in requests:
        plain = Published(task, request)
        for _ in range(task.cfg.steps - 1):
            plain.step()
        keys.append(plain_key(plain))
        deltas.append(plain.delta_D.detach().double())
    plain_DF = solved(name, moment_FF, project_FF, torch.stack(keys), torch.stack(deltas))
    return _agreed(name, ours_DF, plain_DF)


def _agreed(name: str, ours_DF: Tensor, plain_DF: Tensor) -> float:
    apart = float((ours_DF - plain_DF).norm() / plain_DF.norm())
    if not apart < AGREEMENT:
        raise ValueError(f"{name}: the plain way and ours differ by {apart:.1e}, expected {AGREEMENT:.0e} at most")
    return apart


def fine_tuned(task: Task, repeats: int, count: int = 8) -> Row:
    """A step of fine-tuning of several edits, each its own matrix."""
    cfg = EDITORS["ft"](editor="ft", layer=task.cfg.layer, steps=task.cfg.steps, stop_loss=0.0)
    tuned, requests = load_editor("ft")(task.host, cfg), task.requests[:count]
    jobs = sorted(tuned.jobs(requests)[0], key=lambda job: job.size)
    ours_BDF = tuned._solve(jobs)[0]
    plain = [PublishedFineTune(task.host, cfg.layer, cfg, requests[job.index]) for job in jobs]
    apart = 0.0
    for b, one in enumerate(plain):
        for _ in range(cfg.steps - 1):
            one.step()
        apart = max(apart, _agreed("ft", ours_BDF[b], one.delta_DF()))
    rows = [row for job in jobs for row in job.rows]
    with projection_inputs(task.host, cfg.layer) as inputs:
        suffixes = clean_pass(task.host, cfg.layer, rows)
    search = MatrixSearch(suffixes.above(), jobs, cfg, inputs[-1].reshape(*suffixes.ids_NS.shape, -1).float())
    step = alternate({"plain": lambda: [one.step() for one in plain], "ours": search.step}, repeats)
    note = f"{len(requests)} edits, one sentence each, whole W_V; one step; updates differ by {apart:.0e}"
    return compare("figure/ft", step["ours"], step["plain"], amount=len(requests), unit="steps of an edit/s", note=note)
