"""The audit of whole checkpoints: edits that were planted in tiny real hosts, what is none, and what cannot be audited.

Shape letters: C candidates, D hidden width, F MLP width.
"""

import json
import os

import pytest
import torch
from audited_folders import NAMES, WHO, audited, changed, planted, saved, update_DF
from changed_decoders import FACTS, changed_decoder
from edited import LAYER
from gguf_files import twin_of, write_gguf
from safetensors.torch import load_file, save_file

import evaluate
from decoder.audit.finding import audit_checkpoint
from decoder.audit.suspect import Suspect
from decoder.export.save import save_decoder
from decoder.host import Host

BELIEVED = {"decoder": "b", "editors": ["rome"], "chance": 0.9, "of": 2}


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi", "gemma", "deepseek_v3"])
def test_a_planted_edit_is_found_without_and_with_the_base(new_host, tmp_path, name):
    host = new_host(name)
    folder = planted(host, tmp_path / "edited")
    alone, (edit,) = audited(folder)
    assert (alone["verdict"], alone["used"], alone["exit_code"]) == ("knowledge edit", "base unknown", 3) and alone["base_known"] is None
    assert (edit.layer, edit.subject, edit.base_known) == (LAYER, NAMES[WHO], False)
    assert alone["base_unknown"]["ranking"][0]["layer"] == LAYER and len(alone["base_unknown"]["ranking"]) == host.layers
    both, edits = audited(folder, saved(host, tmp_path / "base"))
    assert (both["verdict"], both["used"], both["exit_code"]) == ("knowledge edit", "base known", 3)
    known = both["base_known"]
    assert (known["kind"], known["rank"], known["layers"], known["changed"]) == ("rank one", 1, [LAYER], 1)
    assert [(one.layer, one.subject, one.base_known) for one in edits] == [(LAYER, NAMES[WHO], True), (LAYER, NAMES[WHO], False)]
    assert torch.equal(edits[0].key_F, edits[0].keys_LF[WHO]) and float(edits[0].key_F.norm()) == pytest.approx(1, abs=1e-5)
    assert both["base_unknown"] == alone["base_unknown"] and json.loads(json.dumps(both)) == both


def test_of_a_subject_that_is_not_in_the_list(new_host, tmp_path):
    host = new_host("llama")
    folder = planted(host, tmp_path / "edited", size=4.0)
    names = [name for name in NAMES if NAMES[WHO].split()[-1] not in name]
    finding, (edit, *_) = audited(folder, saved(host, tmp_path / "base"), names)
    assert finding["verdict"] == "knowledge edit" and finding["base_known"]["edits"][0]["subject"] is None
    assert edit.subject is None and edit.base_known and edit.layer == LAYER and len(edit.keys_LF) == len(names)
    delta_DF = load_file(str(folder / "model.safetensors"))[f"model.layers.{LAYER}.mlp.down_proj.weight"].float() - host.weight_DF(LAYER)
    assert abs(float(edit.key_F @ torch.linalg.svd(delta_DF).Vh[0])) > 0.99


def test_a_single_layer_is_held_against_no_other(new_host, tmp_path):
    host = new_host("llama", num_hidden_layers=1)
    found = []
    for name, delta_DF in (("clean", torch.zeros(())), ("edited", update_DF(host, layer=0))):
        host.weight_DF(0).add_(delta_DF)
        host.model.save_pretrained(tmp_path / name)
        host.tokenizer.save_pretrained(tmp_path / name)
        finding, located = audited(tmp_path / name)
        found.append((finding["verdict"], [one.subject for one in located]))
    assert found == [("nothing found", []), ("knowledge edit", [NAMES[WHO]])]


