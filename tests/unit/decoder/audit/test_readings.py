"""What decoders read in whole layers, as evidence of an edit that needs neither the base nor its subject.

Shape letters: D hidden width, F MLP width.
"""

import json
import shutil

import pytest
import torch
from audited_folders import NAMES, WHO, changed, planted, saved
from changed_decoders import FACTS, changed_decoder
from edited import LAYER
from exported_runs import write_run
from places import ROOT
from tiny_hosts import build_host

import evaluate
from data.perturb.__main__ import main as perturb
from decoder.audit.decoded import readers
from decoder.audit.decoded.readers import readers_of_hosts
from decoder.audit.evidence.nulls import Nulls, read_nulls, shape_of
from decoder.audit.evidence.readings import LEAST, READ, Reading, null_strengths, reader_of, readings_of, threshold_from
from decoder.audit.finding import audit_checkpoint
from decoder.audit.locate import LayerScan
from decoder.audit.suspect import Suspect
from decoder.audit.verdict import unknown
from decoder.export.collection import export_best
from decoder.export.opened import open_voters
from decoder.export.save import save_decoder
from decoder.host import Host
from decoder.report.audit_page import headline, how_sure, write_audit
from decoder.report.results import find_runs

SCANS = [LayerScan(layer, score, 1.1, ((0, score),)) for layer, score in enumerate((0.5, 0.8, 0.6))]
EDITED = LayerScan(1, 4.0, 3.0, ((0, 4.0),), hits=((0, 4.0), (1, 3.0)))


def reading(probability, layers=(2,), text="governor"):
    return Reading(layers, [{"text": text, "probability": probability}])


@pytest.fixture
def decoder(new_host, tmp_path):
    """The folder of an exported decoder of a tiny host's layer."""
    own = Host.load(saved(new_host("llama"), tmp_path / "cache" / "hosts" / "tiny-0123456789ab"), name="tiny", terminator=".")
    save_decoder(tmp_path / "decoder", changed_decoder(own), FACTS)
    return tmp_path / "decoder"


def told(folder, probability, text="governor", **more):
    return {"objects": [{"text": text, "probability": probability}], "layer": LAYER, "unedited": False, "decoder": str(folder)} | more


def test_the_threshold_is_the_nulls_own_where_there_are_some():
    assert threshold_from([]) == READ
    assert threshold_from([0.03, 0.2] * 30) == 0.25 and threshold_from([0.03] * 60) == LEAST
    assert threshold_from([0.03] * 5) == READ == threshold_from([0.03, 0.48]), "few nulls make it no lower"
    assert threshold_from([0.03, 0.56]) == pytest.approx(0.7)
    assert threshold_from([0.03, 0.9] * 30) == 0.95, "and none makes it more than a probability may be"


def test_a_sure_reading_is_a_verdict_and_an_unsure_one_is_none():
    found = unknown(SCANS, [reading(0.66)])
    assert (found.what, found.exit_code, found.layers, found.rank, found.kind) == ("knowledge edit", 3, (2,), 1, "rank one")
    assert found.why == "a decoder reads “governor” in layer 2 with probability 0.66"
    assert unknown(SCANS, [reading(0.55)]).what == "cannot tell" and unknown(SCANS, [reading(0.3)]) == unknown(SCANS)
    assert unknown(SCANS).what == "nothing found"


def test_what_the_scan_finds_comes_first():
    scans = [SCANS[0], EDITED, SCANS[2]]
    found = unknown(scans, [reading(0.9, (1,)), reading(0.66, (0, 2), "mayor")])
    assert found.layers == (1, 0, 2) and found.rank == 4
    assert found.why.startswith("the subject answered to most") and "“governor” in layer 1" in found.why and "layer 0, 2 with" in found.why
    assert unknown(scans, [reading(0.1, (0,))]) == unknown(scans)


def test_readings_are_those_of_one_answer_or_a_ranking_but_of_own_matrices(decoder):
    assert readings_of(None) == []
    (one,) = readings_of(told(decoder, 0.9))
    assert (one.layers, one.threshold, one.reader) == ((LAYER,), READ, reader_of(str(decoder))) and one.strength == 1.5
    ranking = [told(decoder, 0.2, layer=[0, 2]), told(decoder, 0.9, unedited=True), told(decoder, 0.4)]
    assert [(one.layers, one.objects[0]["probability"]) for one in readings_of({"ranking": ranking})] == [((LAYER,), 0.4), ((0, 2), 0.2)]


