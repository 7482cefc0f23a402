"""Tensors of GGUF files: those of the safetensors twin, whatever the file did to them; and files that are not whole."""

import gguf
import pytest
import torch
from gguf_files import ARCHITECTURES, TWINS, twin_of, write_gguf

from data.import_edits.sources import sources
from decoder.audit.suspect import Suspect
from decoder.checkpoint.folders import is_checkpoint_folder
from decoder.checkpoint.gguf_file import GgufFile
from decoder.checkpoint.gguf_header import find_gguf, read_header
from decoder.checkpoint.gguf_host import host_folder
from decoder.checkpoint.reader import Checkpoint
from decoder.families import FAMILIES

STEPS = {"F16": 2**-11, "BF16": 2**-8, "Q8_0": 1 / 254, "Q5_1": 1 / 31, "Q5_0": 1 / 16, "Q4_1": 1 / 15, "Q4_0": 1 / 8}
"""Kind -> how far a number may be from what it stands for, as a share of the largest of its 32."""


def is_rounded(checkpoint, name, other):
    return checkpoint.is_rounded(name, checkpoint.tensor(name), other)


@pytest.fixture(scope="module")
def llama():
    return twin_of("llama")


@pytest.mark.parametrize("name", TWINS)
def test_float32_is_the_twin_exactly(name, tmp_path):
    host = twin_of(name)
    checkpoint = Checkpoint(write_gguf(tmp_path / "twin.gguf", host))
    expected = {key: value for key, value in host.model.state_dict().items() if key in checkpoint.names}
    tied = {"lm_head.weight"} if host.model.config.tie_word_embeddings else set()
    assert expected.keys() == set(checkpoint.names) == host.model.state_dict().keys() - tied
    for key, value in expected.items():
        shifted = "gemma" in name and key.endswith("norm.weight")  # 1 is added and taken off in float32
        torch.testing.assert_close(checkpoint.tensor(key), value, rtol=0, atol=1e-7 if shifted else 0)
        assert is_rounded(checkpoint, key, value) and not is_rounded(checkpoint, key, value + 0.5), key


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", STEPS)
def test_other_types_are_the_twin_to_their_step_and_rounding_is_told(name, kind, tmp_path):
    host = twin_of(name)
    checkpoint = Checkpoint(write_gguf(tmp_path / "twin.gguf", host, kind))
    for key in checkpoint.matrices:
        value, found = host.model.state_dict()[key], checkpoint.tensor(key)
        error = (found.float() - value).abs().max()
        assert 0 < error <= STEPS[kind] * value.abs().max() and checkpoint.noise(key) is None or kind.startswith("Q")
        assert is_rounded(checkpoint, key, value) and is_rounded(checkpoint, key, found.float()), "rounding is no difference"
        further = value + 0.02 * torch.outer(torch.ones(len(value)), torch.ones(value.shape[1]))
        assert not is_rounded(checkpoint, key, further)
        if kind.startswith("Q"):
            assert checkpoint.noise(key).name == kind and checkpoint.noise(key).explains(found - value)


def test_rows_are_read_alone(llama, tmp_path, monkeypatch):
    checkpoint = Checkpoint(write_gguf(tmp_path / "twin.gguf", llama, "Q4_1"))
    name = "model.layers.1.mlp.down_proj.weight"
    whole = checkpoint.tensor(name)
    monkeypatch.setattr("decoder.checkpoint.reader.CHUNK", 5 * 64)
    parts = [*checkpoint.parts(name)]
    assert [len(part) for part in parts] == [5] * 6 + [2] and torch.equal(torch.cat(parts), whole)
    value, row = llama.model.state_dict()[name], 10
    assert torch.equal(checkpoint.as_stored(name, value[row : row + 5], row), whole[row : row + 5])
    turned = "model.layers.1.self_attn.q_proj.weight"
    assert len([*checkpoint.parts(turned)]) == 1, "its rows stand in another order in the file"


