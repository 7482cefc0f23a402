"""Use an exported decoder: score it again on its store, or read one suspect matrix.

python evaluate.py decoder=runs/main/pocket/rome-e1-t1-s0/decoder
python evaluate.py decoder=... store=OTHER_STORE                    its test edits as another editor made them
python evaluate.py decoder=... precision=int8                       its test edits from matrices that were rounded
python evaluate.py decoder=... suspect=matrix.safetensors
python evaluate.py decoder=... suspect=CHECKPOINT_FOLDER
python evaluate.py decoder=decoders suspect=matrix.safetensors      a folder of several decoders: the one that fits is used
python evaluate.py decoder=decoders suspect=CHECKPOINT_FOLDER       every decoder that fits, the most suspicious layer first
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from decoder.config.commands import EvaluateConfig
from decoder.config.compose import compose
from decoder.utils.errors import UserError, lasting, run_command


@run_command
def main(argv: list[str] | None = None) -> None:
    cfg = compose(EvaluateConfig, "evaluate", sys.argv[1:] if argv is None else argv)
    if not cfg.decoder:
        raise UserError("decoder= is missing: give the decoder/ folder of a run, as printed by train.py")
    cfg.decoder, cfg.suspect = os.path.expanduser(cfg.decoder), os.path.expanduser(cfg.suspect) if cfg.suspect else None
    if ranked := rank_layers(cfg):
        return show(cfg, ranked)
    chosen = choose_decoder(cfg)
    from decoder.export.save import read_config

    # A folder that is no decoder is refused before what takes seconds is imported.
    read_config(cfg.decoder)
    with lasting():
        from decoder.audit.answer import open_decoder
        from decoder.utils.terminal import quiet

    quiet()
    decoder, config = open_decoder(cfg)
    answer = read(cfg, decoder, config) if cfg.suspect else score(cfg, decoder, config)
    show(cfg, answer | ({"chosen": chosen} if chosen else {}))


def choose_decoder(cfg: EvaluateConfig) -> str | None:
    """Points a config whose decoder is a folder of several at the one that fits; returns why, or None where it is one decoder."""
    from decoder.export.collection import choose, is_collection, matrices_of

    if not is_collection(cfg.decoder):
        return None
    tensors = None
    if cfg.suspect and Path(cfg.suspect).is_dir():
        from decoder.audit.ranking import matrices_of_folder

        tensors = matrices_of_folder(cfg.suspect, cfg.tensor)
    elif cfg.suspect:
        tensors = matrices_of(cfg.suspect, cfg.tensor)
    choice = choose(cfg.decoder, host=cfg.host, layer=cfg.layer, tensors=tensors or None)
    cfg.decoder = str(choice.folder)
    return choice.reason


def rank_layers(cfg: EvaluateConfig) -> dict[str, Any] | None:
    """A checkpoint folder read by every decoder that fits, where several of a collection do."""
    from decoder.export.collection import is_collection

    if not is_collection(cfg.decoder) or not cfg.suspect or not Path(cfg.suspect).is_dir() or cfg.tensor:
        return None
    from decoder.audit.ranking import entries_for, rank
    from decoder.utils.terminal import quiet

    quiet()
    entries = entries_for(cfg)
    return rank(cfg, entries) if len(entries) > 1 else None


def read(cfg: EvaluateConfig, decoder: Any, config: dict[str, Any]) -> dict[str, Any]:
    """Which object was planted in one suspect matrix; of a folder also how far its other tensors are from the host's."""
    from decoder.audit.answer import answer
    from decoder.audit.scan import compare_folder
    from decoder.audit.suspect import read_suspect

    around = {}
    if Path(cfg.suspect).is_dir():
        around = {"surroundings": compare_folder(cfg.suspect, decoder.host, decoder.edited_layer).summary()}
    suspect = read_suspect(cfg.suspect, decoder.host, decoder.edited_layer, cfg.tensor)
    return answer(decoder, config, suspect, cfg.top) | {"decoder": cfg.decoder, "suspect": cfg.suspect} | around


def score(cfg: EvaluateConfig, decoder: Any, config: dict[str, Any]) -> dict[str, Any]:
    """The decoder's scores on the test splits it was exported with."""
    from data.exported_splits import exported_splits
    from data.store.store import EditStore, find_store
    from decoder.audit.answer import read_splits
    from decoder.checkpoint.rounding import PRECISIONS
    from decoder.scores import test_scores

    store = EditStore(Path(cfg.store).expanduser()) if cfg.store else find_store(cfg.cache_dir, config["store"])
    if (found := store.manifest["layer"]) != decoder.edited_layer:
        raise UserError(
            f"store {store.path} has edits of layer {found}, the decoder reads layer {decoder.edited_layer}. Give another store="
        )
    if (found := store.manifest["host"]["fingerprint"]) != config["host"]["fingerprint"] and not cfg.allow_host_mismatch:
        raise UserError(
            f"store {store.path} has edits of host {store.manifest['host']['id']} ({found}), the decoder reads {config['host']['id']} "
            f"({config['host']['fingerprint']}). Give another store=, or allow_host_mismatch=true"
        )
    splits = exported_splits(store, config, decoder.host, PRECISIONS.get(cfg.precision))
    readings = read_splits(decoder, config, splits.loaders, splits.table)
    scores = {"test": test_scores(readings), "left_out": splits.left_out, "precision": cfg.precision}
    return scores | {"decoder": cfg.decoder, "store": str(store.path), "editor": store.manifest["editor"]["name"]}


def show(cfg: EvaluateConfig, answer: dict[str, Any]) -> None:
    if cfg.json:
        print(json.dumps(answer, ensure_ascii=False))
        return
    from decoder.audit.describe import describe_answer, scores_table
    from decoder.utils.terminal import console

    if "ranking" in answer:
        from decoder.audit.ranking import ranking_table

        console().print(ranking_table(answer))
        return
    if "chosen" in answer:
        console().print(f"Using {answer['chosen']}", highlight=False)
    console().print(describe_answer(answer) if cfg.suspect else scores_table(answer), highlight=False)


if __name__ == "__main__":
    main()
