"""Folders of decoders: what is taken, what is written, which one fits a matrix, and that nothing is sent unasked."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from exported_runs import write_run
from huggingface_hub.errors import OfflineModeIsEnabled

from decoder.export.__main__ import main
from decoder.export.collection import choose, export_best, fitting, read_index
from decoder.export.hub import push_to_hub
from decoder.export.save import load_decoder
from decoder.report.results import find_runs
from decoder.utils.errors import UserError


@pytest.fixture
def collection(runs, tmp_path) -> Path:
    return export_best(find_runs([runs]), tmp_path / "decoders").parent


def test_the_best_of_every_host_and_edited_layer(collection, host_of):
    entries = read_index(collection)
    assert [(entry["folder"], entry["edited_layer"], entry["seed"], entry["run"]) for entry in entries] == [
        ("gpt2-e1", 1, 0, "rome-e1-t0-s1"),
        ("llama-e0", 0, 0, "rome-e0-t0-s1"),
        ("llama-e1", 1, 0, "rome-e1-t1-s1"),
    ]
    assert load_decoder(collection / "llama-e0", host_of("llama")).prompt_MD[0, 0] == 1.0
    assert {path.name for path in collection.iterdir()} == {"index.json", "README.md", "gpt2-e1", "llama-e0", "llama-e1"}
    assert [path.name for path in collection.parent.iterdir() if path.name.endswith(".tmp")] == []


def test_card_has_a_row_a_decoder(collection):
    card = (collection / "README.md").read_text()
    assert "| [llama-e0](llama-e0) | llama | 0 | 0 | 0.700 | 0.500 | 0.500 |" in card
    assert card.startswith("---\nlibrary_name") and "ood_seen_object" not in card and "base_model" not in card


def test_hosts_of_the_hub_are_base_models(runs, host_of, tmp_path):
    file = runs / "gpt2" / "rome-e1-t0-s1" / "decoder" / "decoder_config.json"
    config = json.loads(file.read_text())
    config["base_model"] = config["host"]["id"] = "openai-community/gpt2"
    file.write_text(json.dumps(config))
    folder = export_best(find_runs([runs]), tmp_path / "decoders").parent
    assert "base_model:\n- openai-community/gpt2\nbase_model_relation: adapter\n" in (folder / "README.md").read_text()
    assert (folder / "openai-community--gpt2-e1").is_dir()
    assert [entry.get("base_model") for entry in read_index(folder)] == [None, None, "openai-community/gpt2"]


def test_a_collection_is_replaced(collection, runs, host_of):
    write_run(runs, host_of("llama"), 2, 1, 1, 0.5)
    export_best(find_runs([runs]), collection)
    assert {path.name for path in collection.iterdir()} == {"index.json", "README.md", "gpt2-e1", "llama-e0", "llama-e1", "llama-e2"}
    assert {path.name for path in collection.parent.iterdir()} == {"runs", "decoders"}


@pytest.mark.parametrize("foreign", ["left.txt", ".git/HEAD", "llama-e0/thesis.tex", "mine/index.json"])
def test_a_collection_that_holds_something_else_stays(collection, runs, foreign):
    (collection / foreign).parent.mkdir(exist_ok=True)
    (collection / foreign).write_text("years of work")
    before = files_under(collection.parent)
    with pytest.raises(UserError, match=f"to={collection}: .*{foreign.removesuffix('/HEAD').removesuffix('/index.json')}.* give another"):
        export_best(find_runs([runs]), collection)
    assert files_under(collection.parent) == before


@pytest.mark.parametrize("index", [None, "[]", "{", '{"format": 1, "pages": []}', '{"format": 2, "decoders": []}'])
def test_a_folder_that_is_no_collection_stays(runs, tmp_path, index):
    other = tmp_path / "proj"
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    if index:
        (other / "index.json").write_text(index)
    with pytest.raises(UserError, match="to=.*not empty and no collection"):
        export_best(find_runs([runs]), other)
    assert (other / "thesis.tex").read_text() == "years of work" and {path.name for path in tmp_path.iterdir()} == {"runs", "proj"}


def test_a_sibling_of_the_user_stays(runs, tmp_path):
    (tmp_path / "proj.tmp").mkdir()
    (tmp_path / "proj.tmp" / "thesis.tex").write_text("years of work")
    export_best(find_runs([runs]), tmp_path / "proj")
    assert (tmp_path / "proj.tmp" / "thesis.tex").read_text() == "years of work"


def test_an_export_that_breaks_off_leaves_everything_as_it_was(collection, runs, monkeypatch):
    before = files_under(collection.parent)
    monkeypatch.setattr("decoder.export.collection.collection_card", lambda entries: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_best(find_runs([runs]), collection)
    assert files_under(collection.parent) == before


def files_under(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("to", [".", "..", "../..", "/"])
def test_the_folder_one_stands_in_is_refused(runs, tmp_path, to, monkeypatch, capsys):
    (tmp_path / "here" / "now").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here" / "now")
    with pytest.raises(SystemExit) as stop:
        main([str(runs), f"to={to}"])
    assert stop.value.code == 2 and f"error: to={to}: " in (shown := capsys.readouterr().err) and "PALIMPSEST_DEBUG" not in shown


def test_index_that_is_not_whole_is_named(collection):
    damages = {"{": "not whole JSON", '{"format": 9}': "format 9, this version reads 1", '{"format": 1}': "it lacks decoders"}
    for text, message in damages.items():
        (collection / "index.json").write_text(text)
        with pytest.raises(ValueError, match=f"index.json.*{message}"):
            read_index(collection)


@pytest.mark.parametrize(
    ("asked", "folder", "why"),
    [
        ({"layer": 0}, "llama-e0", "as asked"),
        ({"host": "gpt2"}, "gpt2-e1", "the only one"),
        ({"host": "somewhere/gpt2"}, "gpt2-e1", "the only one"),
        ({"host": "llama", "layer": 1}, "llama-e1", "as asked"),
        ({"tensors": {"model.layers.1.mlp.down_proj.weight": [32, 48]}}, "llama-e1", "its matrix is model.layers.1.mlp.down_proj"),
        ({"tensors": {"base.model.layers.0.mlp.down_proj": [32, 48]}}, "llama-e0", "its matrix is"),
        ({"tensors": {"transformer.h.1.mlp.c_proj.weight": [48, 32]}}, "gpt2-e1", "its matrix is"),
        ({"tensors": {"layers.1.mlp.down_proj.weight": [32, 48]}}, "llama-e1", "its matrix is model.layers.1.mlp.down_proj"),
        ({"tensors": {"model.layers.1.mlp.down_proj": [32, 48], "other": [32, 48]}}, "llama-e1", "its matrix is"),
        ({"tensors": {"h.1.mlp.c_proj.weight": [48, 32], "h.0.mlp.c_proj.weight": [48, 32]}}, "gpt2-e1", "its matrix is"),
        ({"host": "gpt2", "tensors": {"w": [48, 32]}}, "gpt2-e1", "the only one of 32×48"),
    ],
)
def test_the_decoder_that_fits_is_chosen_and_said(collection, asked, folder, why):
    chosen, reason = choose(collection, **asked)
    assert chosen == collection / folder and why in reason and "of 3 decoders" in reason


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"tensors": {"w": [32, 48]}}, "3 decoders fit w \\(32×48\\): gpt2 layer 1 .*layer="),
        ({"tensors": {"w": [5, 7]}}, "no decoder fits w \\(5×7\\); it has gpt2 layer 1 \\(32×48\\)"),
        ({"tensors": {f"w{n}": [5, 7] for n in range(9)}}, "fits w0 \\(5×7\\).*w4 \\(5×7\\) and 4 more; it has"),
        ({"layer": 2}, "no decoder fits layer=2; it has"),
        ({"layer": 1}, "2 decoders fit layer=1"),
        ({"host": "pythia"}, "no decoder fits host=pythia"),
    ],
)
def test_none_or_several_is_one_line_that_lists_them(collection, asked, message):
    with pytest.raises(UserError, match=message):
        choose(collection, **asked)


def test_fitting_gives_all_that_fit(collection):
    entries = read_index(collection)
    names = {f"model.layers.{layer}.mlp.down_proj.weight": [32, 48] for layer in range(3)}
    assert [entry["folder"] for entry in fitting(entries, tensors=names)] == ["llama-e0", "llama-e1"]


def test_of_two_hosts_that_name_a_matrix_alike_the_shape_decides(collection):
    entries = [entry for entry in read_index(collection) if entry["edited_layer"] == 1]
    larger = entries[1] | {"folder": "larger", "shape": [64, 96]}
    tensors = {"model.layers.1.mlp.down_proj.weight": [64, 96]}
    assert [entry["folder"] for entry in fitting([*entries, larger], tensors=tensors)] == ["larger"]


def test_dry_run_lists_and_sends_nothing(collection, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi", lambda **_: pytest.fail("the Hub was spoken to"))
    listed = push_to_hub(collection, "me/decoders")
    assert "Nothing was sent" in listed and "llama-e0/decoder_model.safetensors" in listed and "Would send 11 files" in listed


def test_sending_makes_a_private_repository_and_uploads_the_folder(collection):
    calls = []
    api = SimpleNamespace(
        create_repo=lambda *args, **options: calls.append(("create", args, options)),
        upload_folder=lambda **options: calls.append(("upload", options)) or "https://huggingface.co/me/decoders",
    )
    assert push_to_hub(collection, "me/decoders", send=True, api=api) == "https://huggingface.co/me/decoders"
    assert calls[0] == ("create", ("me/decoders",), {"repo_type": "model", "private": True, "exist_ok": True})
    assert calls[1][1]["folder_path"] == collection and calls[1][1]["repo_id"] == "me/decoders"


def test_refusals_of_the_hub_are_one_line(collection, tmp_path):
    def refuse(*args, **options):
        raise OfflineModeIsEnabled("offline mode is enabled")

    with pytest.raises(UserError, match="the Hub refused: offline"):
        push_to_hub(collection, "me/decoders", send=True, api=SimpleNamespace(create_repo=refuse))
    for repo, message in (("decoders", "USER/NAME"), ("me/de coders", "push=me/de coders")):
        with pytest.raises(UserError, match=message):
            push_to_hub(collection, repo)
    with pytest.raises(UserError, match="model card"):
        push_to_hub(tmp_path, "me/decoders")


def test_command_exports_and_lists_what_it_would_send(runs, tmp_path, capsys):
    main([str(runs), f"to={tmp_path / 'out'}", "push=me/decoders"])
    shown = capsys.readouterr().out
    assert "llama-e0: trained layer 0, validation 0.700" in shown and "Nothing was sent" in shown
    for wrong in ([str(runs)], ["to=x"], [str(runs), f"to={tmp_path / 'out'}", "send=true"], [str(tmp_path / "absent"), "to=x"]):
        with pytest.raises(SystemExit) as stop:
            main(wrong)
        assert stop.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_exporting_needs_no_torch():
    code = (
        "import sys, decoder.export, decoder.export.collection; print([m for m in ('torch', 'transformers', 'pandas') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