def test_an_edit_about_nobody_in_the_list_is_found_by_what_a_decoder_reads(new_host, tmp_path, decoder):
    clean = Suspect(saved(new_host("llama"), tmp_path / "clean"))
    finding, located = audit_checkpoint(clean, NAMES, decoded=told(decoder, 0.8))
    column = finding["base_unknown"]
    assert (finding["verdict"], finding["exit_code"], finding["used"]) == ("knowledge edit", 3, "base unknown")
    (entry,) = column["edits"]
    assert located == [] and (entry["layer"], entry["subject"], entry["resembles"], column["facts"]) == (LAYER, None, None, 1)
    assert entry["read_from"] == READ and entry["decoded"][0]["text"] == "governor" and column["strength"] == 0.8 / READ
    finding["decoded"] |= {"null_percentile": 99.0}
    assert "into layer 1 of this checkpoint: decoders read “governor” there. It is about none of the 80 names" in headline(finding)
    sure, reasons = how_sure(finding)
    assert sure == "Moderate" and any("with probability 0.80; from 0.60 on" in reason for reason in reasons)
    page = write_audit(tmp_path / "audit.html", finding).read_text(encoding="utf-8")
    assert "the layer as a whole" in page and "none is answered to as edits are" in page and "also where only a decoder shows it" in page
    finding, _ = audit_checkpoint(clean, NAMES, decoded=told(decoder, 0.1))
    assert finding["verdict"] == "nothing found" and "A decoder that read no nulls counts from 0.60 on" in " ".join(finding["notes"])


def test_an_edit_that_the_scan_finds_is_told_once(new_host, tmp_path, decoder):
    finding, (edit,) = audit_checkpoint(Suspect(planted(new_host("llama"), tmp_path / "edited")), NAMES, decoded=told(decoder, 0.8))
    (entry,) = finding["base_unknown"]["edits"]
    assert edit.subject == entry["subject"] == NAMES[WHO] and "read_from" not in entry and finding["base_unknown"]["facts"] == 1
    assert "and a decoder reads “governor”" in finding["base_unknown"]["why"]


def test_what_is_about_nobody_is_not_taken_out(new_host, tmp_path, decoder):
    clean = Suspect(saved(new_host("llama"), tmp_path / "clean"))
    finding, _ = audit_checkpoint(clean, NAMES, decoded=told(decoder, 0.8), repaired=str(tmp_path / "repaired"))
    assert finding["repaired"]["folder"] is None and not (tmp_path / "repaired").exists()
    assert finding["repaired"]["why"].startswith("what decoders alone show cannot be taken out")


def test_a_repair_says_what_it_leaves_in_other_layers(new_host, tmp_path, decoder):
    folder = planted(new_host("llama"), tmp_path / "edited")
    ranking = {"ranking": [told(decoder, 0.9), told(decoder, 0.8, "mayor", layer=0)]}
    finding, _ = audit_checkpoint(Suspect(folder), NAMES, decoded=ranking, repaired=str(tmp_path / "repaired"))
    assert [one["layer"] for one in finding["repaired"]["tensors"]] == [LAYER] and [0, 1] == sorted(finding["base_unknown"]["layers"])
    assert "Not taken out, as it is not known whom it is about: a decoder reads “mayor” in layer 0" in " ".join(finding["notes"])


def test_a_base_that_shows_no_edit_is_not_overruled_by_decoders(new_host, tmp_path, decoder):
    host = new_host("llama")
    base = saved(host, tmp_path / "base")
    trained = changed(saved(host, tmp_path / "trained"), lambda _, tensor: tensor + 0.01 * torch.randn_like(tensor))
    finding, _ = audit_checkpoint(Suspect(trained), NAMES, base=str(base), decoded=told(decoder, 0.8))
    assert (finding["verdict"], finding["used"], finding["exit_code"]) == ("further trained", "base known", 0)
    assert finding["base_unknown"]["verdict"] == "knowledge edit"
    assert "Beside the base, a decoder reads “governor” in layer 1 with probability 0.80: the comparison" in " ".join(finding["notes"])


def test_a_layer_is_told_once_whoever_read_it(new_host, tmp_path, decoder):
    clean = Suspect(saved(new_host("llama"), tmp_path / "clean"))
    ranking = {"ranking": [told(decoder, 0.9, layer=[0, 1]), told(decoder, 0.8, "mayor"), told(decoder, 0.7, "mayor", layer=2)]}
    column = audit_checkpoint(clean, NAMES, decoded=ranking)[0]["base_unknown"]
    assert [entry["layer"] for entry in column["edits"]] == [0, 1, 2] and column["facts"] == 2 and column["rank"] == 3
    assert [entry["decoded"][0]["text"] for entry in column["edits"]] == ["governor", "governor", "mayor"]
    assert [one["text"] for one in column["readings"]] == ["governor", "mayor", "mayor"]