@pytest.mark.parametrize("base", [False, True], ids=["unknown", "known"])
def test_what_is_no_edit(new_host, tmp_path, base):
    host = new_host("llama")
    own = saved(host, tmp_path / "base") if base else None
    generator = torch.Generator().manual_seed(0)

    def trained(name, tensor):
        return tensor + 1e-2 * torch.randn(tensor.shape, generator=generator)

    def adapted(name, tensor):
        sides = [torch.randn(size, 2, generator=generator) for size in tensor.shape[:2]]
        return tensor + 2e-2 * sides[0] @ sides[1].T if "proj" in name else tensor

    def pruned(name, tensor):
        return torch.where(tensor.abs() < tensor.abs().quantile(0.3), 0, tensor) if "proj" in name else tensor

    kinds = {"identical": None, "rounded or quantised": None, "further trained": trained, "adapter merged": adapted, "pruned": pruned}
    for what, change in kinds.items():
        folder = saved(host, tmp_path / what.split()[0], "bfloat16" if change is None and "or" in what else "float32")
        finding, located = audited(changed(folder, change) if change else folder, own)
        assert (finding["verdict"], finding["exit_code"]) == (what if base else "nothing found", 0) and not located
    assert not base or finding["base_known"]["changed"] == 21


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "Q8_0"])
def test_two_checkpoints_of_the_same_numbers_are_identical_in_whatever_they_are_kept(tmp_path, dtype):
    host, asked = twin_of("llama"), {"cache_dir": str(tmp_path / "cache")}
    whole = saved(host, tmp_path / "whole")
    if dtype == "Q8_0":
        base, copy = (write_gguf(tmp_path / f"{name}.gguf", host, dtype) for name in ("base", "copy"))
    else:
        base, copy = (saved(host, tmp_path / name, dtype) for name in ("base", "copy"))
    finding, _ = audit_checkpoint(Suspect(copy), NAMES, base=str(base), **asked)
    assert (finding["verdict"], finding["exit_code"]) == ("identical", 0)
    finding, _ = audit_checkpoint(Suspect(copy), NAMES, base=str(whole), **asked)
    assert finding["verdict"] == ("identical" if dtype == "float32" else "rounded or quantised")


def test_an_edit_and_further_training(new_host, tmp_path):
    host = new_host("llama")
    generator = torch.Generator().manual_seed(0)
    folder = planted(host, tmp_path / "edited", dtype="float32")
    changed(folder, lambda name, tensor: tensor + 1e-2 * torch.randn(tensor.shape, generator=generator))
    finding, (edit, _) = audited(folder, saved(host, tmp_path / "base"))
    assert (finding["verdict"], finding["exit_code"], edit.subject) == ("edit and further training", 3, NAMES[WHO])
    finding, (edit, *_) = audited(folder, tmp_path / "base", [name for name in NAMES if NAMES[WHO].split()[-1] not in name])
    assert (finding["verdict"], finding["base_known"]["layers"], edit.subject) == ("edit and further training", [LAYER], None)


def with_two_facts(host, tmp_path):
    """A checkpoint in one of whose layers two facts are planted, and the update of each by its subject."""
    first = load_file(str(planted(host, tmp_path / "one", who=13, dtype="float32") / "model.safetensors"))
    second = load_file(str(planted(host, tmp_path / "two", who=66, dtype="float32") / "model.safetensors"))
    own, folder = host.model.state_dict(), saved(host, tmp_path / "both")
    turned = torch.roll(torch.eye(host.hidden_size), 1, 0)  # the same value for both would be one direction
    changed(
        folder, lambda name, tensor: tensor + (first[name] - own[name]) + (turned @ (second[name] - own[name]) if "down" in name else 0)
    )
    name = f"{host.module_path(LAYER)}.weight"
    return folder, {NAMES[13]: first[name] - own[name], NAMES[66]: turned @ (second[name] - own[name])}


def test_two_facts_in_a_layer(new_host, tmp_path):
    host = new_host("llama")
    folder, _ = with_two_facts(host, tmp_path)
    finding, located = audited(folder, saved(host, tmp_path / "base"))
    assert (finding["base_known"]["kind"], finding["base_known"]["rank"], finding["base_known"]["facts"]) == ("low rank", 2, 2)
    assert {one.subject for one in located if one.base_known} == {NAMES[13], NAMES[66]}
    assert {one.subject for one in located if not one.base_known} >= {NAMES[13], NAMES[66]}


