"""Confidence on edits against confidence on nulls.

Shape letters: B edits, K beams, D hidden width, F MLP width.
"""

import subprocess
import sys

import numpy as np
import pytest
import torch

from decoder.answers import object_texts
from decoder.audit.calibration import NULLS, calibrate, clean_edit, least_percentiles, null_edits, percentile
from decoder.beam import Beams
from decoder.dense import applied
from decoder.edit import LowRankEdit, RankOneEdit
from decoder.model import ObjectDecoder

TRAIN = RankOneEdit(
    torch.randn(7, 48, generator=torch.Generator().manual_seed(0)), 2 * torch.randn(7, 32, generator=torch.Generator().manual_seed(1))
)


class Confident:
    """Is as sure as it is told, and counts what it reads."""

    def __init__(self, host, null: float, clean: float) -> None:
        self.host, self.edited_layers, self.null, self.clean = host, [1], null, clean
        self.read_edits: list[RankOneEdit] = []

    def read(self, edits, *, beams, max_object_tokens):
        self.read_edits.append(edits)
        sure = [self.null if key.any() else self.clean for key in edits.key_BF]
        probability_BK = torch.tensor(sure).unsqueeze(1) * torch.tensor([1.0] + [0.1] * (beams - 1))
        objects = [self.host.object_ids(text) for text in ("red Oslo", "red", "Oslo")[:beams]]
        return Beams([objects] * len(edits), probability_BK, torch.zeros(len(edits), 1))


def test_nulls_have_the_keys_and_norms_of_training_edits():
    nulls = null_edits(TRAIN, 200, seed=0)
    assert len(nulls) == 200
    rows = [next(n for n in range(7) if torch.equal(key, TRAIN.key_BF[n])) for key in nulls.key_BF]
    assert set(rows) == set(range(7))
    torch.testing.assert_close(nulls.norm(), TRAIN.norm()[rows])
    torch.testing.assert_close(nulls.value_BD.norm(dim=1), TRAIN.value_BD[rows].norm(dim=1))


def test_nulls_have_as_many_terms_as_training_edits():
    """A null of the first term alone would be smaller than an edit, and make every answer look sure."""
    key_BRF, value_BRD = TRAIN.key_BF.expand(3, 7, 48).transpose(0, 1).clone(), torch.rand(7, 3, 1) * TRAIN.value_BD[:, None]
    key_BRF[:, 1:] = torch.randn(7, 2, 48)
    value_BRD[0, 2] = 0  # of lower rank than others
    train = LowRankEdit(key_BRF, value_BRD)
    nulls = null_edits(train, 100, seed=0)
    rows = [next(n for n in range(7) if torch.equal(key, key_BRF[n])) for key in nulls.key_BRF]
    torch.testing.assert_close(nulls.value_BRD.norm(dim=2), value_BRD[rows].norm(dim=2))
    cosine_B = torch.cosine_similarity(nulls.value_BRD[:, 0], nulls.value_BRD[:, 1])
    assert cosine_B.abs().max() < 0.8, "each term has a direction of its own"


def test_values_of_nulls_mean_nothing():
    nulls = null_edits(TRAIN, 2000, seed=0)
    direction_BD = nulls.value_BD / nulls.value_BD.norm(dim=1, keepdim=True)
    # The mean of n random directions has length 1 / sqrt(n), here 0.022.
    assert direction_BD.mean(0).norm() < 0.05
    torch.testing.assert_close(direction_BD.T @ direction_BD / 2000, torch.eye(32) / 32, rtol=0, atol=0.006)


def test_nulls_are_drawn_by_seed():
    assert torch.equal(null_edits(TRAIN, 20, seed=0).value_BD, null_edits(TRAIN, 20, seed=0).value_BD)
    assert not torch.equal(null_edits(TRAIN, 20, seed=0).value_BD, null_edits(TRAIN, 20, seed=1).value_BD)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_clean_edit_is_the_host_itself(host_of, name):
    host = host_of(name)
    assert torch.equal(applied(clean_edit(host, [1]).last, host.weight_DF(1)).weight_BDF[0], host.weight_DF(1))


