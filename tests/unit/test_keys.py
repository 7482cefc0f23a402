"""Key statistics against a sum made by hand, their cache, and the solver."""

import logging

import pytest
import tiny_hosts
import torch
from tiny_hosts import tiny_host

from data import keys
from data.keys import KeyStatistics, second_moment, whitener

LAYER = 2
TEXTS = ["Ada of the north works as a baker .", "Ben", "Carl was born in Paris", "the small red city .", "Dora is a singer ."]


def plain_moment(host, rows: list[list[int]]) -> torch.Tensor:
    """One text at a time, no padding, whole forwards."""
    caught = {}
    handle = host.down_proj(LAYER).register_forward_hook(lambda module, args, out: caught.update(key=args[0][0]))
    total, count = 0, 0
    for row in rows:
        host.model(torch.tensor([row]))
        total, count = total + caught["key"].double().T @ caught["key"].double(), count + len(row)
    handle.remove()
    return total / count


@pytest.fixture(params=[tiny_hosts.qwen2, tiny_hosts.gpt2], ids=["qwen2", "gpt2"])
def host(request):
    return tiny_host(request.param)


def test_padding_does_not_count(host):
    statistics = second_moment(host, LAYER, TEXTS, 1000)
    rows = [host.text_ids(text) for text in TEXTS]
    assert statistics.count == sum(map(len, rows))
    torch.testing.assert_close(statistics.moment_FF.double(), plain_moment(host, rows), rtol=1e-4, atol=1e-6)


def test_small_batches_give_the_same(host, monkeypatch):
    whole = second_moment(host, LAYER, TEXTS, 1000)
    monkeypatch.setattr(keys, "BATCH_TOKENS", 9)
    monkeypatch.setattr(keys, "WINDOW", 2)
    parts = second_moment(host, LAYER, TEXTS, 1000)
    assert parts.count == whole.count
    torch.testing.assert_close(parts.moment_FF, whole.moment_FF, rtol=1e-4, atol=1e-6)


def test_budget_cuts_the_text_that_passes_it(host):
    statistics = second_moment(host, LAYER, TEXTS, 11)
    first, second, third = (host.text_ids(text) for text in TEXTS[:3])
    assert statistics.count == 11
    torch.testing.assert_close(statistics.moment_FF.double(), plain_moment(host, [first, second, third[:1]]), rtol=1e-4, atol=1e-6)


def test_blocks_above_do_not_run(host, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("ran above the edited projection")

    monkeypatch.setattr(host.blocks[LAYER + 1], "forward", never)
    second_moment(host, LAYER, TEXTS, 1000)
    assert not host.down_proj(LAYER)._forward_pre_hooks


def test_cache_is_read_back_bit_for_bit(host, tmp_path, monkeypatch):
    made = second_moment(host, LAYER, TEXTS, 1000, tmp_path)
    (file,) = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert file.parent == tmp_path / "keys" / f"tiny-{host.fingerprint}"
    monkeypatch.setattr(keys, "_keys", lambda *args: pytest.fail("ran the host although the cache has the answer"))
    read = second_moment(host, LAYER, TEXTS, 1000, tmp_path)
    assert torch.equal(read.moment_FF, made.moment_FF) and read.count == made.count


def test_cache_knows_layer_text_and_budget(host, tmp_path):
    second_moment(host, LAYER, TEXTS, 1000, tmp_path)
    second_moment(host, 1, TEXTS, 1000, tmp_path)
    second_moment(host, LAYER, TEXTS[:-1], 1000, tmp_path)
    second_moment(host, LAYER, TEXTS, 10, tmp_path)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 4


def test_damaged_cache_is_made_again(host, tmp_path, caplog):
    made = second_moment(host, LAYER, TEXTS, 1000, tmp_path)
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:50])
    assert torch.equal(second_moment(host, LAYER, TEXTS, 1000, tmp_path).moment_FF, made.moment_FF)
    assert "damaged" in caplog.text


def test_failed_write_leaves_nothing(host, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(keys, "save_file", full)
    with pytest.raises(OSError, match="disk full"):
        second_moment(host, LAYER, TEXTS, 1000, tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_no_text_and_no_layer_are_refused(host):
    with pytest.raises(ValueError, match="no token"):
        second_moment(host, LAYER, [], 1000)
    with pytest.raises(ValueError, match="layer=7"):
        second_moment(host, 7, TEXTS, 1000)


def random_statistics(rows: int = 200, width: int = 12) -> KeyStatistics:
    sample = torch.randn(rows, width, generator=torch.Generator().manual_seed(0))
    return KeyStatistics(sample.T @ sample / rows, rows)


@pytest.mark.parametrize("ridge", [0, 0.01, 0.5])
def test_solver_inverts_the_moment_and_its_ridge(ridge):
    statistics = random_statistics()
    moment = statistics.moment_FF.double()
    full = moment + ridge * torch.linalg.eigvalsh(moment)[-1] * torch.eye(12)
    vectors = torch.randn(3, 12)
    torch.testing.assert_close(whitener(statistics, ridge)(vectors) @ full, vectors.double(), rtol=1e-6, atol=1e-6)


def test_identity_needs_no_statistics():
    vectors = torch.randn(3, 12)
    assert torch.equal(whitener(None, "identity")(vectors), vectors.double())


def test_singular_moment_falls_back_to_the_pseudo_inverse(caplog):
    statistics = random_statistics(rows=5)
    vectors = torch.randn(3, 12)
    with caplog.at_level(logging.WARNING):
        found = whitener(statistics, 0)(vectors)
    assert "singular" in caplog.text
    torch.testing.assert_close(found, vectors.double() @ torch.linalg.pinv(statistics.moment_FF.double(), rtol=1e-5), rtol=1e-3, atol=1e-3)
    caplog.clear()
    assert whitener(statistics, 0.01)(vectors).isfinite().all() and not caplog.text


def test_moment_that_only_rounding_keeps_regular_counts_as_singular(caplog):
    statistics = KeyStatistics(torch.diag(torch.tensor([1.0, 0.5, 1e-12])), 3)
    torch.testing.assert_close(whitener(statistics, 0)(torch.ones(1, 3)), torch.tensor([[1.0, 2.0, 0.0]], dtype=torch.float64))
    assert "singular" in caplog.text


@pytest.mark.parametrize("ridge", [-1, "identiy", float("nan"), True])
def test_bad_ridge_is_refused(ridge):
    with pytest.raises(ValueError, match="edits.ridge"):
        whitener(random_statistics(), ridge)
