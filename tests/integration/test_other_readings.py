"""A decoder on other stores and other precisions than its own, through the command line."""

import json

import pytest


def scores(command, smoke, *arguments: str) -> dict:
    done = command("evaluate.py", f"decoder={smoke[0] / 'decoder'}", *arguments, "json=true")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def r_rome(command, smoke, tmp_path_factory):
    """The same requests, made by another editor; needs the host that the run has built."""
    store = tmp_path_factory.mktemp("stores") / "r-rome"
    done = command("data.produce", "experiment=smoke", "edits=r-rome", f"store={store}")
    assert done.returncode == 0 and str(store) in done.stdout, done.stderr
    return store


def test_a_decoder_of_one_editor_reads_the_edits_of_another(command, smoke, r_rome):
    """In one command: the same splits, less the edits that failed there; each is counted."""
    own, other = scores(command, smoke), scores(command, smoke, f"store={r_rome}")
    assert (own["editor"], other["editor"]) == ("rome", "r-rome") and not own["left_out"]
    assert own["test"].keys() == other["test"].keys() >= {"id", "ood"}
    for split in ("id", "ood", "unseen_object"):
        assert other["test"][split]["n"] + other["left_out"].get(split, 0) == own["test"][split]["n"]
        low, high = other["test"][split]["exact_match"]["ci95"]
        assert 0 <= low <= other["test"][split]["exact_match"]["value"] <= high <= 1


def test_test_edits_are_scored_from_rounded_matrices(command, smoke):
    """Whole float32 matrices give what factors give; the table says what was read."""
    factors, whole = scores(command, smoke), scores(command, smoke, "precision=float32")
    assert whole["precision"] == "float32" and factors["precision"] == "factors"
    for split, found in factors["test"].items():
        assert whole["test"][split]["n"] == found["n"]
        assert whole["test"][split]["exact_match"]["value"] == pytest.approx(found["exact_match"]["value"], abs=1.5 / found["n"])
    done = command("evaluate.py", f"decoder={smoke[0] / 'decoder'}", "precision=int4")
    assert done.returncode == 0 and "from int4 matrices" in " ".join(done.stdout.split()), done.stderr


def test_stores_of_other_hosts_are_refused(command, smoke, r_rome, tmp_path):
    store = tmp_path / "store"
    store.mkdir()
    for file in r_rome.iterdir():
        (store / file.name).write_bytes(file.read_bytes())
    manifest = json.loads((store / "manifest.json").read_text())
    manifest["host"]["fingerprint"] = "0" * 12
    (store / "manifest.json").write_text(json.dumps(manifest))
    done = command("evaluate.py", f"decoder={smoke[0] / 'decoder'}", f"store={store}")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "000000000000" in done.stderr


def test_a_decoder_of_several_facts_is_scored_again_as_it_was(command, tmp_path):
    """Recall, and how many objects it finds: from the probability that its run's validation edits set, which it carries."""
    asked = (
        "experiment=smoke",
        "edits=memit",
        "edits.facts_per_host=2",
        "wandb.mode=disabled",
    )
    done = command("train.py", *asked, f"runs={tmp_path / 'runs'}")
    assert done.returncode == 0 and "where 2.0 are planted" in " ".join(done.stdout.split()), done.stderr
    (result,) = (tmp_path / "runs").rglob("result.json")
    trained = json.loads(result.read_text())["test"]
    again = scores(command, (result.parent,))["test"]
    for split in ("id", "ood", "unseen_object"):
        assert again[split]["several"] == trained[split]["several"] and again[split]["exact_match"] == trained[split]["exact_match"]