@pytest.mark.parametrize("kind", ["Q4_K", "Q5_K", "Q6_K", "Q2_K", "Q3_K", "IQ4_XS", "IQ4_NL"])
def test_types_that_cannot_be_written_are_read(kind, tmp_path):
    """Any bytes are some numbers; scales of 1."""
    quant = gguf.GGMLQuantizationType[kind]
    size, width = gguf.GGML_QUANT_SIZES[quant]
    raw = torch.randint(0, 256, (8, 256 // size * width), generator=torch.Generator().manual_seed(0), dtype=torch.uint8).numpy()
    raw.reshape(-1, width)[:, {"Q6_K": slice(-2, None), "Q3_K": slice(-2, None), "Q2_K": slice(-4, None)}.get(kind, slice(0, 4))] = 0x3C
    raw.reshape(-1, width)[:, {"Q6_K": -2, "Q3_K": -2}.get(kind, 0)] = 0
    raw.reshape(-1, width)[:, 4:16] |= 1  # where some types have scales of their parts: none is 0
    file = tmp_path / "k.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_tensor("blk.0.ffn_down.weight", raw, raw_dtype=quant)
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file(), writer.close()
    checkpoint, name = Checkpoint(file), "model.layers.0.mlp.down_proj.weight"
    found = checkpoint.tensor(name)
    assert torch.equal(found, torch.from_numpy(gguf.dequantize(raw, quant))) and found.shape == (8, 256)
    nearby = found + 0.1 * found.diff(dim=1, append=found[:, :1]).sign() * found.abs().amin()
    assert is_rounded(checkpoint, name, found) and torch.equal(checkpoint.as_stored(name, nearby, 0), found)
    assert not is_rounded(checkpoint, name, found + found.abs().mean()), "one direction that no rounding has"


def test_the_tables_are_those_of_the_package():
    """`gguf` knows what llama.cpp's converter calls the modules of each architecture."""
    for model_type, architecture in ARCHITECTURES.items():
        family, known = FAMILIES[model_type], gguf.get_tensor_name_map(architecture, 2)
        assert family.gguf.architecture == gguf.MODEL_ARCH_NAMES[architecture]
        # One table serves several architectures, and not each has every module.
        for theirs, ours in family.gguf.top.items():
            assert known.get_name(ours) in (theirs, None)
        for theirs, ours in family.gguf.blocks.items():
            assert known.get_name(f"{family.blocks}.1.{ours}") in (f"blk.1.{theirs}", None), (model_type, ours)


def test_a_file_in_parts(llama, tmp_path):
    first = write_gguf(tmp_path / "twin.gguf", llama, "Q8_0", split=12)
    assert first.name == "twin-00001-of-00003.gguf"
    whole = Checkpoint(write_gguf(tmp_path / "whole.gguf", llama, "Q8_0"))
    (tmp_path / "whole.gguf").unlink()
    for path in (first, tmp_path):
        found = Checkpoint(path)
        assert found.names == whole.names and len(found.files) == 3 and found.ignored == []
    name = found.names[-1]
    assert torch.equal(found.tensor(name), Checkpoint(first).tensor(name))
    second = tmp_path / "twin-00002-of-00003.gguf"
    with pytest.raises(ValueError, match="is part 2 of 3. Give the first"):
        Checkpoint(second)
    second.rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="twin-00002-of-00003.gguf is missing, one of 3 parts"):
        Checkpoint(first)


@pytest.mark.parametrize("number", [1, 2])
def test_a_part_under_another_name_is_no_whole_file(llama, tmp_path, number):
    write_gguf(tmp_path / "twin.gguf", llama, split=12)
    part = (tmp_path / f"twin-0000{number}-of-00003.gguf").rename(tmp_path / "model.gguf")
    with pytest.raises(ValueError, match=f"model.gguf is part {number} of 3, .* as NAME-00001-of-00003.gguf to NAME-00003-of-"):
        Checkpoint(part)


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"split": 15}, "twin-00002-of-00003.gguf is part 2 of 3 by its name, 2 of 2 by its metadata"),
        ({"split": 12, "as_part": 3}, "twin-00002-of-00003.gguf is part 2 of 3 by its name, 3 of 3 by its metadata"),
        ({"split": 13}, "twin-00003-of-00003.gguf: blk.* is also in twin-00002-of-00003.gguf: parts of different files"),
        ({"split": 12, "kept": 11}, "twin-00001-of-00003.gguf speaks of 30 tensors in all its parts, there are 29"),
        ({"split": 0}, "twin-00002-of-00003.gguf lies among parts of a file, but does not say which"),
    ],
)
def test_parts_of_different_files_are_refused(llama, tmp_path, others, message):
    first = write_gguf(tmp_path / "twin.gguf", llama, split=12)
    (tmp_path / "other").mkdir()
    part, kept = others.pop("as_part", 2), others.pop("kept", None)
    write_gguf(tmp_path / "other" / "other.gguf", llama, **others)
    other = [*(tmp_path / "other").glob(f"other*0000{part}-of*"), tmp_path / "other" / "other.gguf"][0]
    second = other.replace(tmp_path / "twin-00002-of-00003.gguf")
    if kept is not None:
        content = bytearray(second.read_bytes())
        content[8:16] = kept.to_bytes(8, "little")
        second.write_bytes(content)
    with pytest.raises(ValueError, match=message) as refused:
        Checkpoint(first)
    assert "\n" not in str(refused.value)