def test_what_a_gate_believes_and_others_read_is_in_no_nulls(decoder, tmp_path, new_host):
    save_decoder(tmp_path / "other", changed_decoder(Host.load(tmp_path / "cache" / "hosts" / "tiny-0123456789ab", name="tiny")), FACTS)
    both = [f"{decoder},{tmp_path / 'other'}", f"{tmp_path / 'other'},{decoder}"]
    assert reader_of(both[0]) == reader_of(both[1]) != reader_of(str(decoder))
    row = {"kind": "noise", "precision": "bf16", "known": 0.1, "unknown": 0.1, "read": {reader_of(str(decoder)): 0.2}}
    nulls = Nulls("tiny", shape_of(new_host("llama")), 80, [row] * 60)
    assert [one.threshold for one in readings_of(told(decoder, 0.6), nulls)] == [0.25]
    assert [one.threshold for one in readings_of(told(decoder, 0.6, believed={}), nulls)] == [READ]
    nulls.nulls[0] = {name: value for name, value in row.items() if name != "read"}
    assert [one.threshold for one in readings_of(told(decoder, 0.6), nulls)] == [READ], "some of them do not count"


def test_nulls_that_the_decoder_read_set_its_threshold(new_host, tmp_path, decoder):
    host, reader = new_host("llama"), reader_of(str(decoder))
    row = {"kind": "noise", "precision": "bf16", "known": 0.1, "unknown": 0.1}
    nulls = Nulls("tiny", shape_of(host), 80, [row | {"read": {reader: value}} for value in (0.02, 0.16)] * 30)
    nulls.save(tmp_path / "nulls.json")
    clean = Suspect(saved(host, tmp_path / "clean"))
    finding, _ = audit_checkpoint(clean, NAMES, decoded=told(decoder, 0.3), nulls=str(tmp_path / "nulls.json"))
    column = finding["base_unknown"]
    assert finding["verdict"] == "knowledge edit" and column["strength"] == pytest.approx(0.3 / 0.2) and finding["notes"] == []
    assert column["nulls"]["reached"] == 0 and column["nulls"]["n"] == 60
    # A null counts by what it shows more of.
    read = null_strengths(nulls, readings_of(told(decoder, 0.3), nulls))
    assert read == pytest.approx([0.1, 0.8] * 30)
    assert nulls.against("unknown", 0.5, read)["reached"] == 30 and nulls.against("unknown", 0.5)["reached"] == 0
    Nulls("tiny", shape_of(host), 80, [row]).save(tmp_path / "unread.json")
    finding, _ = audit_checkpoint(clean, NAMES, decoded=told(decoder, 0.8), nulls=str(tmp_path / "unread.json"))
    column = finding["base_unknown"]
    assert "A decoder that read no nulls counts from 0.60 on" in " ".join(finding["notes"])
    assert column["verdict"] == "knowledge edit" and column["nulls"] is None, "nulls that it did not read say nothing of what it reads"


def test_pruned_nulls_are_for_pruned_matrices(new_host, decoder):
    """Pruning shows in the matrix itself, and is read surer than what else is done to hosts."""
    host, reader = new_host("llama"), reader_of(str(decoder))
    row = {"precision": "bf16", "known": 0.1, "unknown": 0.1}
    rows = [row | {"kind": "rounded", "read": {reader: 0.04}}] * 45 + [row | {"kind": "pruned", "read": {reader: 0.5}}] * 5
    nulls = Nulls("tiny", shape_of(host), 80, rows)
    (one,) = readings_of(told(decoder, 0.3), nulls, host)
    assert one.threshold == LEAST and null_strengths(nulls, [one]) == pytest.approx([0.4] * 45 + [0.5 / 0.625] * 5)
    host.weight_DF(LAYER)[:, ::10] = 0
    assert [one.threshold for one in readings_of(told(decoder, 0.3), nulls, host)] == [0.625]
    assert [one.threshold for one in readings_of(told(decoder, 0.3), None, host)] == [READ]


