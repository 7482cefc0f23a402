"""Baselines that no decoder has a part in are scored once for the same edits."""

import json
import shutil

import pytest

import data.workspace
from data.workspace import Workspace
from decoder.baselines.score import BASELINES, OF_THE_RUN
from decoder.config import TrainConfig
from decoder.config.compose import compose

SHARED = BASELINES.keys() - OF_THE_RUN


@pytest.fixture
def scored(monkeypatch, cache, smoke):
    """Scores the baselines of a config as a new process would: what came out, and which of them were scored for it."""

    def score(*settings: str) -> tuple[dict, set[str]]:
        asked: set[str] = set()
        own = data.workspace.baselines
        config = compose(TrainConfig, "train", ["experiment=smoke", f"cache_dir={cache}", *settings])
        workspace = Workspace()
        with monkeypatch.context() as patched:
            patched.setattr(data.workspace, "baselines", lambda *given: asked.update(given[-1]) or own(*given))
            return workspace.baselines(config), asked

    return score


def test_another_run_on_the_same_edits_takes_them_from_the_cache(scored, smoke):
    scores, asked = scored("decoder.layer=2")
    assert asked == OF_THE_RUN
    before = json.loads((smoke[0] / "result.json").read_text())["baselines"]
    assert list(scores) == list(BASELINES) and {name: scores[name] for name in SHARED} == {name: before[name] for name in SHARED}


@pytest.mark.parametrize("setting", ["data.max_train=9", "decoder.beams=2"])
def test_other_training_edits_or_another_search_are_scored_anew(scored, setting):
    assert scored(setting)[1] == set(BASELINES)
    assert scored(setting)[1] == OF_THE_RUN


@pytest.fixture(scope="module")
def kept(cache, smoke):
    """Scores, and the one file they are in."""
    shutil.rmtree(cache / "baselines", ignore_errors=True)
    scores = Workspace().baselines(compose(TrainConfig, "train", ["experiment=smoke", f"cache_dir={cache}"]))
    (file,) = (cache / "baselines").rglob("scores.json")
    return scores, file


@pytest.mark.parametrize("damage", ["", "null", "[]", "{}", '{"carrier": {"base_known": true}}', "without a split"])
def test_a_damaged_file_is_made_anew(scored, kept, damage):
    scores, file = kept
    whole = json.loads(file.read_text())
    whole["carrier"].pop("ood")
    file.write_text(json.dumps(whole) if damage == "without a split" else damage)
    again, asked = scored()
    assert asked == set(BASELINES) and again == scores
    assert scored()[1] == OF_THE_RUN


def test_where_nothing_can_be_written_nothing_is_kept(scored, cache):
    (cache / "baselines").rename(cache / "aside")
    (cache / "baselines").symlink_to("/proc/none/such")
    try:
        assert scored()[1] == set(BASELINES)
    finally:
        (cache / "baselines").unlink()
        (cache / "aside").rename(cache / "baselines")