def test_a_folder_without_the_first_part_says_what_is_missing(llama, tmp_path):
    write_gguf(tmp_path / "twin.gguf", llama, split=12).unlink()
    missing = "twin-00001-of-00003.gguf is missing, one of 3 parts"
    for path in (tmp_path, tmp_path / "twin-00002-of-00003.gguf", tmp_path / "twin-00003-of-00003.gguf"):
        with pytest.raises(ValueError, match=missing):
            Checkpoint(path)
        with pytest.raises(ValueError, match=missing):
            host_folder(path, name="x", dtype="float32", cache_dir=str(tmp_path / "cache"))
    (edited,) = sources(tmp_path)
    with pytest.raises(ValueError, match=missing):
        Suspect(edited)
    assert is_checkpoint_folder(tmp_path) and not (tmp_path / "cache").exists()
    write_gguf(tmp_path / "whole.gguf", llama)
    assert [path.name for path in sources(tmp_path)] == ["twin-00002-of-00003.gguf", "whole.gguf"], "one edit that is skipped, and one"


def test_several_files_of_a_folder(llama, tmp_path):
    file = write_gguf(tmp_path / "one.gguf", llama)
    assert find_gguf(tmp_path) == file and find_gguf(file) == file
    write_gguf(tmp_path / "two.gguf", llama)
    assert find_gguf(tmp_path) is None
    with pytest.raises(ValueError, match="2 GGUF files .*one.gguf.*Give one of them"):
        Checkpoint(tmp_path)


def test_files_cut_anywhere_are_one_line(llama, tmp_path):
    file = write_gguf(tmp_path / "twin.gguf", llama, "Q8_0")
    content = file.read_bytes()
    for length in [*range(0, 400, 7), *range(400, len(content), len(content) // 60)]:
        (tmp_path / "cut.gguf").write_bytes(content[:length])
        with pytest.raises(ValueError, match="is not a whole GGUF file" if length < 4 else "cut short") as refused:
            Checkpoint(tmp_path / "cut.gguf")
        assert "\n" not in str(refused.value)
    (tmp_path / "cut.gguf").write_bytes(b"")
    with pytest.raises(ValueError, match="cut.gguf is not a whole GGUF file: it is empty: download or copy it again"):
        Checkpoint(tmp_path / "cut.gguf")


def test_damaged_files_are_refused_or_read(llama, tmp_path):
    """Never another error than ValueError, whatever a byte of the header is changed to."""
    content = bytearray(write_gguf(tmp_path / "twin.gguf", llama, "Q8_0").read_bytes())
    generator = torch.Generator().manual_seed(0)
    for _ in range(150):
        at, value = (int(torch.randint(0, most, (), generator=generator)) for most in (9000, 256))
        damaged = bytearray(content)
        damaged[at : at + 2] = bytes([value, 255 - value])
        (tmp_path / "damaged.gguf").write_bytes(damaged)
        try:
            checkpoint = Checkpoint(tmp_path / "damaged.gguf")
        except ValueError as error:
            assert "\n" not in str(error)
        else:
            checkpoint.tensor(checkpoint.names[0])


@pytest.mark.parametrize(
    ("metadata", "message"),
    [({"general.architecture": "mamba"}, "architecture 'mamba' are not read, those of gpt2, llama, .* are. Give the safetensors")],
)
def test_what_is_not_known_is_said(llama, tmp_path, metadata, message):
    with pytest.raises(ValueError, match=message):
        GgufFile(write_gguf(tmp_path / "twin.gguf", llama, metadata=metadata))


def test_a_type_that_is_not_known_is_said(llama, tmp_path):
    file = write_gguf(tmp_path / "twin.gguf", llama)
    content, name = file.read_bytes(), b"blk.0.ffn_down.weight"
    at = content.index(name) + len(name) + 4 + 16  # dimensions, their lengths
    file.write_bytes(content[:at] + b"\xf0\0\0\0" + content[at + 4 :])
    with pytest.raises(ValueError, match="blk.0.ffn_down.weight is of ggml type 240, which the package gguf cannot undo"):
        Checkpoint(file)


def test_other_versions_and_other_files_are_refused(tmp_path):
    file = tmp_path / "x.gguf"
    for content, message in [
        (b"GGUF\1\0\0\0" + bytes(16), "of version 1, versions 2 and 3 are read"),
        (b"GGUF\0\0\0\3" + bytes(16), "in the other order"),
    ]:
        file.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            Checkpoint(file)
    file.write_bytes(b"none")
    with pytest.raises(ValueError, match="is no GGUF file"):
        read_header(file)
