"""MEMIT, EMMET and AlphaEdit of one fact against the systems of equations they are published as, and against ROME.

Shape letters: B edits, N rows, D hidden width, F MLP width.
"""

import pytest
import torch
from closed_forms import key_of, make, moment, ridged
from rome_twin import CFG, CONTEXTS, LAYER, REQUESTS, TEXTS, delta_weight, plain_rome, relative
from tiny_hosts import build_host

from data.editors import load_editor
from data.keys.cache import KeyStatistics
from data.keys.moments import keys_of
from decoder.config.editors import EDITORS
from decoder.edit import RankOneEdit
from decoder.swap import swapped

FEW = REQUESTS[:3]


@pytest.fixture(scope="module")
def host():
    # Attention over all of the text from the first block on: keys differ from context to context.
    return build_host("llama")


@pytest.mark.parametrize("weight", [0.0, 0.5, 40.0])
def test_memit_solves_its_equations(host, weight):
    result = make("memit", host, ridge=0.1, weight=weight).edit(FEW)
    for b, one in enumerate(FEW):
        key_F = key_of(host, one)
        system_FF = weight * ridged(host, 0.1) + torch.outer(key_F, key_F)
        found_DF, delta_D = delta_weight(result, b).double(), result.delta_BD[b].double()
        # ΔW (λC + kkᵀ) = δ kᵀ; with λ = 0 the system is singular, and the edit the one of it that whitened keys span.
        assert relative(found_DF @ system_FF, torch.outer(delta_D, key_F)) < 1e-4
        assert relative(delta_D, plain_rome(host, one, CFG, CONTEXTS)[0].double()) < 1e-4


def test_with_the_bare_prompt_alone_and_nothing_that_weighs_against_it_all_are_rome(host):
    rome = make("rome", host, contexts=["{}"], ridge=0.1).edit(FEW)
    for name, settings in (("memit", {"weight": 1e-9}), ("emmet", {}), ("r-rome", {})):
        other = make(name, host, contexts=["{}"], ridge=0.1, **settings).edit(FEW)
        for b in range(len(FEW)):
            assert relative(delta_weight(other, b), delta_weight(rome, b)) < 1e-5, name


def test_emmet_has_one_key_for_direction_and_constraint(host):
    """r-ROME's constraint at MEMIT's key: along C⁻¹k, with ΔW k = δ there."""
    result = make("emmet", host, ridge=0.1).edit(FEW)
    for b, one in enumerate(FEW):
        key_F = key_of(host, one)
        direction_F = torch.linalg.solve(ridged(host, 0.1), key_F)
        assert relative(delta_weight(result, b).double() @ key_F, result.delta_BD[b].double()) < 1e-5
        assert relative(result.edits.key_BF[b].double(), direction_F / direction_F.norm()) < 1e-5
    bare_F = keys_of(host, LAYER, input_ids=torch.tensor([host.prompt_ids(one.fact.prompt, one.fact.subject)[0]]))[0]
    assert relative(delta_weight(result, b) @ bare_F, result.delta_BD[b]) > 1e-2, "the bare key must be another one"


def test_memit_writes_less_the_more_the_others_weigh(host):
    lengths = [make("memit", host, ridge=0.1, weight=weight).edit(FEW[:1]).edits.norm().item() for weight in (0.0, 1.0, 100.0)]
    assert lengths == sorted(lengths, reverse=True) and lengths[2] < lengths[0] / 2


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_alphaedit_solves_its_equations_and_leaves_counted_keys_alone(host, weight):
    # Rounding of the stored moment is 1e-7 of its largest eigenvalue; F = 48 keys of some thirty tokens leave the rest empty.
    threshold = 1e-5 * float(torch.linalg.eigvalsh(moment(host))[-1])
    result = make("alphaedit", host, threshold=threshold, weight=weight).edit(FEW)
    value_F, vector_FF = torch.linalg.eigh(moment(host))
    basis_FN = vector_FF[:, value_F < threshold]
    project_FF = basis_FN @ basis_FN.T
    assert 0 < basis_FN.shape[1] < len(value_F)
    texts = [torch.tensor([host.text_ids(text)]) for text in TEXTS]
    for b, one in enumerate(FEW):
        found_DF, delta_D, key_F = delta_weight(result, b).double(), result.delta_BD[b].double(), key_of(host, one)
        right_DF = torch.outer(delta_D, project_FF @ key_F)
        left_DF = found_DF @ (torch.outer(key_F, project_FF @ key_F) + weight * torch.eye(len(key_F), dtype=torch.float64))
        assert relative(left_DF, right_DF) < 1e-4
        assert relative(found_DF @ project_FF, found_DF) < 1e-5
        for ids_1T in texts:
            key_TF = keys_of(host, LAYER, input_ids=ids_1T)
            clean_TD = key_TF @ host.weight_DF(LAYER).T
            assert (key_TF @ found_DF.float().T).norm() < 1e-5 * max(1, clean_TD.norm()) and found_DF.norm() > 0.1
    if not weight:
        with swapped(host, {LAYER: result.edits[0]}):
            said = host.model(texts[0]).logits
        assert relative(said, host.model(texts[0]).logits) < 1e-5


def test_a_threshold_without_null_space_is_one_line(host):
    everywhere = KeyStatistics(torch.eye(host.mlp_size(LAYER)), 99)
    with pytest.raises(ValueError, match="edits.threshold=0.02 leaves no null space: the least eigenvalue of 99 keys is 1") as refused:
        load_editor("alphaedit")(host, LAYER, EDITORS["alphaedit"](editor="alphaedit", layer=LAYER), everywhere, CONTEXTS)
    assert "\n" not in str(refused.value) and "Raise it" in str(refused.value)


@pytest.mark.parametrize("name", ["memit", "emmet", "alphaedit"])
def test_edits_do_not_depend_on_their_batch_and_keys_have_length_one(host, name):
    settings = {"threshold": 0.01} if name == "alphaedit" else {"ridge": 0.1}
    whole, alone = (make(name, host, batch_size=size, **settings).edit(REQUESTS) for size in (64, 1))
    assert isinstance(whole.edits, RankOneEdit) and whole.kept == list(range(len(REQUESTS))) and not whole.matrices
    torch.testing.assert_close(whole.edits.key_BF.norm(dim=1), torch.ones(len(REQUESTS)))
    assert relative(alone.edits.value_BD, whole.edits.value_BD) < 1e-4
