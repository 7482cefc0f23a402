"""What pages look like on paper: printed by a browser, from results that nobody measured."""

import json

import pandas as pd
from browser import needs_printer, printed
from fabricated_runs import write_run

from decoder.report.compare_page import write_comparison
from decoder.report.results import find_runs
from decoder.report.run_page import write_report


@needs_printer
def test_the_page_of_a_run_prints_whole(tmp_path):
    run = write_run(tmp_path, 1, 1, 0)
    predictions = [
        {
            "edit_id": f"e{i:03d}",
            "subject": f"Subject {i}",
            "relation": "P106",
            "relation_name": "occupation",
            "object_true": "mathematician",
            "object": "composer",
            "predicted": "composer" if i % 2 else "painter",
            "probability": 0.5,
            "split": "id",
        }
        for i in range(60)
    ]
    pd.DataFrame(predictions).to_parquet(run / "predictions.parquet")
    sheets = printed(write_report(run), tmp_path)
    assert 2 <= len(sheets) <= 6
    tables = [sheet for sheet in sheets if {"right", "wrong"} & set(sheet.texts) and "Subject" in sheet.texts]
    assert len(tables) > 1, "the table of edits goes over a page's end"
    for sheet in tables:
        assert sheet.top_of("planted") < sheet.top_of("composer") and "before" in sheet.texts
    assert sum(sheet.texts.count("Subject") for sheet in sheets) == 40
    assert not any("Configuration" in sheet.texts for sheet in sheets), "what is folded has no place on paper"


@needs_printer
def test_long_names_and_settings_print_without_shrinking_or_cutting(tmp_path):
    host = {"name": "pythia-6.9b-deduped-step143000", "path": "somewhere"}
    for rate in (1e-3, 5e-4):
        top = tmp_path / f"a-variant-of-a-rather-long-name-lr_layer={rate}-lr_prompt=0.0001"
        for trained in range(8):
            for seed in (0, 1):
                write_run(top, 1, trained, seed, host=host, optim={"lr_layer": rate, "lr_prompt": rate / 10, "weight_decay": 0.01 + rate})
    (write_run(tmp_path, 1, 9, 0) / "result.json").write_text(json.dumps({"schema": 1, "status": "failed", "error": "no" * 300}))
    sheets = printed(write_comparison(find_runs([tmp_path]), tmp_path), tmp_path)
    assert 5 <= len(sheets) <= 12
    title = next(word for word in sheets[0].words if word.text == "Which")
    assert title.bottom - title.top > 18, "what is wider than the paper shrinks all sheets"
    wide = [sheet for sheet in sheets if sheet.width > sheet.height]
    assert len(wide) > 1 and "Runs" in wide[0].texts, "the table of runs lies across"
    for sheet in wide:
        assert {"run", "host", "settings", "trained", "validation", "seconds"} <= set(sheet.texts)
        assert sheet.top_of("seconds") < sheet.top_of("121"), "the head comes before its rows"
    assert sum(sheet.texts.count("121") for sheet in wide) == 32, "every run has its row, whole on one sheet"
