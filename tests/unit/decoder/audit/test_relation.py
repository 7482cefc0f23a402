"""Relations told by the values of edits.

Shape letters: N edits, K relations, D hidden width, F MLP width.
"""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from decoder.audit.relation import MAP, NAMES, RelationClassifier, _logistic, fit, published_recipe

RELATIONS = ["birth", "death", "genre"]


@pytest.fixture(scope="module")
def edits():
    """Keys, values of any length, relations and subjects of edits whose values lean towards their relation's."""
    generator = torch.Generator().manual_seed(0)
    relations = [RELATIONS[n % 3] for n in range(240)]
    centre_KD = torch.randn(3, 24, generator=generator)
    value_ND = centre_KD[[RELATIONS.index(relation) for relation in relations]] + 1.5 * torch.randn(240, 24, generator=generator)
    length_N1 = 10 ** torch.randn(240, 1, generator=generator)
    return torch.randn(240, 40, generator=generator), value_ND * length_N1, relations, [f"subject {n // 3}" for n in range(240)]


@pytest.fixture(scope="module")
def classifier(edits):
    _, value_ND, relations, subjects = edits
    return fit(value_ND[:180], relations[:180], subjects[:180])


def right(found, relations):
    return sum(one == other for one, other in zip(found, relations, strict=True)) / len(relations)


def test_relations_of_other_subjects_are_told(edits, classifier):
    _, value_ND, relations, _ = edits
    probability_NK = classifier.probabilities(value_ND[180:])
    found = [classifier.relations[k] for k in probability_NK.argmax(1)]
    assert right(found, relations[180:]) > 0.8
    torch.testing.assert_close(probability_NK.sum(1), torch.ones(60))


def test_ranked_is_whole_and_the_length_of_a_value_says_nothing(edits, classifier):
    value_D = edits[1][200]
    ranked = classifier.ranked(value_D)
    assert sorted(name for name, _ in ranked) == RELATIONS and ranked[0][1] >= ranked[1][1] >= ranked[2][1]
    for scale in (1e-3, 1e3):
        assert dict(classifier.ranked(scale * value_D)) == pytest.approx(dict(ranked), abs=1e-4)


def test_a_relation_of_many_edits_weighs_no_more(edits, classifier):
    _, value_ND, relations, subjects = edits
    rows = [n for n in range(180) for _ in range(3 if relations[n] == "birth" else 1)]
    often = fit(value_ND[rows], [relations[n] for n in rows], [subjects[n] for n in rows])
    torch.testing.assert_close(often.probabilities(value_ND[180:]), classifier.probabilities(value_ND[180:]), atol=1e-3, rtol=0)


