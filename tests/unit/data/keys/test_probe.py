"""Probe keys against keys of edits made one at a time.

Shape letters: K keys, F MLP width, B edits.
"""

import pytest
import torch

from data.keys import probe
from data.keys.cache import KeyStatistics
from data.keys.probe import probe_keys, vocabulary_keys
from data.keys.whiten import whitener
from decoder.swap import projection_inputs

LAYER = 1
PROMPTS = [("{} was born in", "Ada"), ("the small {} works as", "Ben"), ("{} is a", "Carl"), ("{} lives in", "Ada")]


@pytest.fixture
def host(any_host):
    """Every family: some flatten their tokens before the projection."""
    return any_host


@pytest.fixture
def whiten(host):
    root_FF = torch.randn(host.mlp_size(LAYER), host.mlp_size(LAYER), generator=torch.Generator().manual_seed(0))
    return whitener(KeyStatistics(root_FF @ root_FF.T, 100), 0.1)


def plain_key(host, prompt: str, subject: str) -> torch.Tensor:
    """Key at the subject's last token, from a whole forward of one prompt."""
    ids, lookup = host.prompt_ids(prompt, subject)
    with torch.no_grad(), projection_inputs(host, LAYER) as inputs:
        host.model(torch.tensor([ids]), use_cache=False)
    return inputs[0].flatten(0, -2)[lookup].double()


def test_training_subjects_come_once_with_the_keys_of_their_edits(host, whiten):
    found_KF = probe_keys(host, LAYER, whiten, PROMPTS, made_up=0, seed=0)
    assert found_KF.shape == (3, host.mlp_size(LAYER)), "Ada's two prompts are the same up to Ada"
    for prompt, subject in PROMPTS:
        key_F = plain_key(host, prompt, subject)
        whitened_F = whiten(key_F[None])[0]
        expected_F = (whitened_F / (whitened_F @ key_F)).float()
        assert (found_KF - expected_F).abs().max(dim=1).values.min() < 1e-4 * expected_F.abs().max()


def test_made_up_subjects_follow_the_seed_and_are_not_the_known_ones(host, whiten):
    known_KF = probe_keys(host, LAYER, whiten, PROMPTS, made_up=0, seed=0)
    first_KF, again_KF, other_KF = (probe_keys(host, LAYER, whiten, PROMPTS, made_up=600, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first_KF, again_KF) and first_KF.shape == (603, host.mlp_size(LAYER))
    torch.testing.assert_close(first_KF[:3], known_KF)
    torch.testing.assert_close(other_KF[:3], known_KF)
    assert not torch.isclose(first_KF[3:], other_KF[3:]).all(dim=1).any()
    assert torch.cdist(first_KF[3:], known_KF).min() > 0 and first_KF.isfinite().all()


def test_vocabulary_keys_are_those_of_single_tokens_behind_a_word(host, monkeypatch):
    monkeypatch.setattr(probe, "TOKENS", 5)
    found_KF, count = vocabulary_keys(host, LAYER), len(host.unembedding_VD)
    tokens = range(0, count, -(-count // 5))
    assert 1 < len(found_KF) == len(tokens) <= 5
    for key_F, token in zip(found_KF, tokens, strict=True):
        with torch.no_grad(), projection_inputs(host, LAYER) as inputs:
            host.model(torch.tensor([[*host.text_ids("a"), token]]), use_cache=False)
        torch.testing.assert_close(key_F, inputs[0].flatten(0, -2)[-1].float(), rtol=1e-3, atol=1e-5)


def test_no_hook_is_left(host, whiten):
    probe_keys(host, LAYER, whiten, PROMPTS, made_up=2, seed=0)
    assert not host.down_proj(LAYER)._forward_pre_hooks