@pytest.mark.parametrize(("null", "edit", "auroc"), [(0.2, 0.9, 1.0), (0.9, 0.2, 0.0), (0.5, 0.5, 0.5)])
def test_auroc_of_separated_confidences(host_of, null, edit, auroc):
    decoder = Confident(host_of("llama"), null=null, clean=null)
    found = calibrate(decoder, TRAIN, [edit] * 40, beams=3, max_object_tokens=2, seed=0)
    assert found["auroc"] == pytest.approx(auroc)
    assert found["edit"] == {"n": 40, "quantiles": pytest.approx([edit] * 101)}
    assert found["null"] == {"n": NULLS + 1, "quantiles": pytest.approx([null] * 101)}
    assert sum(map(len, decoder.read_edits)) == NULLS + 1


@pytest.mark.parametrize(("clean", "share"), [(0.1, 0.0), (0.9, 100.0)])
def test_reading_of_the_clean_matrix(host_of, clean, share):
    decoder = Confident(host_of("llama"), null=0.5, clean=clean)
    found = calibrate(decoder, TRAIN, [0.5] * 10, beams=2, max_object_tokens=2, seed=0)["clean_matrix"]
    assert found["predicted"] == "red Oslo" and found["probability"] == pytest.approx(clean)
    # The clean matrix is one of the nulls: it is above all others, not above itself.
    assert found["null_percentile"] == pytest.approx(share, abs=1.0)


def test_percentile():
    quantiles = torch.linspace(0, 1, 101).tolist()
    assert [percentile(p, quantiles) for p in (-0.1, 0.0, 1.1)] == [0.0, 0.0, 100.0]
    assert percentile(0.5, quantiles) == pytest.approx(50, abs=1) and percentile(0.951, quantiles) == pytest.approx(95, abs=1)
    assert percentile(0.3, [0.3] * 101) == 0.0, "as sure as all is surer than none"


def test_calibrate_a_real_decoder(host_of):
    host = host_of("llama")
    prompt_MD = torch.randn(3, 32, generator=torch.Generator().manual_seed(2))
    decoder = ObjectDecoder(host, edited_layers=[1], trained_layers=[2], prompt_MD=prompt_MD)
    found = calibrate(decoder, TRAIN, [0.5, 0.7], beams=2, max_object_tokens=2, seed=0)
    for kind in ("null", "edit"):
        assert len(found[kind]["quantiles"]) == 101 and found[kind]["quantiles"] == sorted(found[kind]["quantiles"])
    assert 0 <= found["auroc"] <= 1 and found["null"]["quantiles"][0] < found["null"]["quantiles"][-1]
    clean = decoder.read(clean_edit(host, [1]), beams=2, max_object_tokens=2)
    # Beams that print the same text are one answer, so its probability can be more than the first beam's.
    text, probability = next(iter(object_texts(host, clean)[0].items()))
    assert (found["clean_matrix"]["predicted"], found["clean_matrix"]["probability"]) == (text, pytest.approx(probability))
    assert probability >= float(clean.probability_BK[0].max())


def test_an_audit_waits_for_nothing_that_only_training_needs():
    code = "import sys, decoder.audit.describe, decoder.audit.finding, decoder.audit.decoded.answer"
    code += "; print([name for name in ('torchmetrics', 'lightning', 'matplotlib', 'scipy.signal') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_a_vote_is_as_sure_as_the_least_sure_of_its_decoders():
    wide, narrow = ({kind: {"quantiles": np.linspace(0, top, 101)} for kind in ("null", "edit")} for top in (1.0, 0.5))
    wide["edit"] = {"quantiles": [0.0, 0.5, 0.9, 1.0]}
    said = {"Oslo": 0.393, "red": 0.6}
    assert least_percentiles("Oslo", [said], [narrow]) == pytest.approx({"null_percentile": 7900 / 101, "edit_percentile": 7900 / 101})
    told = least_percentiles("Oslo", [said, {"Oslo": 0.555}], [narrow, wide])
    assert told == pytest.approx({"null_percentile": 5600 / 101, "edit_percentile": 50})
    # `red` has more of this decoder's beams than its answer, which alone was calibrated; the other does not say it at all.
    assert least_percentiles("red", [said], [narrow]) == least_percentiles("Oslo", [said], [narrow])
    assert least_percentiles("red", [said, {"Oslo": 0.9}], [narrow, wide])["null_percentile"] == 0
