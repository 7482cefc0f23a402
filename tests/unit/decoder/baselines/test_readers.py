"""Baselines on edits whose answer is known by construction.

Shape letters: B edits, N training edits, D hidden width, F MLP width, V vocabulary.
"""

import dataclasses

import pytest
import torch
from torch.nn.functional import normalize

from decoder.baselines import readers as baselines
from decoder.baselines.readers import AtSubject, Evidence, carrier_prompt
from decoder.baselines.score import BASELINES, score_baselines
from decoder.batch import PADDING, EditBatch
from decoder.edit import RankOneEdit
from decoder.host import Host
from decoder.model import ObjectDecoder

LAYER, D, F = 1, 64, 96
OBJECTS = ([20, 21], [22], [23], [24], [25])
END = 17


@pytest.fixture(scope="module")
def host(new_host) -> Host:
    """A host whose unembeddings are orthonormal: the value of a token's own row is read back by final norm and head."""
    host = new_host("llama", hidden_size=D, intermediate_size=F)
    head_VD = host.model.get_output_embeddings().weight
    head_VD.copy_(torch.linalg.qr(torch.randn(D, len(head_VD), generator=torch.Generator().manual_seed(2))).Q.T)
    host.model.model.norm.weight.fill_(1.0)
    host.terminator_id = END
    return host


def make_edits(host, count: int, seed: int, size: float = 3.0, mix_DD=None, objects=OBJECTS, turned: bool = True) -> EditBatch:
    """Values along the unembedding of the object's first token (or a fixed rotation of it). Keys share a mean, as real keys do.

    The factors come in any scale and, `turned`, sign, as ΔW leaves them open; an editor's keys have one sign.
    """
    generator = torch.Generator().manual_seed(seed)
    which = torch.randint(len(objects), (count,), generator=generator).tolist()
    head_VD = host.model.get_output_embeddings().weight.detach()
    value_BD = head_VD[[objects[i][0] for i in which]] + 0.05 * torch.randn(count, D, generator=generator)
    value_BD = size * (value_BD if mix_DD is None else value_BD @ mix_DD)
    mean_F = torch.randn(F, generator=torch.Generator().manual_seed(99))
    key_BF = normalize(normalize(mean_F, dim=0) + 0.05 * torch.randn(count, F, generator=generator))
    scale_B1 = torch.rand(count, 1, generator=generator) + 0.5
    if turned:
        scale_B1[::2] *= -1
    ids = [[*objects[i], END] + [PADDING] * (2 - len(objects[i])) for i in which]
    return EditBatch(RankOneEdit(key_BF * scale_B1, value_BD / scale_B1), torch.tensor(ids), torch.arange(count))


def evidence_of(host, **settings) -> Evidence:
    start = ObjectDecoder(
        host, edited_layers=[LAYER], trained_layers=[], prompt_MD=torch.randn(3, D, generator=torch.Generator().manual_seed(5))
    )
    return Evidence(
        host=host,
        edited_layer=LAYER,
        train=make_edits(host, 120, 0, turned=False, **settings),
        validation=make_edits(host, 30, 1, **settings),
        start=start,
        subjects=["Ada", "Ben of the north"],
        templates=["{} works as a", "{} was born in"],
        beams=2,
        max_object_tokens=2,
    )


def first_token_score(name: str, evidence: Evidence, test: EditBatch) -> float:
    known, build = BASELINES[name]
    answer = build(evidence)(test)
    return float((answer.first_token_B == test.object_ids_BT[:, 0]).float().mean())


def rotation() -> torch.Tensor:
    return torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(8))).Q


def test_every_baseline_says_what_it_knows():
    assert {name: known for name, (known, _) in BASELINES.items()} == {
        "logit_lens": True,
        "logit_lens_base_free": False,
        "nearest_edit": True,
        "object_prior": False,
        "untrained_prompt": False,
        "carrier": True,
        "linear_value": True,
        "master_key": False,
    }


def test_logit_lens_reads_values_that_are_unembeddings(host):
    evidence = evidence_of(host)
    assert first_token_score("logit_lens", evidence, make_edits(host, 40, 2)) == 1.0
    rotated = evidence_of(host, mix_DD=rotation())
    assert first_token_score("logit_lens", rotated, make_edits(host, 40, 2, mix_DD=rotation())) < 0.3


def test_base_free_logit_lens_needs_an_edit_that_stands_out(host):
    evidence = evidence_of(host)
    assert first_token_score("logit_lens_base_free", evidence, make_edits(host, 40, 2, size=60.0)) == 1.0
    assert first_token_score("logit_lens_base_free", evidence, make_edits(host, 40, 2, size=0.01)) < 0.5


