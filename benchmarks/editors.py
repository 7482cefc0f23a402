"""Who reads whom: decoders of one editor, of all but one and of all, each reading the test edits of every editor.

    python benchmarks/editors.py stores=FOLDER out=FOLDER [part=3/16] [seeds=3] [steps=700] [mixed=2100] [any setting of train.py]
    python -m decoder.report readers=FOLDER        # the page and the tables of it

`stores` has a store an editor, named as the editor, made with the same settings of train.py: `python -m data.produce edits=ft
store=FOLDER/ft`. A decoder of one editor is trained for `steps` steps, one of several for `mixed`, each on edits of one of them. `out`
gets a file a decoder, a line for each editor and split that it read, with the probability of every answer, whether it was right, and how
far the edit moved the decoder. From the lines of validation splits gates (`decoder/export/gate.py`) are fitted; what they make of decoders
of one editor each lies in gates.jsonl. Decoders whose file is there are not trained again, so a killed command goes on, and any number of
processes may share the work by `part=`.
"""

import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import settings
from gates import gated
from lightning import seed_everything

from data.datamodule import EditDataModule
from data.exported_splits import loader_of
from data.facts.splits import assign
from data.hosts import open_host
from data.produce.__main__ import read_part
from data.store.fact_rows import one_fact_a_row
from data.store.store import EditStore
from decoder.answers import read_batch
from decoder.config import TrainConfig
from decoder.config.compose import compose
from decoder.host import Host
from decoder.scores import VAL_SPLITS, share
from decoder.training import trainer as training
from decoder.training.module import DecoderModule
from decoder.utils.errors import UserError, run_command
from decoder.utils.files import write_text
from decoder.utils.terminal import quiet

READ, GATES = ("ood", "unseen_object"), "gates.jsonl"


@dataclass
class Settings:
    stores: str = ""  # folder of the stores
    out: str = "readers"  # folder of the lines
    part: str = "1/1"  # which of the decoders: every 16th from the third on is 3/16
    seeds: int = 3  # decoders of each kind
    steps: int = 700  # of training on one editor, about
    mixed: int = 2100  # of training on several
    kinds: str = "alone,without,all"  # decoders of one editor, of all but one, of all


@dataclass(frozen=True)
class Reader:
    """A decoder: its seed, and the editors it is trained on."""

    editors: tuple[str, ...]
    seed: int


def readers(names: list[str], kinds: list[str], seeds: int) -> list[Reader]:
    """Every decoder of the table, those that take longest first."""
    sets = {
        "all": [tuple(names)],
        "without": [tuple(other for other in names if other != name) for name in names] if len(names) > 2 else [],
        "alone": [(name,) for name in names],
    }
    return [
        Reader(editors, seed) for kind in ("all", "without", "alone") if kind in kinds for editors in sets[kind] for seed in range(seeds)
    ]


def train(reader: Reader, stores: Path, steps: int, given: list[str], host: Host, folder: Path) -> DecoderModule:
    """The decoder at its best epoch, with its prior; its trainer has the edits."""
    first, *others = reader.editors
    also = [f"data.also=[{','.join(str(stores / name) for name in others)}]"] if others else []
    varied = [f"optim.{name}={getattr(TrainConfig().optim, name)}" for name in ("recombined", "value_noise")] if others else []
    fixed = [f"edits={first}", f"store={stores / first}", f"seed={reader.seed}", "wandb.mode=disabled", *also]
    varied = [setting for setting in varied if setting.partition("=")[0] not in {one.partition("=")[0] for one in given}]
    cfg = compose(TrainConfig, "train", [*fixed, *varied, *given])
    datamodule = EditDataModule(cfg, host)
    datamodule.prepare_data()
    datamodule.setup()
    epochs = max(1, round(steps / len(datamodule.train_dataloader())))
    cfg.optim.epochs = cfg.optim.patience = epochs
    seed_everything(cfg.seed, workers=True, verbose=False)
    module = DecoderModule(cfg, host)
    trainer = training.build_trainer(cfg, folder)
    training.fit(trainer, module, datamodule, None)
    module.load_state_dict(torch.load(trainer.checkpoint_callback.best_model_path, weights_only=True)["state_dict"])
    module.to(host.device).eval()
    module.learn_to_read(datamodule)
    return module


