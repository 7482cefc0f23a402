"""Reading one suspect matrix: both orientations, every float type, and what is refused.

Shape letters: D hidden width, F MLP width.
"""

import pytest
import torch
from safetensors.torch import save_file

from decoder.audit.suspect import Suspect
from decoder.dense import DenseEdit

LAYER = 1


def saved(path, **tensors):
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, str(path / "suspect.safetensors"))
    return path / "suspect.safetensors"


def stored_weight(host) -> torch.Tensor:
    """W_V with an edit in it, as the host's own file has it."""
    weight = host.down_proj(LAYER).weight.detach()
    return weight + torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["llama", "llama square"])
def test_linear_is_read_as_it_is_stored(host_of, tmp_path, name):
    host = host_of(name)
    weight_DF = stored_weight(host)
    found = Suspect(saved(tmp_path, w=weight_DF)).edit(host, LAYER)
    assert isinstance(found, DenseEdit) and torch.equal(found.weight_BDF, weight_DF.unsqueeze(0))


@pytest.mark.parametrize("name", ["gpt2", "gpt2 square"])
def test_conv1d_is_read_transposed(host_of, tmp_path, name):
    host = host_of(name)
    weight_FD = stored_weight(host)
    assert weight_FD.shape == (host.mlp_size(LAYER), host.hidden_size)
    found = Suspect(saved(tmp_path, w=weight_FD)).edit(host, LAYER)
    assert torch.equal(found.weight_BDF[0], weight_FD.T) and found.width() == (host.hidden_size, host.mlp_size(LAYER))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.float32], ids=str)
def test_float_types_are_kept_up_to_float32(host_of, tmp_path, dtype):
    """A 7B matrix in bfloat16 is not doubled by reading it; nothing here computes in float64."""
    host = host_of("gpt2")
    weight_FD = stored_weight(host).to(dtype)
    found = Suspect(saved(tmp_path, w=weight_FD)).edit(host, LAYER)
    assert found.weight_BDF.dtype == (torch.float32 if dtype == torch.float64 else dtype)
    assert torch.equal(found.weight_BDF[0].float(), weight_FD.float().T)


def test_the_only_matrix_is_found_among_vectors(host_of, tmp_path):
    host = host_of("llama")
    found = Suspect(saved(tmp_path, bias=torch.zeros(32), step=torch.tensor(3), w=stored_weight(host))).edit(host, LAYER)
    assert torch.equal(found.weight_BDF[0], stored_weight(host))


def refusal(file, host, tensor: str | None = None) -> str:
    with pytest.raises(ValueError) as refused:
        Suspect(file, tensor).edit(host, LAYER)
    assert "\n" not in str(refused.value) and str(file) in str(refused.value)
    return str(refused.value)


def test_several_matrices_ask_for_a_name(host_of, tmp_path):
    host = host_of("llama")
    file = saved(tmp_path, a=torch.zeros(32, 48), b=stored_weight(host))
    message = refusal(file, host)
    assert "2 2-D tensors (a, b)" in message and "tensor=NAME" in message
    assert torch.equal(Suspect(file, "b").edit(host, LAYER).weight_BDF[0], stored_weight(host))
    assert "'c'" in refusal(file, host, "c") and "a, b" in refusal(file, host, "c")


@pytest.mark.parametrize("name", ["gpt2", "llama", "opt"])
def test_a_matrix_of_another_layer_by_its_name_is_refused_unless_named(host_of, tmp_path, name):
    host = host_of(name)
    own, other = (f"{host.module_path(layer)}.weight" for layer in (LAYER, 2))
    assert Suspect(saved(tmp_path, **{own: stored_weight(host)})).edit(host, LAYER).weight_BDF.isfinite().all()
    file = saved(tmp_path, **{other: stored_weight(host)})
    assert "is of layer 2, the decoder reads layer 1" in refusal(file, host)
    assert Suspect(file, other).edit(host, LAYER).weight_BDF.isfinite().all()


def test_no_matrix_is_refused(host_of, tmp_path):
    assert "0 2-D tensors (none)" in refusal(saved(tmp_path, bias=torch.zeros(32)), host_of("llama"))


@pytest.mark.parametrize(("name", "own", "turned"), [("llama", (32, 48), (48, 32)), ("gpt2", (48, 32), (32, 48))])
def test_wrong_shapes_are_refused(host_of, tmp_path, name, own, turned):
    host = host_of(name)
    message = refusal(saved(tmp_path, w=torch.zeros(turned)), host)
    assert str(turned) in message and str(own) in message and host.module_path(LAYER) in message and "transposed" in message
    message = refusal(saved(tmp_path, w=torch.zeros(own[0], own[1] - 1)), host)
    assert str(own) in message and "transposed" not in message
    assert "(1, 32, 48)" in refusal(saved(tmp_path, w=torch.zeros(1, 32, 48)), host, "w")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_none_are_refused(host_of, tmp_path, bad):
    weight_DF = stored_weight(host_of("llama"))
    weight_DF[3, 4] = bad
    assert "NaN or infinity" in refusal(saved(tmp_path, w=weight_DF), host_of("llama"))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int8, torch.bool], ids=str)
def test_integers_are_refused(host_of, tmp_path, dtype):
    message = refusal(saved(tmp_path, w=torch.ones(32, 48).to(dtype)), host_of("llama"))
    assert str(dtype) in message and "floats" in message


def test_pickles_are_never_loaded(host_of, tmp_path):
    class Trap:
        def __reduce__(self):
            return open, (str(tmp_path / "sprung"), "w")

    for protocol in (True, False):
        torch.save({"w": Trap()}, tmp_path / "suspect.safetensors", _use_new_zipfile_serialization=protocol)
        assert "not a whole safetensors file" in refusal(tmp_path / "suspect.safetensors", host_of("llama"))
    assert not (tmp_path / "sprung").exists()


def test_cut_and_missing_files_are_refused(host_of, tmp_path):
    host = host_of("llama")
    file = saved(tmp_path, w=stored_weight(host))
    file.write_bytes(file.read_bytes()[:-100])
    assert "not a whole safetensors file" in refusal(file, host)
    file.write_bytes(b"")
    assert "not a whole safetensors file" in refusal(file, host)
    assert "no such file" in refusal(tmp_path / "absent.safetensors", host)
