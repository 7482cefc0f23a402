"""Key statistics against a sum made by hand, one pass for several layers, memory, their cache, and the solver."""

import logging

import pytest
import torch
from rome_twin import second_moment
from tiny_hosts import POCKET, build_host

from data.keys import cache as key_cache
from data.keys import moments as key_moments
from data.keys.cache import KeyStatistics
from data.keys.moments import second_moments
from data.keys.whiten import whitener

LAYER = 2
GIB = 2**30
TEXTS = ["Ada of the north works as a baker .", "Ben", "Carl was born in Paris", "the small red city .", "Dora is a singer ."]


def plain_moment(host, rows: list[list[int]], layer: int = LAYER) -> torch.Tensor:
    """The slow twin: one layer, one text at a time, no padding, whole forwards, float64."""
    caught = {}
    handle = host.down_proj(layer).register_forward_hook(lambda module, args, out: caught.update(key=args[0].flatten(0, -2)))
    total, count = 0, 0
    for row in rows:
        host.model(torch.tensor([row]))
        total, count = total + caught["key"].double().T @ caught["key"].double(), count + len(row)
    handle.remove()
    return total / count


@pytest.fixture(params=[POCKET, "gpt2"], ids=str)
def host(request):
    return build_host(request.param)


def test_padding_does_not_count(host):
    statistics = second_moment(host, LAYER, TEXTS, 1000)
    rows = [host.text_ids(text) for text in TEXTS]
    assert statistics.count == sum(map(len, rows))
    torch.testing.assert_close(statistics.moment_FF.double(), plain_moment(host, rows), rtol=1e-4, atol=1e-6)


def test_small_batches_give_the_same(host, monkeypatch):
    whole = second_moment(host, LAYER, TEXTS, 1000)
    monkeypatch.setattr(key_moments, "BATCH_TOKENS", 9)
    monkeypatch.setattr(key_moments, "WINDOW", 2)
    parts = second_moment(host, LAYER, TEXTS, 1000)
    assert parts.count == whole.count
    torch.testing.assert_close(parts.moment_FF, whole.moment_FF, rtol=1e-4, atol=1e-6)


def test_budget_cuts_the_text_that_passes_it(host):
    statistics = second_moment(host, LAYER, TEXTS, 11)
    first, second, third = (host.text_ids(text) for text in TEXTS[:3])
    assert statistics.count == 11
    torch.testing.assert_close(statistics.moment_FF.double(), plain_moment(host, [first, second, third[:1]]), rtol=1e-4, atol=1e-6)


def test_several_layers_in_one_pass_are_the_layers_alone(host):
    rows = [host.text_ids(text) for text in TEXTS]
    runs = []
    handle = host.model.base_model.register_forward_pre_hook(lambda module, args: runs.append(module))
    found = second_moments(host, [2, 0, 1], TEXTS, 1000)
    handle.remove()
    assert sorted(found) == [0, 1, 2] and len(runs) == 1
    for layer, statistics in found.items():
        torch.testing.assert_close(statistics.moment_FF.double(), plain_moment(host, rows, layer), rtol=1e-4, atol=1e-6)
        # Products are made and summed in the same order: not a bit differs.
        assert torch.equal(statistics.moment_FF, second_moment(host, layer, TEXTS, 1000).moment_FF)
    assert not any(host.down_proj(layer)._forward_pre_hooks for layer in range(3))


def test_every_family_hands_over_the_keys_of_all_layers(any_host):
    """Flattened tokens, parallel attention, multimodal classes: one pass, as layer by layer and text by text."""
    rows = [any_host.text_ids(text) for text in TEXTS]
    layers = list(range(any_host.layers))
    for layer, statistics in second_moments(any_host, layers, TEXTS, 1000).items():
        torch.testing.assert_close(statistics.moment_FF.double(), plain_moment(any_host, rows, layer), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("dtype", "each"), [("float32", 8), ("bfloat16", 8)])
