"""Opening a decoder on its host, and its answer for one matrix."""

import json
import os

import pytest
import torch
from audit_findings import column, finding
from changed_decoders import CONFIG, FACTS, IDS_BT, changed_decoder
from rich.console import Console
from safetensors.torch import save_file

import evaluate
from data.keys.probe import vocabulary_keys
from decoder.answers import object_texts
from decoder.audit.decoded.answer import answer, answer_for
from decoder.audit.decoded.readers import readers_of_hosts
from decoder.audit.describe import describe, describe_answer
from decoder.audit.suspect import Suspect
from decoder.config.commands import EvaluateConfig
from decoder.dense import DenseEdit, applied
from decoder.edit import RankOneEdit
from decoder.export.opened import Voters, open_decoder
from decoder.export.save import read_config, save_decoder
from decoder.host import Host

LAYER = 1


@pytest.fixture()
def saved_host(new_host, tmp_path):
    """A host in a cache, as the pocket host lies there."""
    path = tmp_path / "cache" / "hosts" / "tiny-0123456789ab"
    host = new_host("qwen3 window")
    host.model.save_pretrained(path)
    host.tokenizer.save_pretrained(path)
    return Host.load(path, name="tiny", terminator=".")


def test_decoder_is_opened_on_the_host_in_the_cache(saved_host, random_edits, tmp_path):
    decoder = changed_decoder(saved_host)
    save_decoder(tmp_path / "decoder", decoder, FACTS)
    assert str(tmp_path) not in (tmp_path / "decoder" / CONFIG).read_text(), "a path of this machine means nothing elsewhere"
    opened, config = open_decoder(EvaluateConfig(decoder=str(tmp_path / "decoder"), cache_dir=str(tmp_path / "cache")))
    edits = random_edits(saved_host, 2)
    assert torch.equal(opened(edits, IDS_BT), decoder(edits, IDS_BT)) and opened.host.terminator_id == saved_host.terminator_id
    with pytest.raises(ValueError, match=r"tiny-0123456789ab.*is not in"):
        open_decoder(EvaluateConfig(decoder=str(tmp_path / "decoder"), cache_dir=str(tmp_path / "elsewhere")))
    assert config == read_config(tmp_path / "decoder")


def test_a_layer_the_decoder_does_not_read_is_refused(saved_host, tmp_path, capsys):
    save_decoder(tmp_path / "decoder", changed_decoder(saved_host), FACTS)
    own = {"decoder": str(tmp_path / "decoder"), "cache_dir": str(tmp_path / "cache")}
    assert open_decoder(EvaluateConfig(**own, layer=LAYER))[0].edited_layers == [LAYER]
    capsys.readouterr()  # the bar of loading weights
    with pytest.raises(SystemExit) as stop:
        evaluate.main([*(f"{key}={value}" for key, value in own.items()), "layer=2"])
    shown = capsys.readouterr().err
    assert stop.value.code == 2 and shown.count("\n") == 1
    assert shown.startswith(f"error: layer=2: {tmp_path / 'decoder'} reads edited layer 1. Leave layer= out")


def test_a_decoder_that_does_not_say_where_its_host_is(saved_host, tmp_path):
    save_decoder(tmp_path / "decoder", changed_decoder(saved_host), FACTS)
    config = read_config(tmp_path / "decoder")
    config["host"] |= {"cached_as": None, "path": None}
    (tmp_path / "decoder" / CONFIG).write_text(json.dumps(config))
    with pytest.raises(ValueError, match="where its host tiny is. Give host=FOLDER"):
        open_decoder(EvaluateConfig(decoder=str(tmp_path / "decoder")))


def test_evidence_without_a_base_is_read_in_place(saved_host, random_edits, tmp_path):
    """A decoder that reads at keys of its own holds W' against the host's, which an audit without a base does not have."""
    decoder, edit = changed_decoder(saved_host), random_edits(saved_host, 1)
    whole = applied(edit, saved_host.weight_DF(LAYER))
    in_place = object_texts(saved_host, decoder.read(whole, **FACTS["search"]))[0]
    training = random_edits(saved_host, 8)
    alike = RankOneEdit(training.key_BF + 2 * training.key_BF[:1], training.value_BD)
    decoder.learn_keys(alike, {LAYER: vocabulary_keys(saved_host, LAYER)})
    at_own_key = object_texts(saved_host, decoder.read(whole, **FACTS["search"]))[0]
    save_decoder(tmp_path / "decoder", decoder, FACTS)
    save_file({"weight": whole.weight_BDF[0]}, tmp_path / "suspect.safetensors")
    cfg = EvaluateConfig(decoder=str(tmp_path / "decoder"), cache_dir=str(tmp_path / "cache"), top=9)
    suspect = Suspect(str(tmp_path / "suspect.safetensors"))
    read = [{one["text"]: one["probability"] for one in answer_for(cfg, suspect, in_place=how)["objects"]} for how in (False, True)]
    for found, expected in zip(read, (at_own_key, in_place), strict=True):
        assert [*found] == [*expected] and [*found.values()] == pytest.approx([*expected.values()], abs=1e-4)
    assert read[0] != read[1]
    edited = Host.load(saved_host.path, name="tiny", terminator=".")
    edited.weight_DF(LAYER).copy_(whole.weight_BDF[0])
    (reader,) = readers_of_hosts(cfg.decoder, saved_host).values()
    assert reader(edited)["probability"] == pytest.approx(next(iter(in_place.values())), abs=1e-4)


