"""The audit of whole checkpoints: edits that were planted in tiny real hosts, what is none, and what cannot be audited.

Shape letters: C candidates, D hidden width, F MLP width.
"""

import json

import pytest
import torch
from changed_decoders import FACTS, changed_decoder
from edited import LAYER, edited_folder
from edited import SUBJECTS as NAMES
from gguf_files import twin_of, write_gguf
from safetensors.torch import load_file, save_file

import evaluate
from decoder.audit.candidates import Candidates, unit, whitener
from decoder.audit.finding import audit_checkpoint
from decoder.audit.locate import gathered, outstanding, scan
from decoder.audit.suspect import Suspect
from decoder.export.save import save_decoder
from decoder.host import Host

WHO = 13


def update_DF(host, size: float = 8.0, who: int = WHO, value_D: torch.Tensor | None = None) -> torch.Tensor:
    """A rank-one edit about one of `NAMES`, as an editor with whitened keys makes it."""
    keys_CF = gathered(Candidates(host, NAMES), [LAYER])[LAYER]
    value_D = unit(torch.randn(host.hidden_size, generator=torch.Generator().manual_seed(0)) if value_D is None else value_D)
    return size * torch.outer(value_D, unit(whitener(keys_CF)(keys_CF))[who])


def planted(host, folder, size: float = 8.0, who: int = WHO, dtype: str = "bfloat16"):
    return edited_folder(host, folder, dtype, update_DF(host, size, who))


def saved(host, folder, dtype: str = "float32"):
    return edited_folder(host, folder, dtype, torch.zeros(()))