def test_batches_stay_within_the_memory_budget(dtype, each, monkeypatch):
    """`each` bytes a number: the keys as they come and without padding, and for a half-precision host in float32 too."""
    host = build_host(POCKET)
    host.model.to(getattr(torch, dtype))
    budget = 20 * each * host.mlp_size(LAYER)
    batches, run = [], key_moments._run

    def counted(host, catches, **inputs):
        batches.append(inputs["input_ids"].numel())
        run(host, catches, **inputs)

    monkeypatch.setattr(key_moments, "_run", counted)
    bounded = second_moments(host, [1, LAYER], TEXTS, 1000, memory_budget=budget / GIB)
    assert max(batches) <= 20 and len(batches) > 1
    batches.clear()
    whole = second_moments(host, [1, LAYER], TEXTS, 1000)
    assert len(batches) == 1
    # Kernels round otherwise for other shapes, so neither is the other to the bit: both are held against the same weights in float32, one
    # text at a time. Rounding that moves keys by a relative e (root mean square) moves entry (i, j) by at most 2 e √(C_ii C_jj), by
    # Cauchy-Schwarz. The steps up to a key, eps / 2 each, gave 5 eps at worst (float32: 10) over four hosts; in bfloat16 a text of one
    # token that is left out gives over 60 eps, padding that counts over 2,000.
    rows = [host.text_ids(text) for text in TEXTS]
    host.model.float()
    for layer in (1, LAYER):
        expected_FF = plain_moment(host, rows, layer)
        scale_FF = expected_FF.diagonal().outer(expected_FF.diagonal()).sqrt()
        for found in (bounded, whole):
            error = float(((found[layer].moment_FF - expected_FF).abs() / scale_FF).max())
            assert error < 16 * torch.finfo(getattr(torch, dtype)).eps


def test_a_text_that_the_budget_cannot_hold_is_refused(host):
    with pytest.raises(ValueError, match="keys.memory_budget: one text has 9 tokens, and the budget holds the keys of 8") as refused:
        second_moment(host, LAYER, TEXTS, 1000, memory_budget=8 * 8 * host.mlp_size(LAYER) / GIB)
    assert "\n" not in str(refused.value)


def test_long_texts_are_cut(host, monkeypatch):
    monkeypatch.setattr(key_moments, "LONGEST_TEXT", 4)
    rows = [host.text_ids(text)[:4] for text in TEXTS]
    found = second_moment(host, LAYER, TEXTS, 1000)
    assert found.count == sum(map(len, rows))
    torch.testing.assert_close(found.moment_FF.double(), plain_moment(host, rows), rtol=1e-4, atol=1e-6)


def test_only_layers_that_are_not_in_the_cache_are_counted(host, tmp_path, monkeypatch):
    alone = second_moment(host, LAYER, TEXTS, 1000, tmp_path)
    asked, count = [], key_moments._count
    monkeypatch.setattr(key_moments, "_count", lambda host, layers, *args: asked.append(layers) or count(host, layers, *args))
    found = second_moments(host, [0, 1, LAYER], TEXTS, 1000, tmp_path)
    assert asked == [[0, 1]] and torch.equal(found[LAYER].moment_FF, alone.moment_FF)
    assert second_moments(host, [0, 1, LAYER], TEXTS, 1000, tmp_path).keys() == {0, 1, LAYER} and len(asked) == 1
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3


def test_a_name_in_the_cache_is_what_it_was(host, tmp_path):
    """Statistics that users have are found: the name follows from text and budget alone."""
    second_moments(host, [LAYER, 0], ["Ada is a baker .", "Ben"], 7, tmp_path, memory_budget=0.5)
    assert sorted(file.name for file in tmp_path.rglob("*.safetensors")) == [
        f"layer{layer}-ddc4785afb842f47.safetensors" for layer in (0, LAYER)
    ]


def test_blocks_above_do_not_run(host, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("ran above the edited projection")

    monkeypatch.setattr(host.blocks[2], "forward", never)
    second_moment(host, 1, TEXTS, 1000)
    assert not host.down_proj(1)._forward_pre_hooks


def test_cache_is_read_back_bit_for_bit(host, tmp_path, monkeypatch):
    made = second_moment(host, LAYER, TEXTS, 1000, tmp_path)
    (file,) = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert file.parent == tmp_path / "keys" / f"{host.name}-{host.fingerprint}"
    monkeypatch.setattr(host.model.base_model, "forward", lambda *args: pytest.fail("ran the host although the cache has the answer"))
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

    monkeypatch.setattr(key_cache, "save_file", full)
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
