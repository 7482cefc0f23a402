"""GGUF files as suspects: the edit that was made before the file was rounded, and what lies around it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from changed_decoders import CONFIG, FACTS, changed_decoder
from edited import LAYER, outer, stored
from exported_runs import write_run
from gguf_files import twin_of, write_gguf
from safetensors.torch import save_file

import evaluate
from decoder.audit.decoded.answer import answer_for
from decoder.audit.describe import describe_answer
from decoder.audit.scan import Scan, read_once
from decoder.audit.suspect import Suspect
from decoder.checkpoint.gguf_host import host_folder
from decoder.config.commands import EvaluateConfig
from decoder.export.collection import export_best
from decoder.export.opened import open_decoder
from decoder.export.save import save_decoder
from decoder.host import Host
from decoder.report.results import find_runs

KINDS = ["F32", "F16", "BF16", "Q8_0", "Q4_1", "Q4_0", "Q5_1"]


@pytest.fixture(scope="module")
def llama():
    return twin_of("llama")


def planted(host: Host, b: int = 0) -> dict[str, torch.Tensor]:
    return {f"{host.module_path(LAYER)}.weight": stored(host, host.weight_DF(LAYER) + outer(host, b))}


def audited(file, host, **settings):
    scan = Scan(Suspect(file, **settings), host, [LAYER])
    ((_, _, edit),) = read_once([scan])
    return edit, scan


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gemma3_text", "gpt2", "phi3", "mistral"])
@pytest.mark.parametrize("kind", ["F32", "Q8_0", "Q4_1"])
def test_an_edit_is_read_and_nothing_else_differs(name, kind, tmp_path):
    host = twin_of(name)
    edit, scan = audited(write_gguf(tmp_path / "w.gguf", host, kind, changed=planted(host)), host)
    found_DF = edit.weight_BDF[0]
    most = {"F32": 0, "Q8_0": 1 / 240, "Q4_1": 1 / 15}[kind] * float(found_DF.abs().max())
    torch.testing.assert_close(found_DF, host.weight_DF(LAYER) + outer(host, 0), rtol=0, atol=most)
    around = scan.summary(LAYER)
    assert around["distance"] == 0 and around["compared"] == len(scan.own) - 1 and not scan.suspect.is_own(host, LAYER)
    assert set(scan.distance) == host.model.state_dict().keys() - ({"lm_head.weight"} if host.model.config.tie_word_embeddings else set())
    assert scan.distance[f"{host.module_path(LAYER)}.weight"] > 0.01
    assert any(f"rounded to {kind}" in note for note in scan.suspect.notes) is kind.startswith("Q")


@pytest.mark.parametrize("kind", KINDS)
def test_the_hosts_own_matrices_are_its_own(llama, kind, tmp_path):
    file = write_gguf(tmp_path / "w.gguf", llama, kind)
    _, scan = audited(file, llama)
    assert scan.suspect.is_own(llama, LAYER) and not any(scan.distance.values())
    rounded = Host.load(host_folder(file, name="x", dtype="float32", cache_dir=str(tmp_path)), name="x")
    assert audited(file, rounded)[1].suspect.is_own(rounded, LAYER), "also those of the host that was made from it"


def test_further_training_is_seen(llama, tmp_path):
    name = "model.layers.0.self_attn.q_proj.weight"
    changed = {name: llama.model.state_dict()[name] * 1.01}
    _, scan = audited(write_gguf(tmp_path / "w.gguf", llama, "Q8_0", changed=changed), llama)
    assert scan.summary(LAYER)["farthest"] == name and 0.005 < scan.summary(LAYER)["distance"] < 0.02


@pytest.fixture
def decoders(llama, tmp_path):
    """A decoder whose host was made from a GGUF file, as a run leaves it."""
    file = write_gguf(tmp_path / "host.gguf", llama, "F32")
    folder = host_folder(file, name="tiny", dtype="float32", cache_dir=str(tmp_path / "cache"))
    host = Host.load(folder, name="tiny")
    save_decoder(tmp_path / "decoder", changed_decoder(host), FACTS)
    return EvaluateConfig(decoder=str(tmp_path / "decoder"), cache_dir=str(tmp_path / "cache")), file, host


def test_the_answer_is_that_of_the_matrix(decoders, tmp_path):
    cfg, _, host = decoders
    save_file({"w": next(iter(planted(host).values()))}, tmp_path / "w.safetensors")
    expected = answer_for(cfg, Suspect(tmp_path / "w.safetensors"))
    found = {}
    for kind in ("F32", "Q8_0"):
        write_gguf(tmp_path / "w.gguf", host, kind, changed=planted(host))
        found[kind] = answer_for(cfg, Suspect(tmp_path / "w.gguf"))
    assert found["F32"]["objects"] == expected["objects"] and found["F32"]["surroundings"]["distance"] == 0
    assert [one["text"] for one in found["Q8_0"]["objects"]] == [one["text"] for one in expected["objects"]]
    write_gguf(tmp_path / "w.gguf", host, "Q4_1")
    own = answer_for(cfg, Suspect(tmp_path / "w.gguf"))
    assert own["unedited"] and "Nothing was edited" in describe_answer(own) and "Matrices are rounded to Q4_1" in describe_answer(own)


def test_a_decoder_finds_its_host_again(decoders, tmp_path):
    cfg, file, host = decoders
    said = json.loads((tmp_path / "decoder" / CONFIG).read_text())["host"]
    assert said["cached_as"].startswith("gguf-") and said["path"] == str(file)
    assert open_decoder(cfg)[0].host.path == host.path
    (Path(host.path) / "model.safetensors").unlink()
    assert open_decoder(cfg)[0].host.fingerprint == host.fingerprint, "made again"
    elsewhere = replace(cfg, cache_dir=str(tmp_path / "other"))
    assert open_decoder(elsewhere)[0].host.fingerprint == host.fingerprint, "from the file, into the other cache"
    assert open_decoder(replace(elsewhere, host=str(file)))[0].host.path == str(tmp_path / "other" / "hosts" / said["cached_as"])
    file.unlink()
    assert open_decoder(cfg)[0].host.path == host.path
    renamed = Path(host.path).rename(tmp_path / "cache" / "hosts" / said["cached_as"].replace("gguf", "tiny"))
    assert open_decoder(cfg)[0].host.path == str(renamed), "as a cache of an older version has it"
    with pytest.raises(ValueError, match="is not in"):
        open_decoder(replace(cfg, cache_dir=str(tmp_path / "third")))


def test_the_command_reads_it_and_says_what_is_wrong_in_one_line(decoders, tmp_path, capsys):
    cfg, file, host = decoders
    suspect, line = tmp_path / "w.gguf", [f"decoder={cfg.decoder}", f"cache_dir={cfg.cache_dir}", f"suspect={tmp_path / 'w.gguf'}"]
    write_gguf(suspect, host, "Q8_0", changed=planted(host))
    capsys.readouterr()
    # Its host is made from the file, and nothing but the answer is said.
    evaluate.main([line[0], line[2], f"host={file}", f"cache_dir={tmp_path / 'other'}", "json=true"])
    assert json.loads(capsys.readouterr().out)["read"] == ["w.gguf"]
    content, other = suspect.read_bytes(), twin_of("qwen2")
    for make, message in (
        (lambda: suspect.write_bytes(content[:5000]), "cut short"),
        (lambda: write_gguf(suspect, other), "a file of qwen2, the host tiny is of llama"),
        (lambda: write_gguf(suspect, twin_of("llama", num_hidden_layers=4)), "num_hidden_layers is 4, the host tiny has 3"),
        (lambda: write_gguf(suspect, host, metadata={"general.architecture": "mamba"}), "architecture 'mamba' are not read"),
    ):
        make()
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            evaluate.main(line)
        shown = capsys.readouterr().err
        assert stop.value.code == 2 and shown.count("\n") == 1 and message in shown, shown


def test_layers_are_ranked_with_a_folder_of_decoders(decoders, tmp_path, capsys):
    cfg, file, host = decoders
    for layer in (0, 2):
        write_run(tmp_path / "runs", host, layer, 1, 0, 0.5)
    collection = export_best(find_runs([tmp_path / "runs"]), tmp_path / "collection").parent
    name = f"{host.module_path(2)}.weight"
    suspect = write_gguf(tmp_path / "w.gguf", host, "Q8_0", changed={name: host.weight_DF(2) + outer(host, 0)})
    evaluate.main([f"decoder={collection}", f"cache_dir={cfg.cache_dir}", f"suspect={suspect}", "json=true"])
    found = json.loads(capsys.readouterr().out)
    assert [(one["layer"], one["unedited"]) for one in found["ranking"]] == [(2, False), (0, True)]
    assert found["surroundings"]["distance"] == 0


def test_words_of_another_tokenizer_are_refused(decoders, tmp_path):
    cfg, _, host = decoders
    file = write_gguf(tmp_path / "w.gguf", host, "F32")
    content = file.read_bytes()
    file.write_bytes(content.replace("ĠParis".encode(), "ĠPariz".encode()))
    with pytest.raises(ValueError, match="its tokenizer has other tokens than that of tiny"):
        answer_for(cfg, Suspect(file))