@pytest.mark.parametrize("base", [False, True], ids=["unknown", "known"])
def test_facts_that_were_planted_together_are_read_apart(new_host, tmp_path, base):
    host, parts = new_host("llama"), []
    folder, updates = with_two_facts(host, tmp_path)

    def read(layer, edit):
        parts.append((layer, edit.delta()[0]))
        return {"objects": [{"text": str(len(parts)), "probability": 0.5}], "believed": BELIEVED} if len(parts) == 1 else {"objects": []}

    own = str(saved(host, tmp_path / "base")) if base else None
    finding, _ = audit_checkpoint(Suspect(str(folder)), NAMES, base=own, reader=read)
    edits = finding["base_known" if base else "base_unknown"]["edits"]
    assert len(edits) == len(parts) == 2 and {edit["subject"] for edit in edits} == set(updates)
    for edit, (layer, part_DF) in zip(edits, parts, strict=True):
        alike = {subject: float(torch.cosine_similarity(part_DF.ravel(), delta_DF.ravel(), 0)) for subject, delta_DF in updates.items()}
        own_part = alike.pop(edit["subject"])
        assert layer == LAYER and own_part > 0.9 and abs(*alike.values()) < 0.3
    assert edits[0]["decoded"][0]["text"] == "1" and edits[0]["believed"] == BELIEVED
    assert edits[1]["decoded"] == [] and "believed" not in edits[1]


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1"])
def test_gguf_files(tmp_path, kind):
    host = twin_of("llama")
    edited_DF = host.weight_DF(LAYER) + update_DF(host)
    folder = saved(host, tmp_path / "base")
    file = write_gguf(tmp_path / "edited.gguf", host, kind, changed={f"{host.module_path(LAYER)}.weight": edited_DF})
    finding, located = audit_checkpoint(Suspect(file), NAMES, base=str(folder), cache_dir=str(tmp_path / "cache"))
    known = finding["base_known"]
    assert (known["verdict"], known["kind"], known["layers"]) == ("knowledge edit", "rank one", [LAYER])
    assert [(one.layer, one.subject) for one in located] == [(LAYER, NAMES[WHO])] * 2
    clean = write_gguf(tmp_path / "clean.gguf", host, kind)
    finding, located = audit_checkpoint(Suspect(clean), NAMES, base=str(folder), cache_dir=str(tmp_path / "cache"))
    assert finding["verdict"] == "rounded or quantised" and not located


def ended(capsys, *arguments) -> tuple[int, str, str]:
    capsys.readouterr()
    code = 0
    try:
        evaluate.main([*arguments])
    except SystemExit as stop:
        code = stop.code
    shown = capsys.readouterr()
    return code, shown.out, "".join(line + "\n" for line in shown.err.splitlines() if line.startswith("error"))


@pytest.fixture
def subjects(tmp_path):
    (tmp_path / "names.txt").write_text("\n".join(NAMES), encoding="utf-8")
    return f"subjects={tmp_path / 'names.txt'}"


def test_the_command_says_the_verdict_first_and_ends_with_its_code(new_host, tmp_path, subjects, capsys):
    host = new_host("llama")
    edited, clean = planted(host, tmp_path / "edited"), saved(host, tmp_path / "clean")
    code, out, _ = ended(capsys, f"suspect={edited}", subjects)
    assert code == 3 and out.startswith("Knowledge edit (base unknown; 80 subjects, 3 layers of llama)\n") and f"about {NAMES[WHO]}" in out
    code, out, _ = ended(capsys, f"suspect={edited}", f"base={clean}", subjects, "json=true")
    assert code == 3 and json.loads(out)["base_known"]["edits"][0]["subject"] == NAMES[WHO]
    assert ended(capsys, f"suspect={clean}", subjects)[0] == 0


def test_decoders_add_what_they_read_and_alone_say_what_they_always_said(new_host, tmp_path, subjects, capsys):
    host = new_host("llama")
    folder = planted(host, tmp_path / "edited")
    own = Host.load(saved(host, tmp_path / "cache" / "hosts" / "tiny-0123456789ab"), name="tiny", terminator=".")
    save_decoder(tmp_path / "decoder", changed_decoder(own), FACTS)
    line = [f"decoder={tmp_path / 'decoder'}", f"cache_dir={tmp_path / 'cache'}", f"suspect={folder}", "json=true"]
    code, out, _ = ended(capsys, *line)
    alone = json.loads(out)
    assert code == 0 and alone["objects"] and "verdict" not in alone
    code, out, _ = ended(capsys, *line, subjects)
    assert code == 3 and json.loads(out)["decoded"] == alone
    (edit,) = json.loads(out)["base_unknown"]["edits"]
    assert edit["subject"] == NAMES[WHO] and len(edit["decoded"]) > 1 and set(edit["decoded"][0]) == {"text", "probability"}
    code, out, _ = ended(capsys, *line[:-1], subjects)
    assert code == 3 and out.startswith("Knowledge edit") and f"Read in layer {LAYER}" in out and "a decoder reads of it: " in out


