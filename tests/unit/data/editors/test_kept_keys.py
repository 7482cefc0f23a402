"""Facts that AlphaEdit plants after others, several at a time and in several layers: the published system with the keys of those before.

Shape letters: N facts of a host, K facts before, D hidden width, F MLP width.
"""

import copy

import pytest
import torch
from closed_forms import LAYERS, key_of, make, moment, over, seen
from rome_twin import REQUESTS, TEXTS, relative, second_moment
from tiny_hosts import build_host

from data.keys.whiten import null_space
from decoder.host import Host

BEFORE, NOW = REQUESTS[:2], REQUESTS[3:6]


@pytest.fixture(scope="module")
def host():
    return build_host("llama")


def published(key_NF, kept_KF, left_ND, project_FF, weight: float) -> torch.Tensor:
    """Δ = R K₁ᵀ P (Kp Kpᵀ P + K₁ K₁ᵀ P + λI)⁻¹, keys being columns (Fang et al. 2025), by one dense solve."""
    system_FF = kept_KF.T @ kept_KF @ project_FF + key_NF.T @ key_NF @ project_FF + weight * torch.eye(len(project_FF), dtype=torch.float64)
    return torch.linalg.solve(system_FF, left_ND.T @ key_NF @ project_FF, left=False)


def test_facts_that_are_solved_for_together_leave_the_keys_of_those_before(host):
    threshold = 1e-5 * float(torch.linalg.eigvalsh(moment(host))[-1])
    editor = make("alphaedit", host, threshold=threshold, weight=0.01)
    delta_ND = editor.edit(NOW).delta_BD.double()
    without_DF = editor.edit_together([NOW]).edits.delta()[0].double()
    editor.keep(BEFORE)
    made = editor.edit_together([NOW, REQUESTS[4:7]])
    found_DF = made.edits.delta()[0].double()
    key_NF, kept_KF = (torch.stack([key_of(host, one) for one in requests]) for requests in (NOW, BEFORE))
    value_F, vector_FF = torch.linalg.eigh(moment(host))
    basis_FN = vector_FF[:, value_F < threshold]
    assert relative(found_DF, published(key_NF, kept_KF, delta_ND, basis_FN @ basis_FN.T, 0.01)) < 1e-4
    assert made.kept == [0, 1] and made.edits.key_BRF.shape[1] == 3, "no more terms than facts"
    moved, moved_without = ((kept_KF @ change_DF.T).norm() for change_DF in (found_DF, without_DF))
    assert moved < moved_without / 10 and relative(key_NF @ found_DF.T, delta_ND) < 0.2


def test_every_layer_has_its_own_kept_keys_of_the_host_as_it_is_edited(host):
    threshold = 1e-5 * float(torch.linalg.eigvalsh(second_moment(host, 0, TEXTS, 1000).moment_FF.double())[-1])
    twin = Host(copy.deepcopy(host.model), host.tokenizer, name=host.name, terminator=".")
    editor = over("alphaedit", host, threshold=threshold, weight=0.2)
    editor.host = twin
    first = editor.edit_together([BEFORE]).edits
    for layer in LAYERS:
        twin.weight_DF(layer).add_(first.by_layer[layer].delta()[0])
    editor.keep(BEFORE)
    kept = {layer: torch.stack([seen(twin, layer, one)[0] for one in BEFORE]) for layer in LAYERS}
    made = editor.edit_together([NOW]).edits
    single = make("alphaedit", twin, threshold=threshold, weight=0.2)
    goal_ND = torch.stack([seen(twin, 0, one)[1] for one in NOW]) + single.edit(NOW).delta_BD.double()
    for place, layer in enumerate(LAYERS):
        key_NF, state_ND = (torch.stack(part) for part in zip(*(seen(twin, layer, one) for one in NOW), strict=True))
        eye_FF = torch.eye(key_NF.shape[1], dtype=torch.float64)
        project_FF = null_space(second_moment(host, layer, TEXTS, 1000), threshold)(eye_FF)
        change_DF = published(key_NF, kept[layer], (goal_ND - state_ND) / (len(LAYERS) - place), project_FF, 0.2)
        assert relative(made.by_layer[layer].delta()[0].double(), change_DF) < 1e-3, layer
        twin.weight_DF(layer).add_(change_DF.float())
