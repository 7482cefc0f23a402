"""MEMIT, EMMET and AlphaEdit of many facts, and fine-tuning of several edits, against the plain loops; rows of `edit.py`.

The three share their front end: keys and the search for values, which the plain loop does fact by fact. Then the plain way solves for W_V's
width F, as the published code does, and ours for the number of facts. Over several layers both do so layer by layer, with keys taken anew
on the host as it is edited so far. Both give the same update, which is checked first.

Shape letters: B edits, N facts, D hidden width, F MLP width.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from common import Row, alternate, compare
from published import Published, PublishedFineTune, Task
from torch import Tensor

from data.editors import load_editor
from data.editors.fine_tune import MatrixSearch
from data.editors.prefix_cache import clean_pass
from data.editors.value_search import DeltaSearch
from data.facts.fact import EditRequest
from data.keys.cache import KeyStatistics
from decoder.config.editors import EDITORS, SearchConfig
from decoder.host import Host
from decoder.swap import projection_inputs

CONTEXTS, CHECKED, SAMPLED = 6, 3, 4  # contexts as published; facts whose update is compared; facts that the plain loop is timed on
AGREEMENT = 1e-3  # of the updates, relative: solves of float32 keys on both sides
WEIGHT, RIDGE = 1.0, 0.03


def editor(name: str, task: Task, moment: KeyStatistics, lower: Mapping[int, KeyStatistics] | None = None, **settings: Any) -> Any:
    """An editor of the task's host with the task's search and contexts."""
    shared = {field.name: getattr(task.cfg, field.name) for field in dataclasses.fields(SearchConfig) if field.name != "editor"}
    cfg = dataclasses.replace(EDITORS[name](editor=name, **shared), **settings)
    return load_editor(name)(task.host, task.cfg.layer, cfg, moment, task.rome.contexts[:CONTEXTS], lower)


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


def damped(moment: KeyStatistics) -> Tensor:
    """C with the ridge."""
    moment_FF = moment.moment_FF.double()
    return moment_FF + RIDGE * torch.linalg.eigvalsh(moment_FF)[-1] * torch.eye(len(moment_FF), dtype=torch.float64)


def together(task: Task, moments: Mapping[int, KeyStatistics], repeats: int, steps: int) -> list[Row]:
    """Rows of all facts of the task planted in one host; `moments` of all layers that MEMIT spreads them over, the last one the task's."""
    moment = moments[task.cfg.layer]
    moment_FF = damped(moment)
    value_F, vector_FF = torch.linalg.eigh(moment.moment_FF.double())
    threshold = float(value_F.median())
    project_FF = vector_FF[:, value_F < threshold] @ vector_FF[:, value_F < threshold].T
    settings = {
        "memit": {"weight": WEIGHT, "ridge": RIDGE},
        "emmet": {"ridge": RIDGE},
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
                "ours": lambda one=one: one._closed_form(one.edited_layer, key_NF[None], delta_ND[None]),
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
    return [*found, over_layers(few, moments, step, (key_NF, delta_ND), repeats, steps)]


def over_layers(
    task: Task,
    moments: Mapping[int, KeyStatistics],
    step: Mapping[str, list[float]],
    drawn: tuple[Tensor, Tensor],
    repeats: int,
    steps: int,
) -> Row:
    """The row of MEMIT over several layers; `step`: seconds of a step of the search; `drawn`: keys and δ to solve for."""
    lower = {layer: own for layer, own in moments.items() if layer != task.cfg.layer}
    spread = editor("memit", task, moments[task.cfg.layer], lower, weight=WEIGHT, ridge=RIDGE)
    moments_FF = {layer: damped(own) for layer, own in moments.items()}
    apart = _layers_apart(spread, task, moments_FF)
    requests, more, (key_NF, delta_ND) = task.requests, len(task.requests) / SAMPLED, drawn
    jobs_BN = [[spread._job(n, one) for n, one in enumerate(requests)]]
    plain = [Published(at(task, layer), request) for layer in moments for request in requests[:SAMPLED]]
    ways = {"plain": lambda: [plain_key(one) for one in plain], "ours": lambda: spread._spread(jobs_BN, delta_ND[None])}
    layers = alternate(ways, repeats)
    solve = alternate({"plain": lambda: [solved("memit", own_FF, own_FF, key_NF, delta_ND) for own_FF in moments_FF.values()]}, repeats)
    plain_seconds = [more * (k + steps * s) + c for k, s, c in zip(layers["plain"], step["plain"], solve["plain"], strict=True)]
    our_seconds = [k + steps * s for k, s in zip(layers["ours"], step["ours"], strict=True)]
    note = f"the same over {len(moments)} layers; updates differ by {apart:.0e}"
    return compare("figure/memit-layers", our_seconds, plain_seconds, amount=len(requests), unit="facts/s", note=note)


def at(task: Task, layer: int) -> Task:
    """The task at another layer."""
    return dataclasses.replace(task, cfg=dataclasses.replace(task.cfg, layer=layer))


def _layers_apart(spread: Any, task: Task, moments_FF: Mapping[int, Tensor]) -> float:
    """As `_difference`, of updates over several layers."""
    requests, host, deltas = task.requests[:CHECKED], task.host, []
    ours = spread.edit_together([requests]).edits
    for request in requests:
        plain = Published(task, request)
        for _ in range(task.cfg.steps - 1):
            plain.step()
        deltas.append(plain.delta_D.detach().double())
    own = {layer: host.weight_DF(layer).clone() for layer in moments_FF}
    goal_ND, worst = _states(host, task.cfg.layer, requests) + torch.stack(deltas), 0.0
    try:
        for place, (layer, moment_FF) in enumerate(moments_FF.items()):
            key_NF = torch.stack([plain_key(Published(at(task, layer), request)) for request in requests])
            left_ND = (goal_ND - _states(host, task.cfg.layer, requests)) / (len(moments_FF) - place)
            change_DF = solved("memit", moment_FF, moment_FF, key_NF, left_ND)
            worst = max(worst, _agreed("memit over layers", ours.by_layer[layer].delta()[0].double(), change_DF))
            host.weight_DF(layer).add_(change_DF.float())
    finally:
        for layer, weight_DF in own.items():
            host.weight_DF(layer).copy_(weight_DF)
    return worst


@torch.no_grad()
def _states(host: Host, layer: int, requests: Sequence[EditRequest]) -> Tensor:
    """What a block gives at the subject's last token of each bare prompt (N, D)."""
    found = []
    for request in requests:
        ids, lookup = host.prompt_ids(request.fact.prompt, request.fact.subject)
        found.append(host.model(torch.tensor([ids]), output_hidden_states=True, use_cache=False).hidden_states[layer + 1][0, lookup])
    return torch.stack(found).double()


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