def read(module: DecoderModule, path: Path) -> dict[str, dict[str, Any]]:
    """Exact match of a decoder on the successful edits of one editor, and of each the answer's probability and what else a gate sees."""
    cfg, store = module.cfg, one_fact_a_row(EditStore(path))
    table, told = store.table(), {}
    rows = assign(module.trainer.datamodule.plan, table, cfg.splits)
    for split in (split for split in (*VAL_SPLITS, *READ) if rows[split]):
        found = []
        for batch in loader_of(store, rows[split], {"edited_layer": cfg.edits.layer}, module.decoder.host):
            batch = batch.on(module.decoder.host.device)
            beams, moved = module.decoder.read(batch.edits, **cfg.decoder.search), module.decoder.moved(batch.edits).tolist()
            found += zip(read_batch(module.decoder.host, beams, batch), moved, strict=True)
        told[split] = {
            "n": len(found),
            "exact_match": share([one.exact_match for one, _ in found]),
            "first_token": share([one.first_token for one, _ in found]),
            "answers": {
                table["edit_id"].iloc[one.row]: [round(one.probability, 6), int(one.exact_match), round(moved, 6)] for one, moved in found
            },
        }
    return told


@run_command
def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    own = {field: None for field in Settings.__dataclass_fields__}
    cfg = settings(Settings, [word for word in argv if word.partition("=")[0] in own])
    given = [word for word in argv if word.partition("=")[0] not in own]
    part, of = read_part(cfg.part)
    stores, out = Path(cfg.stores), Path(cfg.out)
    names = sorted((file.parent.name for file in stores.glob("*/manifest.json")), key=_in_order)
    if not cfg.stores or len(names) < 2:
        raise UserError(f"stores={cfg.stores}: expected a folder with a store for each of two editors or more, named as the editors")
    quiet()
    host = open_host(compose(TrainConfig, "train", given))
    out.mkdir(parents=True, exist_ok=True)
    for reader in readers(names, cfg.kinds.split(","), cfg.seeds)[part - 1 :: of]:
        file = out / f"{'+'.join(reader.editors)}-s{reader.seed}.jsonl"
        if file.exists():
            continue
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder, training.threads_for(host):
            steps = cfg.mixed if len(reader.editors) > 1 else cfg.steps
            module = train(reader, stores, steps, given, host, Path(folder))
            fitted = time.perf_counter() - started
            about = {
                "host": host.name,
                "layer": module.cfg.edits.layer,
                "editors": names,
                "train": list(reader.editors),
                "seed": reader.seed,
                "train_edits": len(module.trainer.datamodule.rows["train"]),
                "steps": module.trainer.global_step,
                "epochs": module.cfg.optim.epochs,
            }
            lines = [
                about | {"read": name, "split": split, **scores} for name in names for split, scores in read(module, stores / name).items()
            ]
        seconds = {"fit": round(fitted, 1), "total": round(time.perf_counter() - started, 1)}
        write_text(file, "".join(json.dumps(line | {"seconds": seconds}) + "\n" for line in lines))
        shown = ", ".join(f"{line['read']} {line['exact_match']['value']:.3f}" for line in lines if line["split"] == "ood")
        print(f"{'+'.join(reader.editors)} seed {reader.seed} ({seconds['total']:.0f} s), ood: {shown}", flush=True)
    lines = [line for file in sorted(out.glob("*.jsonl")) if file.name != GATES for line in map(json.loads, file.read_text().splitlines())]
    write_text(out / GATES, "".join(json.dumps(line) + "\n" for line in gated(lines)))


def _in_order(name: str) -> tuple[int, str]:
    from decoder.config.editors import EDITORS

    return [*EDITORS, name].index(name), name


if __name__ == "__main__":
    main()
