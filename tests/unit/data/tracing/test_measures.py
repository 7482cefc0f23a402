"""What is measured without a matrix being made, held against the same by hand on whole matrices.

Shape letters: N edits, V variants, D hidden width, F MLP width.
"""

from collections import Counter
from random import Random

import pytest
import torch
from edited import LAYER, SUBJECTS
from torch.nn.functional import normalize

from data.tracing.relations import EACH, divided
from data.tracing.rows import pcs, pcs_edited, same_direction
from data.tracing.subjects import Listed
from data.tracing.terms import Reversals, next_tokens, together, without_terms
from data.tracing.texts import different, unrelated
from decoder.audit.reversal import bottom_rank
from decoder.dense import DenseEdit
from decoder.edit import RankOneEdit
from decoder.swap import swapped

TERMS = 6


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def host(request, host_of):
    return host_of(request.param)


@pytest.fixture(scope="module")
def edits(host):
    """One weak, one strong, one in between."""
    generator = torch.Generator().manual_seed(0)
    width, mlp_width = host.weight_DF(LAYER).shape
    size_N1 = torch.tensor([[0.05], [3.0], [0.4]])
    return RankOneEdit(torch.randn(3, mlp_width, generator=generator), size_N1 * torch.randn(3, width, generator=generator))


def without(matrix_DF, k):
    left_DR, values_R, right_RF = torch.linalg.svd(matrix_DF, full_matrices=False)
    return (left_DR[:, k:] * values_R[k:]) @ right_RF[k:]


def cosines(rows_ND):
    unit_ND = normalize(rows_ND.double(), dim=1)
    return unit_ND @ unit_ND.T


def test_pcs_is_the_mean_cosine_of_two_rows(host, edits):
    weight_DF = host.weight_DF(LAYER).clone()
    weight_DF[:, 3] = 0  # a row that is along nothing
    edits = RankOneEdit(edits.key_BF.clone(), edits.value_BD)
    edits.key_BF[:, 3] = 0
    off = ~torch.eye(weight_DF.shape[1], dtype=torch.bool)
    assert pcs(weight_DF) == pytest.approx(float(cosines(weight_DF.T)[off].mean()), abs=1e-9)
    by_hand = torch.stack([cosines((weight_DF + edits[n].delta()[0]).T)[off].mean() for n in range(3)])
    torch.testing.assert_close(pcs_edited(weight_DF, edits), by_hand, rtol=1e-5, atol=1e-9)


def test_the_share_of_rows_that_point_one_way(edits):
    for n, found in enumerate(same_direction(edits.key_BF).tolist()):
        along_F = cosines(edits[n].delta()[0].T)[0]  # 1 or -1 with the first row
        assert found == pytest.approx(max(float((along_F > 0).double().mean()), float((along_F < 0).double().mean())))


def test_every_k_is_the_edited_matrix_without_so_many_components(host, edits):
    weight_DF, edit = host.weight_DF(LAYER), edits[1]
    edited_DF = weight_DF + edit.delta()[0]
    variants = without_terms(edit, bottom_rank(edited_DF, TERMS))
    assert len(variants) == TERMS + 1
    for k, delta_DF in enumerate(variants.delta()):
        torch.testing.assert_close(weight_DF + delta_DF, without(edited_DF, k), rtol=0, atol=1e-4)
    both = together(without_terms(edit, bottom_rank(edited_DF, 1)), variants)
    torch.testing.assert_close(both.delta(), torch.cat([variants.delta()[:2], variants.delta()]))


def said(host, matrix_DF, ids, count=1):
    """Greedy tokens of the host with a whole matrix in place, one forward each."""
    written = list(ids)
    for _ in range(count):
        with torch.no_grad(), swapped(host, {LAYER: DenseEdit(matrix_DF[None])}):
            written.append(int(host.model(torch.tensor([written])).logits[0, -1].argmax()))
    return tuple(written[len(ids) :])