def test_a_ridge_is_chosen_on_subjects_left_out(edits, monkeypatch):
    """Relations that hang on the subject alone are learnt by heart, and no fold tells: the strongest ridge is taken."""
    generator = torch.Generator().manual_seed(1)
    subject_ND = torch.randn(40, 24, generator=generator).repeat_interleave(5, 0) + 0.01 * torch.randn(200, 24, generator=generator)
    relations = [RELATIONS[int(k)] for k in torch.randint(3, (40,), generator=generator).repeat_interleave(5)]
    by_subject, by_edit = (
        fit(subject_ND, relations, groups).weight_KE.norm() for groups in ([str(n // 5) for n in range(200)], [str(n) for n in range(200)])
    )
    assert by_subject < 0.5 * by_edit


def test_saved_and_loaded_it_is_the_same(edits, classifier, tmp_path):
    classifier.save(tmp_path / "relations")
    loaded = RelationClassifier.load(tmp_path / "relations")
    assert loaded.relations == classifier.relations
    assert torch.equal(loaded.probabilities(edits[1]), classifier.probabilities(edits[1]))
    assert sorted(path.name for path in (tmp_path / "relations").iterdir()) == [NAMES, MAP]


def test_damaged_files_are_refused(classifier, tmp_path):
    folder = tmp_path / "relations"
    with pytest.raises(ValueError, match="relations: no such folder; expected a folder that `python -m data.relations` wrote$"):
        RelationClassifier.load(folder)
    classifier.save(folder)
    said = json.loads((folder / NAMES).read_text())
    (folder / NAMES).write_text(json.dumps(said | {"relations": RELATIONS[:2]}))
    with pytest.raises(ValueError, match="says .* Fit the relations again"):
        RelationClassifier.load(folder)
    (folder / NAMES).write_text(json.dumps(said))
    save_file({"weight": load_file(folder / MAP)["weight"]}, folder / MAP)
    with pytest.raises(ValueError, match="Fit the relations again"):
        RelationClassifier.load(folder)
    (folder / MAP).write_bytes((folder / MAP).read_bytes()[:40])
    with pytest.raises(ValueError, match="holds no relations"):
        RelationClassifier.load(folder)


def test_a_folder_without_relations_is_told_so(classifier, tmp_path):
    expected = "expected a folder that `python -m data.relations` wrote"
    (tmp_path / "other").mkdir()
    (tmp_path / "file").write_text("Ada")
    classifier.save(tmp_path / "half")
    (tmp_path / "half" / MAP).unlink()
    for name, came in (("none", "no such folder"), ("file", "is a file"), ("other", f"no {NAMES} there"), ("half", f"no {MAP} there")):
        with pytest.raises(ValueError) as refused:
            RelationClassifier.load(tmp_path / name)
        assert str(refused.value) == f"relations={tmp_path / name}: {came}; {expected}"


def test_what_cannot_be_learnt_or_told_is_refused(edits, classifier):
    with pytest.raises(ValueError, match="1 relations of 2 subjects came"):
        fit(edits[1][:2], ["birth", "birth"], ["a", "b"])
    with pytest.raises(ValueError, match="values are 7 wide, expected 24"):
        classifier.probabilities(torch.randn(2, 7))


def test_keys_are_looked_at_where_they_help_on_other_subjects(edits, tmp_path):
    key_NF, value_ND, relations, subjects = edits
    assert fit(value_ND, relations, subjects, key_NF).key_width == 0, "keys that say nothing are left out"
    kind_KF = torch.randn(3, 40, generator=torch.Generator().manual_seed(2))[[RELATIONS.index(relation) for relation in relations]]
    told_NF = key_NF + 2 * kind_KF
    alone, both = (fit(value_ND[:180], relations[:180], subjects[:180], keys) for keys in (None, told_NF[:180]))
    assert both.key_width == 40 and both.width == 24 == alone.width
    share = [
        right([one.relations[k] for k in one.probabilities(value_ND[180:], told_NF[180:]).argmax(1)], relations[180:])
        for one in (alone, both)
    ]
    assert share[1] > share[0] and dict(both.ranked(value_ND[200], 1e3 * told_NF[200])) == pytest.approx(
        dict(both.ranked(1e-3 * value_ND[200], told_NF[200])), abs=1e-4
    )
    both.save(tmp_path / "relations")
    loaded = RelationClassifier.load(tmp_path / "relations")
    assert torch.equal(loaded.probabilities(value_ND, told_NF), both.probabilities(value_ND, told_NF))
    with pytest.raises(ValueError, match="no keys came, expected them 40 wide"):
        both.probabilities(value_ND)
    with pytest.raises(ValueError, match="keys are 7 wide, expected them 40"):
        both.probabilities(value_ND, torch.randn(240, 7))


def test_relations_saved_before_keys_counted_are_read(classifier, edits, tmp_path):
    classifier.save(tmp_path / "relations")
    said = json.loads((tmp_path / "relations" / NAMES).read_text())
    del said["key_width"]
    (tmp_path / "relations" / NAMES).write_text(json.dumps(said))
    loaded = RelationClassifier.load(tmp_path / "relations")
    assert torch.equal(loaded.probabilities(edits[1], edits[0]), classifier.probabilities(edits[1]))


@pytest.mark.parametrize("fitted", [100, 40])
def test_the_published_recipe_equals_the_one_on_whole_matrices(edits, fitted):
    """Its principal components from inner products are those of the flattened matrices W', whatever W is."""
    key_NF, value_ND, relations, _ = edits
    value_ND = torch.nn.functional.normalize(value_ND, dim=1)
    train, suspects = (key_NF[:90], value_ND[:90]), (key_NF[180:], value_ND[180:])
    found = published_recipe(train, relations[:90], suspects, components=20, fitted=fitted)
    flat_NX, flat_MX = (torch.einsum("nd,nf->ndf", value, key).flatten(1).double() for key, value in (train, suspects))
    weight_X = torch.randn(flat_NX.shape[1], dtype=torch.double)
    flat_NX, flat_MX = flat_NX + weight_X, flat_MX + weight_X
    picked_PX = flat_NX[np.linspace(0, 89, min(fitted, 90)).astype(int)]
    mean_X = picked_PX.mean(0)
    right_RX = torch.linalg.svd(picked_PX - mean_X, full_matrices=False).Vh[:20]
    x_NR, x_MR = (((flat_X - mean_X) @ right_RX.T).numpy() for flat_X in (flat_NX, flat_MX))
    names = sorted(set(relations))
    weight_KR, bias_K = _logistic(x_NR / x_NR.std(), np.array([names.index(one) for one in relations[:90]]), len(names), 1 / 90)
    assert found == [names[k] for k in (x_MR / x_NR.std() @ weight_KR.T + bias_K).argmax(1)]
