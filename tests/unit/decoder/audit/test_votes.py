"""Two decoders that vote on a matrix, and in the audit of a checkpoint."""

import json

import pytest
import torch
from audited_folders import NAMES, planted, saved
from changed_decoders import FACTS, SCORES, M, changed_decoder
from edited import LAYER
from mean_of_texts import mean_of_texts
from safetensors.torch import save_file

import evaluate
from decoder.audit.calibration import percentile
from decoder.export.save import save_decoder
from decoder.host import Host

ALL = 9  # more objects than there are beams


@pytest.fixture
def line(new_host, tmp_path):
    """Arguments of a vote: two decoders of a host in the cache, with scores and calibrations of their own."""
    host = new_host("llama")
    own = Host.load(saved(host, tmp_path / "cache" / "hosts" / "tiny-0123456789ab"), name="tiny", terminator=".")
    for name, seed, nulls, exact in (("a", 1, 1.0, 0.5), ("b", 2, 0.01, 0.75)):
        prompt_MD = torch.randn(M, 32, generator=torch.Generator().manual_seed(seed))
        calibration = {kind: {"quantiles": torch.linspace(0, nulls, 101).tolist()} for kind in ("null", "edit")} | {"auroc": 0.9}
        scores = {"id": SCORES | {"exact_match": {"value": exact, "ci95": [0.1, 0.9]}}} | ({"ood": SCORES} if name == "a" else {})
        save_decoder(
            tmp_path / name, changed_decoder(own, prompt_MD=prompt_MD), FACTS | {"calibration": calibration, "scores": scores, "seed": seed}
        )
    save_file({"w": own.weight_DF(LAYER) + 0.3 * torch.randn(32, 48)}, tmp_path / "w.safetensors")
    return [f"cache_dir={tmp_path / 'cache'}", f"top={ALL}"]


def told(capsys, *argv):
    try:
        evaluate.main([*argv, "json=true"])
    except SystemExit as stop:
        assert stop.code == 3
    return json.loads(capsys.readouterr().out)


def texts(objects):
    return {one["text"]: one["probability"] for one in objects}


def assert_is_mean(objects, singles):
    expected = mean_of_texts([texts(single) for single in singles])
    assert [one["text"] for one in objects] == [text for text, _ in expected[:ALL]]
    assert list(texts(objects).values()) == pytest.approx([probability for _, probability in expected[:ALL]], rel=1e-5)


def test_a_suspect_is_read_by_two(line, tmp_path, capsys):
    suspect = f"suspect={tmp_path / 'w.safetensors'}"
    alone = [told(capsys, *line, suspect, f"decoder={tmp_path / name}") for name in "ab"]
    both = told(capsys, *line, suspect, f"decoder={tmp_path / 'a'},{tmp_path / 'b'}")
    assert_is_mean(both["objects"], [one["objects"] for one in alone])
    assert alone[0]["objects"][0]["text"] != alone[1]["objects"][0]["text"], "else there is nothing to vote about"
    answer, quantiles = both["objects"][0]["text"], [torch.linspace(0, nulls, 101).tolist() for nulls in (1.0, 0.01)]
    # What one of them does not say, or says less than its own answer, is no finding of it, however sure the other is.
    least = min(percentile(texts(one["objects"]).get(answer, 0.0), own) for one, own in zip(alone, quantiles, strict=True))
    assert both["null_percentile"] == both["edit_percentile"] == least < max(one["null_percentile"] for one in alone)
    assert both["voters"] == 2 and both["scores"] == {"id": 0.625} and "voters" not in alone[0]
    evaluate.main([*line, suspect, f"decoder={tmp_path / 'a'},{tmp_path / 'b'}"])
    shown = " ".join(capsys.readouterr().out.split())
    assert (
        "most probable first (the mean of 2 decoders):" in shown and "Each of the 2 decoders is more confident in the first than" in shown
    )
    assert "each alone reads on average 0.62 of id." in shown


def test_an_audit_has_what_two_read_in_each_edit(line, new_host, tmp_path, capsys):
    (tmp_path / "names.txt").write_text("\n".join(NAMES), encoding="utf-8")
    line += [f"suspect={planted(new_host('llama'), tmp_path / 'edited')}", f"subjects={tmp_path / 'names.txt'}"]
    *alone, both = (told(capsys, *line, f"decoder={tmp_path / 'a'}{more}") for more in ("", "/../b", f",{tmp_path / 'b'}"))
    read = [finding["base_unknown"]["edits"][0]["decoded"] for finding in (*alone, both)]
    assert_is_mean(read[2], read[:2])
    assert read[0] != read[1] and both["decoded"]["voters"] == 2
    assert_is_mean(both["decoded"]["objects"], [one["decoded"]["objects"] for one in alone])