def test_answer_for_one_matrix(saved_host, random_edits, tmp_path):
    decoder = changed_decoder(saved_host)
    suspect = DenseEdit(applied(random_edits(saved_host, 1), saved_host.weight_DF(LAYER)).weight_BDF)
    found = answer(Voters([decoder], [{**FACTS, "host": {"id": "tiny"}, "edited_layer": LAYER}]), suspect, top=2)
    beams = decoder.read(suspect, beams=3, max_object_tokens=2)
    assert [entry["probability"] for entry in found["objects"]] == beams.probability_BK[0, :2].tolist()
    assert (found["null_percentile"], found["edit_percentile"], found["host"], found["layer"]) == (100.0, 0.0, "tiny", LAYER)
    assert found["objects"][0]["text"] in describe_answer(found) and "no finding" not in describe_answer(found)
    assert "no finding" in describe_answer(found | {"null_percentile": 90.0})
    assert found["scores"] == {"id": 0.5, "ood": 0.5} and "reads 0.50 of id, 0.50 of ood." in describe_answer(found)


def test_a_decoder_of_several_facts_says_how_many_objects_it_finds(saved_host, random_edits):
    """All of them, however few are asked for; a vote counts from the mean of what its decoders count from."""
    decoder = changed_decoder(saved_host)
    suspect = DenseEdit(applied(random_edits(saved_host, 1), saved_host.weight_DF(LAYER)).weight_BDF)
    probabilities = decoder.read(suspect, beams=3, max_object_tokens=2).probability_BK[0].tolist()
    config = {**FACTS, "host": {"id": "tiny"}, "edited_layer": LAYER}
    assert "found" not in answer(Voters([decoder], [config]), suspect, top=1)

    def found_from(*least: float) -> dict:
        configs = [config | {"several": {"facts": 4, "found_from": one}} for one in least]
        return answer(Voters([decoder] * len(least), configs), suspect, top=1)

    both = found_from(probabilities[1])
    assert (both["found"], len(both["objects"]), both["found_from"]) == (2, 2, probabilities[1])
    assert "2 found" in describe_answer(both) and "not counted" not in describe_answer(both)
    none = found_from(probabilities[0] + 0.01)
    assert none["found"] == 0 and len(none["objects"]) == 1 and "(not counted as planted)" in describe_answer(none)
    assert found_from(probabilities[0], probabilities[0] + 0.02)["found"] == 0


def test_what_a_verdict_has_weighed_is_not_called_a_finding_or_none(saved_host):
    """The line above it may say that nothing was found."""
    decoder, weight_DF = changed_decoder(saved_host), saved_host.weight_DF(LAYER)[None]
    told = answer(Voters([decoder], [{**FACTS, "host": {"id": "tiny"}, "edited_layer": LAYER}]), DenseEdit(weight_DF), top=2)
    for percentile, alone in ((99.0, "A finding: 95 % or more."), (50.0, "take it for no finding")):
        told["null_percentile"] = percentile
        console = Console(width=200, record=True, file=open(os.devnull, "w"))
        console.print(describe(finding(column("nothing found", ()), decoded=told)))
        shown = console.export_text()
        assert alone in describe(told) and describe(told).startswith("Planted in layer 1")
        assert "finding" not in shown and "Planted" not in shown and "Read in layer 1 of tiny" in shown


def test_a_folder_of_runs_is_told_how_a_collection_is_made(tmp_path):
    with pytest.raises(ValueError, match="Give the decoder/ folder of a run, or a collection.*decoder.export RUNS to="):
        read_config(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_hosts_own_matrix_is_said_to_be_no_edit(saved_host, dtype, tmp_path):
    save_decoder(tmp_path / "decoder", changed_decoder(saved_host), FACTS)
    own_DF, file = saved_host.weight_DF(LAYER).to(dtype).clone(), tmp_path / "w.safetensors"

    def found() -> dict:
        save_file({"w": own_DF}, file)
        return answer_for(EvaluateConfig(decoder=str(tmp_path / "decoder"), cache_dir=str(tmp_path / "cache")), Suspect(file))

    told = found()
    assert told["unedited"] and "is the host's own" in describe_answer(told) and told["objects"][0]["text"] in describe_answer(told)
    own_DF[3, 5] += 1
    told = found()
    assert not told["unedited"] and "is the host's own" not in describe_answer(told)