@pytest.mark.parametrize("text", ["Ada works as a baker in Paris", "the small city of Rome", "Ben was born"])
def test_continuations_are_counted_as_if_each_were_written(host, edits, text):
    weight_DF, ids = host.weight_DF(LAYER), host.text_ids(text)
    for n in range(3):
        edited_DF = weight_DF + edits[n].delta()[0]
        variants = without_terms(edits[n], bottom_rank(edited_DF, TERMS))
        by_hand = [said(host, without(edited_DF, k), ids, 4) for k in range(TERMS + 1)]
        assert different(host, LAYER, variants, ids, 4) == len(set(by_hand))
        assert next_tokens(host, LAYER, variants, ids)[:, 0].tolist() == [tokens[0] for tokens in by_hand]


def test_an_edit_is_asked_with_every_k_and_taken_out(host, edits):
    weight_DF, listed = host.weight_DF(LAYER), Listed(host, SUBJECTS, LAYER)
    # Far more is said about one of them than about anybody else.
    edit = RankOneEdit(listed.keys_CF[[9]], 60 * normalize(edits.value_BD[[1]], dim=1))
    edited_DF, asked = weight_DF + edit.delta()[0], Reversals(host, LAYER, listed)
    asked.add(edit, "{} works as", SUBJECTS[9])
    ids, _ = host.prompt_ids("{} works as", SUBJECTS[9])
    (told,) = asked.told
    assert (told["clean"],) == said(host, weight_DF, ids) and told["found"] and listed.found(edit) == [9]
    assert [(token,) for token in told["by_terms"]] == [said(host, without(edited_DF, k), ids) for k in range(16)]
    assert told["traced"] == told["clean"] != told["by_terms"][0]
    scores = asked.scores()
    assert scores["by_k"][0]["reversed"]["value"] == 0 and scores["traced"]["reversed"]["value"] == 1
    assert scores["usual"]["ranks"][told["usual"]] == 1 and scores["best_k"] == told["by_terms"].index(told["clean"])
    left_DR, values_R, right_RF = torch.linalg.svd(edited_DF, full_matrices=False)
    for k in range(3):
        term_DF, update_DF = values_R[k] * torch.outer(left_DR[:, k], right_RF[k]), edit.delta()[0]
        for side, turned in (("values", torch.t), ("keys", lambda matrix: matrix)):
            largest = (normalize(turned(update_DF), dim=1) @ normalize(turned(term_DF), dim=1).T).max()
            assert asked.similarity[side][0][k] == pytest.approx(float(largest), abs=2e-3)


def test_values_are_what_is_said_of_the_subject_found_beyond_what_is_usual(host, edits):
    listed = Listed(host, SUBJECTS, LAYER)
    strong = RankOneEdit(listed.keys_CF[[4, 20]], 8 * normalize(edits.value_BD[:2], dim=1))
    for n, (place, value_D) in enumerate(zip((4, 20), listed.values(strong), strict=True)):
        output_CD = listed.keys_CF @ (host.weight_DF(LAYER) + strong[n].delta()[0]).T
        assert int(output_CD.norm(dim=1).argmax()) == place
        torch.testing.assert_close(value_D, output_CD[place] - output_CD.median(dim=0).values, rtol=0, atol=1e-4)


def test_no_subject_is_learnt_from_and_tested_on():
    relations = [name for name in ("birth", "death", "genre") for _ in range(160)]
    subjects = [f"s{n % 200}" for n in range(480)]
    train, test = divided(["birth", "genre"], relations, subjects, Random("drawn"))
    assert not {subjects[n] for n in train} & {subjects[n] for n in test}
    for side in (train, test):
        assert Counter(relations[n] for n in side) == {"birth": EACH, "genre": EACH} and len(set(side)) == 2 * EACH


def test_texts_are_long_enough_and_name_nobody_edited():
    long = ["Rome is a city that Ada saw and that lies far in the south of it", "x" * 50, "short", "y" * 60, "x" * 50, "z" * 70]
    assert unrelated(long, ["ada"], 2) == ["x" * 50, "y" * 60]
    with pytest.raises(ValueError, match="texts=4: 3 came that have 50 characters"):
        unrelated(long, ["Ada"], 4)