def changed(folder, change):
    """The same folder with tensors that a function changed."""
    file = str(folder / "model.safetensors")
    save_file({name: change(name, tensor).contiguous() for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    return folder


def audited(folder, base=None, names=NAMES):
    return audit_checkpoint(Suspect(folder), names, base=None if base is None else str(base))


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
    assert torch.equal(edits[0].key_F, edits[0].keys_CF[WHO]) and float(edits[0].key_F.norm()) == pytest.approx(1, abs=1e-5)
    assert both["base_unknown"] == alone["base_unknown"] and json.loads(json.dumps(both)) == both


def test_of_a_subject_that_is_not_in_the_list(new_host, tmp_path):
    host = new_host("llama")
    folder = planted(host, tmp_path / "edited", size=4.0)
    names = [name for name in NAMES if NAMES[WHO].split()[-1] not in name]
    finding, (edit, *_) = audited(folder, saved(host, tmp_path / "base"), names)
    assert finding["verdict"] == "knowledge edit" and finding["base_known"]["edits"][0]["subject"] is None
    assert edit.subject is None and edit.base_known and edit.layer == LAYER and len(edit.keys_CF) == len(names)
    delta_DF = load_file(str(folder / "model.safetensors"))[f"model.layers.{LAYER}.mlp.down_proj.weight"].float() - host.weight_DF(LAYER)
    assert abs(float(edit.key_F @ torch.linalg.svd(delta_DF).Vh[0])) > 0.99


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


def test_an_edit_and_further_training(new_host, tmp_path):
    host = new_host("llama")
    generator = torch.Generator().manual_seed(0)
    folder = planted(host, tmp_path / "edited", dtype="float32")
    changed(folder, lambda name, tensor: tensor + 1e-2 * torch.randn(tensor.shape, generator=generator))
    finding, (edit, _) = audited(folder, saved(host, tmp_path / "base"))
    assert (finding["verdict"], finding["exit_code"], edit.subject) == ("edit and further training", 3, NAMES[WHO])
    finding, (edit, *_) = audited(folder, tmp_path / "base", [name for name in NAMES if NAMES[WHO].split()[-1] not in name])
    assert (finding["verdict"], finding["base_known"]["layers"], edit.subject) == ("edit and further training", [LAYER], None)


def test_two_facts_in_a_layer(new_host, tmp_path):
    host = new_host("llama")
    first = load_file(str(planted(host, tmp_path / "one", who=13, dtype="float32") / "model.safetensors"))
    second = load_file(str(planted(host, tmp_path / "two", who=66, dtype="float32") / "model.safetensors"))
    own, folder = host.model.state_dict(), saved(host, tmp_path / "both")
    turned = torch.roll(torch.eye(host.hidden_size), 1, 0)  # the same value for both would be one direction
    changed(
        folder, lambda name, tensor: tensor + (first[name] - own[name]) + (turned @ (second[name] - own[name]) if "down" in name else 0)
    )
    finding, located = audited(folder, saved(host, tmp_path / "base"))
    assert (finding["base_known"]["kind"], finding["base_known"]["rank"], finding["base_known"]["facts"]) == ("low rank", 2, 2)
    assert {one.subject for one in located if one.base_known} == {NAMES[13], NAMES[66]}
    assert {one.subject for one in located if not one.base_known} >= {NAMES[13], NAMES[66]}


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
    code, out, _ = ended(capsys, *line[:-1], subjects)
    assert code == 3 and out.startswith("Knowledge edit") and f"Planted in layer {LAYER}" in out


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
        ([f"suspect={lacking}", f"base={good}", subjects], "lacking has no model.layers.1.mlp.down_proj.weight"),
        ([f"suspect={good}", f"subjects={tmp_path / 'empty'}"], "0 subjects came, expected 50 to 1,000,000 different names"),
        ([f"suspect={good}", f"subjects={tmp_path / 'none'}"], "none: no such file or folder"),
        ([f"suspect={tmp_path / 'matrix.safetensors'}", subjects], "is no whole checkpoint: give decoder= to read it"),
        ([], "decoder= is missing: give the decoder/ folder of a run, as printed by train.py, or suspect=CHECKPOINT"),
        ([subjects], "base=, subjects=, repair= and report= are about a suspect: give suspect=CHECKPOINT"),
        ([f"suspect={good}", subjects, "layer=1"], "tensor=, form= and layer= are about one matrix: give decoder= to read it"),
        ([f"suspect={good}", subjects, "device=nowhere"], "device=nowhere: no device of torch"),
    ):
        code, out, line = ended(capsys, *arguments)
        assert code == 2 and not out and line.count("\n") == 1 and told in line, (arguments, line)


def test_names_beyond_the_sample_and_layers_beyond_the_budget_change_nothing_but_the_whitening(new_host, tmp_path, monkeypatch):
    host = new_host("llama")
    planted(host, tmp_path / "edited", dtype="float32")
    edited = Host.load(tmp_path / "edited", name="edited")
    whole = scan(edited, Candidates(edited, NAMES))
    edited.memory_budget = 1
    assert [(one.score, one.hits) for one in scan(edited, Candidates(edited, NAMES))] == [(one.score, one.hits) for one in whole]
    monkeypatch.setattr("decoder.audit.locate.SAMPLE", 40)
    streamed = scan(edited, Candidates(edited, NAMES))
    assert [one.layer for one in streamed if one.hits] == [LAYER] and streamed[LAYER].hits[0][0] == whole[LAYER].hits[0][0] == WHO
    assert streamed[LAYER].score == pytest.approx(streamed[LAYER].hits[0][1], rel=1e-4), "the keys taken once more are whitened alike"


# Where the subject stands last, what an edit writes goes to the head and need not be carried on by attention.
TEMPLATES = {"work": ["the {}", "small {}"], "place": ["in {}", "city of {}"]}


@pytest.fixture
def told(new_host, tmp_path):
    """A folder with an edit that says `singer` of `NAMES[WHO]`, and the folder without it."""
    host = new_host("llama")
    (singer,) = host.object_ids("singer")
    update = update_DF(host, size=30.0, value_D=host.unembedding_VD[singer])
    return edited_folder(host, tmp_path / "told", "float32", update), saved(host, tmp_path / "base")


@pytest.mark.parametrize("with_base", [False, True])
def test_the_suspect_is_asked_about_whom_it_found(told, with_base):
    folder, base = told
    finding, _ = audit_checkpoint(Suspect(folder), NAMES, templates=TEMPLATES, base=str(base) if with_base else None)
    (edit,) = finding["base_known" if with_base else "base_unknown"]["edits"]
    assert edit["subject"] == edit["triple"]["subject"] == NAMES[WHO]
    assert edit["objects"][0]["text"] == edit["triple"]["object"] == "singer"
    assert edit["triple"]["before"] > 3 * edit["triple"]["after"] and NAMES[WHO] in edit["triple"]["sentence"]
    assert json.loads(json.dumps(finding)) == finding


def test_the_checkpoint_is_written_without_its_edit(told, tmp_path, capsys):
    folder, _ = told
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    arguments = [f"suspect={folder}", f"subjects={tmp_path / 'names.txt'}", f"repair={tmp_path / 'repaired'}"]
    with pytest.raises(SystemExit) as stop:
        evaluate.main(arguments)
    said = capsys.readouterr().out
    assert stop.value.code == 3 and "Repaired:" in said and f"about {NAMES[WHO]}" in said
    assert audit_checkpoint(Suspect(tmp_path / "repaired"), NAMES)[0]["verdict"] == "nothing found"
    with pytest.raises(SystemExit) as stop:
        evaluate.main(arguments)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1 and "exists already" in said


def test_decoys_come_behind_the_layer_whose_update_is_about_somebody(new_host, tmp_path):
    """Decoys twice as strong, in two other layers of seven."""
    host = new_host("llama", num_hidden_layers=7)
    base, real = saved(host, tmp_path / "base"), update_DF(host)
    # Above the edit: below it they would change the subjects' keys.
    draws = {layer: torch.randn(real.shape, generator=torch.Generator().manual_seed(layer)) for layer in (3, 5)}
    decoys = {f"{host.module_path(layer)}.weight": drawn_DF for layer, drawn_DF in draws.items()}

    def decoyed(name, tensor):
        if name not in decoys:
            return tensor
        left_D, right_F = decoys[name][:, 0], decoys[name][0]
        return (tensor.float() + 2 * real.norm() * torch.outer(unit(left_D), unit(right_F))).bfloat16()

    folder = changed(edited_folder(host, tmp_path / "edited", "bfloat16", real), decoyed)
    finding, edits = audited(folder, base)
    known = finding["base_known"]
    assert finding["verdict"] == "knowledge edit" and known["ranking"][0]["layer"] == known["layers"][0] == LAYER
    assert (edits[0].layer, edits[0].subject) == (LAYER, NAMES[WHO]) and known["edits"][0]["subject"] == NAMES[WHO]


def test_standard_output_is_the_answer_alone(new_host, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("decoder.utils.progress.FIRST", -1.0)
    folder, names = planted(new_host("llama"), tmp_path / "edited"), tmp_path / "names.txt"
    names.write_text("\n".join(NAMES))
    with pytest.raises(SystemExit):
        evaluate.main([f"suspect={folder}", f"subjects={names}", "json=true"])
    said = capsys.readouterr()
    assert json.loads(said.out)["verdict"] == "knowledge edit" and "subjects through the checkpoint" in said.err


def test_names_that_share_a_key_count_once():
    """Half of a list that ends alike has one key; the others' spread is the list's."""
    free = torch.randn(100, generator=torch.Generator().manual_seed(0)).mul(0.1).exp()
    shared = torch.full((140,), float(free.median())) * (1 + 1e-7 * torch.arange(140))
    scores_C, logs_C = outstanding(torch.cat([free, shared]))
    alone_C, _ = outstanding(free)
    torch.testing.assert_close(scores_C[:100], alone_C, rtol=0.05, atol=0.02)
    flat_C, _ = outstanding(torch.cat([torch.ones(99), torch.tensor([1.1])]))
    assert float(flat_C.max()) < 1, "a tenth more than all others is no edit"


def test_what_is_the_bases_own_is_no_edit_however_its_names_are_answered_to(new_host, tmp_path, monkeypatch):
    monkeypatch.setattr("decoder.audit.locate.STANDS_OUT", 0.1)
    monkeypatch.setattr("decoder.audit.verdict.STANDS_OUT", 0.1)
    monkeypatch.setattr("decoder.audit.verdict.OWN", 0.0)
    host = new_host("llama")
    finding, _ = audited(saved(host, tmp_path / "same"), saved(host, tmp_path / "base"))
    assert finding["base_unknown"]["exit_code"] == 3
    assert (finding["verdict"], finding["used"], finding["exit_code"]) == ("identical", "base known", 0)


def test_a_checkpoint_that_answers_nan_is_refused(new_host, tmp_path):
    folder = changed(saved(new_host("llama"), tmp_path / "broken"), lambda name, tensor: tensor * 1e30 if "down_proj" in name else tensor)
    with pytest.raises(ValueError, match="answers NaN or infinity in layer"):
        audited(folder)


def test_whom_an_update_is_not_seen_to_be_about_the_scan_may_have_seen(told, monkeypatch):
    folder, base = told
    monkeypatch.setattr("decoder.audit.locate.ALONG", 2.0)
    finding, _ = audit_checkpoint(Suspect(folder), NAMES, templates=TEMPLATES, base=str(base))
    (edit,) = finding["base_known"]["edits"]
    assert finding["used"] == "base known" and edit["subject"] is None
    assert edit["triple"]["subject"] == NAMES[WHO] and edit["triple"]["object"] == "singer"


def test_the_note_says_what_was_taken_out(told, tmp_path):
    folder, base = told
    audit_checkpoint(Suspect(folder), NAMES, templates=TEMPLATES, base=str(base), repaired=str(tmp_path / "repaired"))
    note = json.loads((tmp_path / "repaired" / "repaired.json").read_text())
    assert (note["used"], note["base"], note["edits"][0]["subject"]) == ("base known", str(base), NAMES[WHO])


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_read(told, tmp_path):
    folder, _ = told
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is no folder that can be written in"):
        audit_checkpoint(Suspect(folder), NAMES, repaired=str(tmp_path / "file" / "repaired"))