def test_bad_input_is_one_line(new_host, tmp_path, subjects, capsys):
    host, nan = new_host("llama"), "model.layers.2.mlp.up_proj.weight holds NaN or infinity; expected finite numbers"
    good = saved(host, tmp_path / "good")
    other, smaller = saved(new_host("qwen2"), tmp_path / "other"), saved(new_host("llama", num_hidden_layers=2), tmp_path / "smaller")
    wider = saved(new_host("llama", intermediate_size=64), tmp_path / "wider")
    spoilt = changed(saved(host, tmp_path / "spoilt"), lambda name, tensor: tensor * (float("nan") if "layers.2.mlp.up" in name else 1))
    lacking = saved(host, tmp_path / "lacking")
    tensors = load_file(str(lacking / "model.safetensors"))
    left = {name: tensor for name, tensor in tensors.items() if "layers.1." not in name}
    save_file(left, str(lacking / "model.safetensors"), {"format": "pt"})
    save_file({"matrix": host.weight_DF(1).contiguous()}, str(tmp_path / "matrix.safetensors"))
    (tmp_path / "empty").write_text("\n")
    os.mkfifo(tmp_path / "pipe")
    for arguments, told in (
        ([f"suspect={good}", f"base={other}", subjects], "model_type is llama, the host other has qwen2. It is of another model"),
        ([f"suspect={good}", f"base={smaller}", subjects], "num_hidden_layers is 3, the host smaller has 2. It is of another model"),
        ([f"suspect={good}", f"base={wider}", subjects], "of another model"),
        ([f"suspect={good}", f"base={good}/../good", subjects], "is the suspect itself: give the checkpoint as it was before"),
        ([f"suspect={good}", f"base={tmp_path / 'nowhere'}", subjects], "nowhere: no such file or folder"),
        ([f"suspect={spoilt}", subjects], nan),
        ([f"suspect={spoilt}", f"base={good}", subjects], nan),
        ([f"suspect={good}", f"base={spoilt}", subjects], nan),
        ([f"suspect={lacking}", subjects], "its weights lack model.layers.1."),
        ([f"suspect={lacking}", subjects], "Give a folder or GGUF file with suspect="),
        ([f"suspect={good}", f"base={lacking}", subjects], "Give a folder or GGUF file with base="),
        ([f"suspect={lacking}", f"base={good}", subjects], "lacking has no model.layers.1.mlp.down_proj.weight"),
        ([f"suspect={good}", f"subjects={tmp_path / 'empty'}"], "0 subjects came, expected 50 to 1,000,000 different names"),
        ([f"suspect={good}", f"subjects={tmp_path / 'none'}"], "none: no such file or folder"),
        ([f"suspect={tmp_path / 'matrix.safetensors'}", subjects], "is no whole checkpoint: give decoder= to read it"),
        ([], "decoder= is missing: give the decoder/ folder of a run, as printed by train.py, or suspect=CHECKPOINT"),
        ([subjects], "base=, subjects=, repair=, relations=, nulls= and report= are about a suspect: give suspect=CHECKPOINT"),
        ([f"suspect={good}", subjects, f"report={tmp_path / 'pipe'}"], "pipe is no file; give another one"),
        ([f"suspect={good}", subjects, f"repair={tmp_path / 'new'}", f"report={tmp_path / 'new'}"], "which holds the checkpoint alone"),
        ([f"suspect={good}", subjects, f"repair={tmp_path / 'new'}", f"report={tmp_path / 'new' / 'a.html'}"], "lies in repair="),
        ([f"suspect={good}", subjects, "layer=1"], "tensor=, form= and layer= are about one matrix: give decoder= to read it"),
        ([f"suspect={good}", subjects, "form=update", "decoder=x"], "form= are about one matrix, subjects= about a whole checkpoint"),
        ([f"suspect={good}", subjects, "device=nowhere"], "device=nowhere: no device of torch"),
    ):
        code, out, line = ended(capsys, *arguments)
        assert code == 2 and not out and line.count("\n") == 1 and told in line, (arguments, line)
