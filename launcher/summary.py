"""What a run found: its clock, its result, what is exported with it, and what the terminal shows at its end."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from data.datamodule import EditDataModule
from data.hosts import hub_id
from decoder.answers import readings_table
from decoder.audit.calibration import answers_to_nulls, calibrate
from decoder.config.compose import to_dict
from decoder.config.options import one_or_list
from decoder.report.results import read_predictions, write_result
from decoder.report.run_page import write_report
from decoder.report.tables import counted, example_lines, results_table
from decoder.scores import (
    VAL_SPLITS,
    answer_threshold,
    edit_summary,
    no_edit_scores,
    shuffled_labels,
    test_scores,
    validation_scores,
)
from decoder.training.module import DecoderModule
from decoder.training.trainer import fit_summary
from decoder.utils.files import whole_file
from decoder.utils.terminal import console

PREDICTION_COLUMNS = ["edit_id", "subject", "relation", "relation_name", "object_true", "object", "predicted", "probability", "split"]


class Clock:
    """Seconds of each named stage."""

    def __init__(self) -> None:
        self.begun, self.stages = time.perf_counter(), {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.stages[stage] = time.perf_counter() - started
        console().print(f"  {stage}: {self.stages[stage]:.0f} s", style="dim")

    def seconds(self) -> dict[str, float]:
        return {**self.stages, "total": time.perf_counter() - self.begun}


def describe_edits(datamodule: EditDataModule) -> None:
    table = datamodule.table
    counts = ", ".join(f"{split} {len(rows)}" for split, rows in datamodule.rows.items() if rows)
    means = ", ".join(f"{name} {table[name].mean():.3f}" for name in ("efficacy", "paraphrase", "specificity"))
    console().print(f"{len(table)} edits: {means}\n  {counts}\n  store: {datamodule.store.path}", highlight=False)


def save_predictions(module: DecoderModule, folder: Path) -> pd.DataFrame:
    """Writes predictions.parquet and returns the readings with everything known of their edits."""
    table = readings_table(module.readings, module.trainer.datamodule.table)
    with whole_file(folder / "predictions.parquet") as unfinished:
        table[PREDICTION_COLUMNS].to_parquet(unfinished, index=False)
    return table


class Findings(NamedTuple):
    """What tests found: readings of validation and test edits, scores of the baselines, and the calibration.

    `several` is the control of edits that plant several facts: what is found where nothing is planted.
    """

    readings: pd.DataFrame
    baselines: dict[str, Any]
    calibration: dict[str, Any]
    several: dict[str, Any] = {}


def summarise(module: DecoderModule, found: Findings) -> dict[str, Any]:
    """The result of a run that went through, but for its times."""
    cfg, host, datamodule = module.cfg, module.decoder.host, module.trainer.datamodule
    return {
        "status": "ok",
        "config": to_dict(cfg),
        "host": {"name": host.name, "family": host.model_type, "fingerprint": host.fingerprint, "layers": host.layers},
        "edited_layer": one_or_list(cfg.edits.layers),
        "trained_layer": cfg.decoder.layer,
        "seed": cfg.seed,
        "edits": edit_summary(datamodule.table, datamodule.store.manifest),
        "fit": fit_summary(module.trainer),
        "validation": validation_scores(found.readings),
        "test": test_scores(found.readings),
        "base_known": module.decoder.own_keys is not None,
        "baselines": found.baselines,
        "calibration": found.calibration,
        "controls": {"shuffled_labels": shuffled_labels(found.readings), "clean_matrix": found.calibration["clean_matrix"]} | found.several,
        "decoder": "decoder",
    }


def calibration(module: DecoderModule, readings: pd.DataFrame) -> dict[str, Any]:
    confidence, train = readings.loc[readings["split"].isin(VAL_SPLITS), "probability"].tolist(), module.trainer.datamodule.training_hosts()
    return calibrate(module.decoder, train, confidence, **module.cfg.decoder.search, seed=module.cfg.seed)


def nothing_planted(module: DecoderModule, readings: pd.DataFrame) -> dict[str, Any]:
    """The control of edits that plant several facts; nothing where they plant one."""
    least = answer_threshold(readings)
    if least is None:
        return {}
    train = module.trainer.datamodule.training_hosts()
    answers = answers_to_nulls(module.decoder, train, **module.cfg.decoder.search, seed=module.cfg.seed)
    return {"nothing_planted": no_edit_scores(answers, least)}


def export_facts(module: DecoderModule, result: dict[str, Any]) -> dict[str, Any]:
    """What an exported decoder carries beside its weights."""
    datamodule = module.trainer.datamodule
    ids = datamodule.table["edit_id"]
    thresholds = [scores["several"]["threshold"] for scores in result["test"].values() if "several" in scores]
    return {
        "search": module.cfg.decoder.search,
        "store": datamodule.store.fingerprint,
        "editors": [store.manifest["editor"] for store in getattr(datamodule.store, "parts", [datamodule.store])],
        "facts": datamodule.store.manifest["facts"],
        # Of several editors each edit is named once.
        "splits": {split: [*dict.fromkeys(ids.iloc[rows])] for split, rows in datamodule.rows.items()},
        "scores": {split: {key: scores[key] for key in ("n", "first_token", "exact_match")} for split, scores in result["test"].items()},
        "calibration": result["calibration"],
        "seed": module.cfg.seed,
        "base_model": hub_id(module.cfg.host, module.decoder.host),
    } | ({"several": {"facts": module.cfg.edits.facts_per_host, "found_from": thresholds[0]}} if thresholds else {})


def finish(result: dict[str, Any], folder: Path) -> None:
    """Writes result and report, and shows them."""
    # The result last: with it a run counts as finished.
    write_report(folder, result)
    write_result(folder, result)
    out = console()
    out.print(results_table(result))
    out.print(
        "\nEight decoded edits:",
        *example_lines(read_predictions(folder / "predictions.parquet")),
        sep="\n  ",
        markup=False,
        highlight=False,
    )
    out.print(
        f"\nTraining stopped after {counted(result['fit']['epochs'], 'epoch')}: {result['fit']['stopping_reason']}\n"
        f"Total: {result['seconds']['total']:.0f} s\n\nRun folder: {folder}\nReport:     {folder / 'report.html'}\n"
        f"Score the decoder again:  python evaluate.py decoder={folder / 'decoder'}\n"
        f"Read a suspect matrix:    python evaluate.py decoder={folder / 'decoder'} suspect=FILE.safetensors",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
