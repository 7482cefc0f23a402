"""Checkpoints that hypothesis damages: whatever the bytes are, they are read or refused with a ValueError, never another error."""

import io
import json
import shutil
import zipfile

import numpy as np
import pytest
import torch
from edited import LAYER, outer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from decoder.audit.scan import Scan, read_once
from decoder.audit.suspect import Suspect

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
INDEX, WHOLE, SHARDS = "model.safetensors.index.json", "model.safetensors", ("a.safetensors", "b.safetensors")
ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"


@pytest.fixture(scope="module")
def host(host_of):
    return host_of("llama")


@pytest.fixture(scope="module")
def files(host) -> dict[str, bytes]:
    """A checkpoint in every layout, an adapter and a matrix, as they ought to be."""
    state = {name: tensor.detach().clone().contiguous() for name, tensor in host.model.state_dict().items()}
    name = f"{host.module_path(LAYER)}.weight"
    state[name] += outer(host, 0)
    halves = dict(list(state.items())[::2]), dict(list(state.items())[1::2])
    index = {"weight_map": {tensor: shard for shard, half in zip(SHARDS, halves, strict=True) for tensor in half}}
    lora = f"base_model.model.{host.module_path(LAYER)}"
    packed = io.BytesIO()
    np.savez(packed, edited=state[name].numpy())
    return {
        WHOLE: save(state),
        INDEX: json.dumps(index).encode(),
        **{shard: save(half) for shard, half in zip(SHARDS, halves, strict=True)},
        "config.json": json.dumps(host.model.config.to_dict(), default=str).encode(),
        ADAPTER: save(
            {f"{lora}.lora_A.weight": torch.randn(2, host.mlp_size(LAYER)), f"{lora}.lora_B.weight": torch.randn(host.hidden_size, 2)}
        ),
        ADAPTER_CONFIG: json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["down_proj"]}).encode(),
        "one.safetensors": save({"edited": state[name]}),
        "one.npz": packed.getvalue(),
    }


def damaged(data, name: str, whole: bytes) -> bytes:
    """Bytes of a file: as they ought to be, cut, with others in them, with another header, or made up."""
    kind = data.draw(st.sampled_from(("whole", "cut", "changed", "header", "made up")))
    if kind == "cut":
        return whole[: data.draw(st.integers(0, len(whole)))]
    if kind == "changed":
        start, new = data.draw(st.integers(0, min(len(whole) - 1, 400))), data.draw(st.binary(min_size=1, max_size=12))
        return whole[:start] + new + whole[start + data.draw(st.integers(0, 12)) :]
    if kind == "made up":
        return data.draw(st.binary(max_size=200))
    if kind == "header":
        return _other_header(data, name, whole)
    return whole


def _other_header(data, name: str, whole: bytes) -> bytes:
    if name.endswith(".json"):
        described = json.loads(whole)
        key = data.draw(st.sampled_from([*described, "quantization_config", "auto_map", "transformers_weights", "vocab_size"]))
        return json.dumps(described | {key: data.draw(JSON)}).encode()
    if name.endswith(".npz"):
        shape = data.draw(st.lists(st.integers(-1, 10**12), max_size=3).map(tuple))
        kind = data.draw(st.sampled_from(["<f4", "<f8", "|O", "<U9", "<c8", "|b1", "nonsense"]))
        header = f"{{'descr': {kind!r}, 'fortran_order': {data.draw(st.booleans())}, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr(
                "edited.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data.draw(st.binary(max_size=64))
            )
        return packed.getvalue()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    tensor = data.draw(st.sampled_from(sorted(header)))
    field = data.draw(st.sampled_from(["dtype", "shape", "data_offsets"]))
    others = {"dtype": st.sampled_from(["F16", "F64", "I8", "F8_E4M3", "BOOL", "U4"]), "shape": st.lists(st.integers(-1, 99), max_size=3)}
    header[tensor][field] = data.draw(others.get(field, st.lists(st.integers(-1, 9999), max_size=3)) | JSON)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + whole[8 + length :]


def look(host, path) -> None:
    """Everything an audit reads of a suspect."""
    suspect = Suspect(path)
    assert suspect.notes is not None and suspect.matrices is not None
    for name in suspect.checkpoint.names:
        suspect.checkpoint.dtype(name), suspect.checkpoint.tensor(name)
    for _, _, found in read_once([Scan(suspect, host, [LAYER])]):
        assert isinstance(found, ValueError) or found.width() == tuple(host.weight_DF(LAYER).shape)


def fuzz(host, files, folder, examples: int, **others) -> None:
    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck), **others)
    @given(st.data())
    def looked_at(data):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        names = data.draw(st.sets(st.sampled_from(sorted(files)), min_size=1, max_size=4))
        for name in sorted(names):
            (folder / name).write_bytes(damaged(data, name, files[name]))
        place = data.draw(st.sampled_from([folder, *(folder / name for name in sorted(names))]))
        try:
            look(host, place)
        except ValueError as error:
            assert str(error)

    looked_at()


def test_damaged_checkpoints(host, files, tmp_path):
    fuzz(host, files, tmp_path / "suspect", 200, derandomize=True)


@pytest.mark.slow
def test_twenty_thousand_damaged_checkpoints(host, files, tmp_path):
    # The same ones every time, so that what fails is what was changed. Without derandomize it looks for more.
    fuzz(host, files, tmp_path / "suspect", 20_000, derandomize=True)
