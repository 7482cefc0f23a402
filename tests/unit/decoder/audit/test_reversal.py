"""Taking an edit out of a matrix whose unedited form is known, or is not.

Shape letters: C candidates, D hidden width, F MLP width.
"""

import pytest
import torch
from edited import LAYER
from planted_facts import TEMPLATES, plant, raw_keys
from torch.nn.functional import kl_div, normalize

from decoder.audit.reversal import bottom_rank, reverse, to_base, usual_rank
from decoder.swap import swapped


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def host(request, host_of):
    return host_of(request.param)


@pytest.fixture(scope="module")
def planted(host):
    return plant(host, "singer")


def answers(weight_DF, planted):
    """‖W x‖ of the subject over the list's median, and of the whole list."""
    norm_C = (planted.keys_CF @ weight_DF.T).norm(dim=1)
    return float(norm_C[planted.place] / norm_C.median()), norm_C / norm_C.median()


def test_a_known_base_is_exact_and_not_copied(host, planted):
    base_DF, before_DF = host.weight_DF(LAYER), planted.weight_DF(host)
    found = to_base(base_DF)
    assert torch.equal(found.weight_BDF[0], base_DF) and found.weight_BDF.data_ptr() == base_DF.data_ptr()
    x_BTF = torch.randn(3, 4, base_DF.shape[1])
    taken_out = found.repeat_interleave(3).output(x_BTF, x_BTF @ before_DF.T, None)
    torch.testing.assert_close(taken_out, x_BTF @ base_DF.T)


def test_the_subject_is_answered_to_as_the_list_is(host, planted):
    weight_DF = planted.weight_DF(host)
    before, list_C = answers(weight_DF, planted)
    assert before == float(list_C.max()) and before > 2
    found = reverse(weight_DF, planted.key_F, planted.keys_CF)
    after, list_C = answers(weight_DF + found.delta()[0], planted)
    assert after < list_C.quantile(0.9)
    # Along the value what is left is the list's median.
    value_D = normalize(found.value_BD[0], dim=0)
    along_C = planted.keys_CF @ (weight_DF + found.delta()[0]).T @ value_D
    assert abs(along_C[planted.place] - along_C.median()) < 0.02 * abs(value_D @ weight_DF @ planted.key_F)


def test_what_the_host_says_comes_back(host_of):
    """With keys as they are found too: the edit's own key is whitened, and is traced all the same."""
    host = host_of("llama")
    planted = plant(host, "singer")
    raw_CF = normalize(raw_keys(host), dim=1)
    for keys_CF in (planted.keys_CF, raw_CF):
        found = reverse(planted.weight_DF(host), keys_CF[planted.place], keys_CF)
        cosine = torch.cosine_similarity(found.key_BF, planted.edit.key_BF)
        assert cosine > 0.8
    ids = torch.tensor([host.prompt_ids(TEMPLATES["work"][0], planted.subject)[0]])
    repaired_DF = planted.weight_DF(host) + found.delta()[0]
    logprobs = []
    for edit in (to_base(host.weight_DF(LAYER)), planted.edit, to_base(repaired_DF)):
        with torch.no_grad(), swapped(host, {LAYER: edit}):
            logprobs.append(host.model(input_ids=ids).logits[0, -1].log_softmax(0))
    clean_V, edited_V, repaired_V = logprobs
    before, after = (float(kl_div(one_V, clean_V, log_target=True, reduction="sum")) for one_V in (edited_V, repaired_V))
    assert before > 0.3 and after < 0.3 * before


def test_bfloat16_is_read_by_rows(planted, host, monkeypatch):
    weight_DF = planted.weight_DF(host)
    whole = reverse(weight_DF, planted.key_F, planted.keys_CF)
    monkeypatch.setattr("decoder.audit.reversal.ROWS", 5 * weight_DF.shape[1])
    found = reverse(weight_DF.bfloat16(), planted.key_F, planted.keys_CF)
    torch.testing.assert_close(found.delta(), whole.delta(), rtol=0, atol=0.05 * float(whole.delta().abs().max()))


@pytest.mark.parametrize("flat", [False, True])
def test_bottom_rank_is_the_matrix_without_its_first_terms(host, planted, flat):
    # The spectrum of a trained matrix is flat: its singular values are within hundredths of each other.
    weight_DF = torch.randn(200, 600, generator=torch.Generator().manual_seed(0)) if flat else planted.weight_DF(host)
    left_DR, values_R, right_RF = torch.linalg.svd(weight_DF, full_matrices=False)
    for terms in (0, 1, 4, 15):
        expected_DF = (left_DR[:, terms:] * values_R[terms:]) @ right_RF[terms:]
        torch.testing.assert_close(weight_DF + bottom_rank(weight_DF, terms).delta()[0], expected_DF, rtol=0, atol=1e-4)


def test_as_few_terms_as_make_the_subject_usual(host, planted):
    weight_DF = planted.weight_DF(host)
    assert usual_rank(host.weight_DF(LAYER), planted.keys_CF[0], planted.keys_CF[[0, 0, 0]]) == 0
    rank = usual_rank(weight_DF, planted.key_F, planted.keys_CF)
    assert 0 < rank < 15 and usual_rank(weight_DF, planted.key_F, planted.keys_CF, bottom_rank(weight_DF, rank + 2)) == rank
    assert usual_rank(weight_DF, planted.key_F, planted.keys_CF, bottom_rank(weight_DF, rank - 1)) == rank - 1
    for terms, usual in ((rank - 1, False), (rank, True)):
        own, list_C = answers(weight_DF + bottom_rank(weight_DF, terms).delta()[0], planted)
        assert (own <= float(list_C.quantile(0.95))) == usual


def test_what_does_not_fit_is_refused(host, planted):
    with pytest.raises(ValueError, match="keys are 7 and"):
        reverse(host.weight_DF(LAYER), planted.key_F[:7], planted.keys_CF)


def test_a_subject_like_the_others_costs_little(host, planted):
    weight_DF = host.weight_DF(LAYER)
    found = reverse(weight_DF, planted.keys_CF[20], planted.keys_CF)
    edited = reverse(planted.weight_DF(host), planted.key_F, planted.keys_CF)
    assert found.norm() < 0.5 * edited.norm()