@pytest.mark.parametrize("name", ["linear_value", "master_key"])
def test_regressions_read_rotated_values(host, name):
    settings = {"mix_DD": rotation()}
    assert first_token_score(name, evidence_of(host, **settings), make_edits(host, 40, 2, **settings)) > 0.95


def test_the_linear_map_does_not_mind_how_long_an_update_is(host):
    """Lengths from a tenth to ten times: without the unit length the map would be fitted to the long ones."""
    train, test = (make_edits(host, count, seed, mix_DD=rotation(), turned=False) for count, seed in ((120, 0), (40, 2)))

    def stretched(batch: EditBatch) -> EditBatch:
        length_B1 = 10 ** (2 * torch.rand(len(batch.edits), 1, generator=torch.Generator().manual_seed(3)) - 1)
        return batch._replace(edits=RankOneEdit(batch.edits.key_BF, batch.edits.value_BD * length_B1))

    evidence = dataclasses.replace(evidence_of(host, mix_DD=rotation()), train=stretched(train))
    assert first_token_score("linear_value", evidence, stretched(test)) > 0.95


@pytest.mark.parametrize("name", BASELINES)
def test_the_same_update_in_other_factors_is_the_same_edit(host, name):
    test = make_edits(host, 20, 2)
    turned = test._replace(edits=RankOneEdit(-3 * test.edits.key_BF, test.edits.value_BD / -3))
    reader = BASELINES[name][1](evidence_of(host))
    assert torch.equal(reader(test).first_token_B, reader(turned).first_token_B) and reader(test).exact_B == reader(turned).exact_B


def test_nearest_edit_answers_with_the_object_of_the_closest_value(host):
    evidence = evidence_of(host, mix_DD=rotation())
    test = make_edits(host, 40, 2, mix_DD=rotation())
    answer = BASELINES["nearest_edit"][1](evidence)(test)
    assert (answer.first_token_B == test.object_ids_BT[:, 0]).all() and all(answer.exact_B)


def test_object_prior_is_the_most_frequent_training_object(host):
    evidence = evidence_of(host)
    ids_BT = torch.tensor([[20, 21, END], [22, END, PADDING], [22, END, PADDING], [20, END, PADDING]])
    evidence = dataclasses.replace(evidence, train=EditBatch(evidence.train.edits[:4], ids_BT, torch.arange(4)))
    test = EditBatch(evidence.train.edits[:3], torch.tensor([[22, END], [20, END], [22, 21]]), torch.arange(3))
    answer = BASELINES["object_prior"][1](evidence)(test)
    assert answer.first_token_B.tolist() == [22, 22, 22] and answer.exact_B == [True, False, False]


def test_known_objects_of_other_lengths_are_compared(host):
    evidence = evidence_of(host)
    train = EditBatch(evidence.train.edits[:1], torch.tensor([[22, END]]), torch.arange(1))
    for ids, right in ([[22, END, PADDING, PADDING]], True), ([[22, 23, END]], False):
        answer = BASELINES["object_prior"][1](dataclasses.replace(evidence, train=train))(
            EditBatch(train.edits, torch.tensor(ids), torch.zeros(1))
        )
        assert answer.exact_B == [right]


def test_untrained_prompt_is_the_start_decoder(host):
    evidence, test = evidence_of(host), make_edits(host, 10, 2)
    answer = BASELINES["untrained_prompt"][1](evidence)(test)
    beams = evidence.start.read(test.edits, beams=2, max_object_tokens=2)
    assert torch.equal(answer.first_token_B, beams.first_token_B) and len(answer.exact_B) == 10


def test_carrier_prompt_is_the_mean_subject_and_the_template(host):
    prompt_MD = carrier_prompt(host, ["Ada", "Ben of the north"], "the city of {} works as")
    embed = host.model.get_input_embeddings()
    rows = {word: embed(torch.tensor(host.object_ids(word)))[0] for word in ("Ada", "north", "works", "as")}
    torch.testing.assert_close(prompt_MD, torch.stack([(rows["Ada"] + rows["north"]) / 2, rows["works"], rows["as"]]))