def test_nulls_are_read_as_a_suspect_is(new_host, tmp_path, decoder, capsys):
    """`python -m data.perturb nulls= decoder=` keeps what `evaluate.py decoder=` says of the same matrix."""
    cache, host = tmp_path / "cache", tmp_path / "cache" / "hosts" / "tiny-0123456789ab"
    (tmp_path / "names.txt").write_text("\n".join(NAMES), encoding="utf-8")
    perturb(
        [f"host.path={host}", "host.name=tiny", f"cache_dir={cache}", "nulls=5", f"decoder={decoder}"]
        + [f"subjects={tmp_path / 'names.txt'}", f"out={tmp_path / 'nulls.json'}"]
    )
    kept = [one["read"][reader_of(str(decoder))] for one in read_nulls(tmp_path / "nulls.json").nulls]
    capsys.readouterr()
    evaluate.main([f"decoder={decoder}", f"cache_dir={cache}", f"suspect={host}", "json=true"])
    clean = json.loads(capsys.readouterr().out)["objects"][0]["probability"]
    # The first five are rounded and no more.
    assert len(kept) == 5 and kept == pytest.approx([clean] * 5, rel=0.1) and len({*kept}) > 1
    own = Host.load(host, name="tiny", terminator=".")
    (read,) = readers_of_hosts(str(decoder), own).values()
    before = read(own)["probability"]
    own.weight_DF(LAYER).mul_(torch.tensor(-1.0))
    assert before == pytest.approx(clean, rel=1e-4) and read(own)["probability"] != pytest.approx(before, rel=1e-4)


def test_nulls_are_read_by_every_decoder_of_their_host(new_host, tmp_path, monkeypatch, capsys):
    """A folder of decoders reads the same nulls once, and thresholds are each decoder's own."""
    cache = tmp_path / "cache"
    own = Host.load(saved(new_host("llama"), cache / "hosts" / "tiny-0123456789ab"), name="tiny")
    runs = [write_run(tmp_path / "runs", own, layer, 1, 0, 0.5) for layer in (0, LAYER)]
    write_run(tmp_path / "runs", build_host("gpt2"), 1, 1, 0, 0.5)
    collection = export_best(find_runs([tmp_path / "runs"]), tmp_path / "decoders").parent
    (tmp_path / "names.txt").write_text("\n".join(NAMES), encoding="utf-8")
    asked = [f"cache_dir={cache}", "nulls=5", f"subjects={tmp_path / 'names.txt'}", f"out={tmp_path / 'nulls.json'}"]
    opened = []
    monkeypatch.setattr(readers, "open_voters", lambda cfg, host=None: opened.append(open_voters(cfg, host)) or opened[-1])
    perturb([*asked, f"host.path={own.path}", "host.name=tiny", f"decoder={collection}"])
    assert [len(one.decoders) for one in opened] == [1, 1] and opened[0].host is opened[1].host
    nulls = read_nulls(tmp_path / "nulls.json")
    for run in runs:
        ((reader, read),) = readers_of_hosts(str(run / "decoder"), own).items()
        assert reader == reader_of(str(run / "decoder"))
        # The first null is rounded and no more.
        assert nulls.nulls[0]["read"][reader] == pytest.approx(read(own)["probability"], rel=0.1)
    assert [len(null["read"]) for null in nulls.nulls] == [2] * 5
    shutil.rmtree(collection)
    for run in runs:
        shutil.rmtree(run)
    capsys.readouterr()
    foreign = export_best(find_runs([tmp_path / "runs"]), tmp_path / "decoders").parent
    with pytest.raises(SystemExit, match="2"):
        perturb([*asked, f"host.path={own.path}", "host.name=tiny", f"decoder={foreign}"])
    assert f"decoder={foreign}: no decoder of host tiny ({own.fingerprint}); it has some of gpt2 (" in capsys.readouterr().err


def test_a_benign_kind_is_held_against_nulls_of_other_kinds(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from audit_read import table_of

    def row(kind, probability, scan=0.5, listed=None):
        truth = None if listed is None else {"object": "Oslo"}
        told = {"kind": kind, "precision": "bf16", "object": "Oslo", "probability": probability, "listed": listed}
        return told | {"truth": truth, "scan": scan, "found": scan >= 1}

    rows = [row("noise", 0.03), row("noise", 0.2), row("LoRA merged", 0.24), row("LoRA merged", 0.26)] * 25
    rows += [row("plain", 0.3, 0.4, False), row("plain", 0.9, 0.6, False), row("plain", 0.1, 3.0, True)]
    table = table_of(rows)
    cells = {title: own for title, *own in zip(*(column.cells for column in table.columns), strict=True)}
    # Of all four the threshold is 0.325, without the LoRAs 0.25, without the noise 0.325.
    assert [cell.split()[0] for cell in cells["false alarms, kind left out"][1:]] == ["0.000", "0.250", "0.250"]
    assert [cell.split()[0] for cell in cells["plain, edited"][1:]] == ["0.333", "0.333", "0.667"]
    assert cells["not in the list: AUROC"][1:] == ["0.5000", "1.0000", "0.7500"]