def test_value_is_added_at_the_subject_and_nowhere_else():
    edits = AtSubject(torch.randn(2, F), torch.randn(2, D))
    clean_1TD = torch.randn(1, 3, D)
    out_BTD = edits.output(torch.randn(1, 3, F), clean_1TD, None)
    torch.testing.assert_close(out_BTD[:, 0], clean_1TD[:, 0] + edits.value_BD)
    assert torch.equal(out_BTD[:, 1:], clean_1TD[:, 1:].expand(2, -1, -1))
    object_BTD = torch.randn(2, 1, D)
    assert torch.equal(edits.output(torch.randn(2, 1, F), object_BTD, None), object_BTD), "object tokens pass unedited"


def test_scores_of_all(host, weights_hash, hooks, monkeypatch):
    monkeypatch.setattr(baselines, "CHUNK", 16)
    before = weights_hash(host.model)
    tests = {"id": make_edits(host, 20, 2), "ood": make_edits(host, 15, 3)}
    scores = score_baselines(evidence_of(host), tests)
    assert list(scores) == list(BASELINES)
    for name, score in scores.items():
        assert score["base_known"] is BASELINES[name][0] and set(score) == {"base_known", "id", "ood"}
        assert score["id"]["n"] == 20 and score["ood"]["n"] == 15
        assert set(score["id"]["first_token"]) == {"value", "ci95"}
        spells = name in ("nearest_edit", "object_prior", "untrained_prompt", "carrier")
        assert (score["id"]["exact_match"] is not None) == spells
    assert scores["logit_lens"]["id"]["first_token"]["value"] == 1.0
    assert weights_hash(host.model) == before and hooks(host.model) == 0


def test_chunks_do_not_change_an_answer(host, monkeypatch):
    evidence, test = evidence_of(host), make_edits(host, 20, 2)
    for name in ("logit_lens_base_free", "untrained_prompt", "carrier"):
        whole = BASELINES[name][1](evidence)(test)
        with monkeypatch.context() as patch:
            patch.setattr(baselines, "CHUNK", 7)
            chunked = BASELINES[name][1](evidence)(test)
        assert torch.equal(whole.first_token_B, chunked.first_token_B) and whole.exact_B == chunked.exact_B


def said_by(reader, test: EditBatch, monkeypatch) -> torch.Tensor:
    """Tokens (B, 4) of the first beams."""
    read, found = ObjectDecoder.read, []
    with monkeypatch.context() as patch:
        patch.setattr(baselines, "may_become", lambda begun, planted: True)
        patch.setattr(ObjectDecoder, "read", lambda self, edits, **search: found.append(read(self, edits, **search)) or found[-1])
        reader(test)
    first = [torch.tensor(objects[0]) for one in found for objects in one.tokens]
    return torch.stack([torch.nn.functional.pad(ids, (0, 4 - len(ids)), value=PADDING) for ids in first])


@pytest.mark.parametrize("beams", [1, 2, 6, 999])
@pytest.mark.parametrize("ends", [True, False])
def test_answers_that_cannot_be_right_are_given_up_and_change_no_score(host, monkeypatch, beams, ends):
    monkeypatch.setattr(host, "terminator_id", END if ends else None)
    evidence, test, steps = dataclasses.replace(evidence_of(host), beams=beams, max_object_tokens=4), make_edits(host, 20, 2), []
    test = test._replace(object_ids_BT=torch.nn.functional.pad(test.object_ids_BT, (0, 4 - test.object_ids_BT.shape[1]), value=PADDING))
    go_on = ObjectDecoder._continue
    monkeypatch.setattr(ObjectDecoder, "_continue", lambda self, edits, *args: steps.append(len(edits)) or go_on(self, edits, *args))
    for name in ("untrained_prompt", "carrier"):
        reader = BASELINES[name][1](evidence)
        # Every other edit plants what the reader says of it, so that there is something to be right about.
        said = said_by(reader, test, monkeypatch)
        test.object_ids_BT[::2] = said[::2]
        steps.clear()
        quick, few = reader(test), sum(steps)
        with monkeypatch.context() as patch:
            patch.setattr(baselines, "may_become", lambda begun, planted: True)
            steps.clear()
            slow = reader(test)
        assert torch.equal(quick.first_token_B, slow.first_token_B) and quick.exact_B == slow.exact_B
        assert sum(slow.exact_B) >= len(test.edits) // 2 and not all(slow.exact_B)
        assert few < sum(steps) or beams == 999, name


def test_half_precision_host(new_host):
    host = new_host("llama", hidden_size=D, intermediate_size=F)
    host.model.to(torch.bfloat16)
    scores = score_baselines(evidence_of(host), {"id": make_edits(host, 5, 2)})
    assert set(scores) == set(BASELINES)
