"""The help page: every setting with its type, default and line of help, taken from the dataclasses."""

import re
import sys
from dataclasses import Field
from operator import attrgetter
from typing import Any, Literal, get_args, get_origin

from decoder.config.options import settings, typed

PAGES = {
    "train": (
        "Trains one layer of a frozen language model to say what an edit of its weights planted, and tests it on unseen edits.",
        "python train.py",
        (
            "experiment=smoke",
            "decoder.layer=2 seed=1",
            "experiment=paper optim.epochs=20 wandb.mode=online",
            "decoder.layer=[0,1] optim.clip=null --cfg",
            "-m 'decoder.layer=range(0,4)' edits.layer=0,1 seed=0,1,2 launcher.jobs=2",
        ),
    ),
    "produce": (
        "Makes the store of edits that train.py would use, and nothing else.",
        "python -m data.produce",
        ("edits.layer=1", "store=STORE_FOLDER edits.ridge=identity", "shard=3/16", "shard=merge", "experiment=smoke --cfg"),
    ),
    "keys": (
        "Counts the second moment of the keys of edits.layer, or of all keys.layers in one pass over the text, ahead of the edits.",
        "python -m data.keys",
        ("keys.layers=[0,1,2]", "host=gpt2-xl keys.layers=[5,17] keys.text=TEXT_FOLDER edits.key_tokens=10000000 trainer.accelerator=cuda"),
    ),
    "causal_trace": (
        "Finds the layers and tokens that carry a host's facts: drowns subjects in noise and puts back one hidden state after the other.",
        "python -m data.causal_trace",
        ("n=64", "host=smollm2-135m n=400 out=FOLDER", "host=gpt2-xl facts.source=counterfact facts.path=FILE trainer.accelerator=cuda"),
    ),
    "sequential": (
        "Plants facts one after the other in one host, by one editor, and says what is left of them and of the host.",
        "python -m data.sequential",
        (
            "experiment=sequential",
            "-m edits=memit,ft seed=0,1 out=FOLDER at=[1,10,100]",
            "host=smollm2-135m edits=r-rome at=[1,10,50] keys.text=self",
        ),
    ),
    "tracing": (
        "Measures a store of edits as the paper on tracing and reversing edits does: signs, pcs, relations, reversal, similarity, texts.",
        "python -m data.tracing",
        ("store=STORE_FOLDER out=FOLDER", "host=smollm2-135m store=STORE_FOLDER n=100 texts=50", "store=STORE_FOLDER keys.text=TEXT_FILE"),
    ),
    "import_edits": (
        "Makes a store of edits that other tools made: finds what changed in a matrix or checkpoint, and factors it.",
        "python -m data.import_edits",
        (
            "host=gpt2-xl edited=EDITED_FOLDER facts=facts.jsonl store=STORE_FOLDER",
            "host.path=HOST_FOLDER host.name=mine edited=matrices/ layer=5 facts=counterfact.json schema=counterfact store=STORE_FOLDER",
            "host=gpt-j-6b edited=MEMIT_FOLDER facts=facts.jsonl several=true store=STORE_FOLDER",
        ),
    ),
    "perturb": (
        "Writes a checkpoint changed as people change them, or as somebody who hides an edit would: what audits are tested on.",
        "python -m data.perturb",
        (
            "kind=lora rank=4 modules=mlp out=FOLDER",
            "store=STORE_FOLDER edit=12 kind=finetune lr=1e-4 precision=Q8_0 out=FOLDER",
            "host=smollm2-135m kind=prune share=0.5 out=FOLDER",
            "nulls=120",
        ),
    ),
    "gate": (
        "Fits which of several decoders to believe, on validation edits of several editors: for decoders of different editors.",
        "python -m data.gate",
        ("decoder=A,B,C stores=[ROME_STORE,FT_STORE] out=gate.json",),
    ),
    "relations": (
        "Fits what tells the relation of an edit by its value, on a store of edits whose relations are known: for audits.",
        "python -m data.relations",
        ("store=STORE_FOLDER out=FOLDER",),
    ),
    "evaluate": (
        "Audits a checkpoint (exit code 0: no edit found, 3: edited, 4: cannot tell, 2: bad input), scores an exported decoder on a store, "
        "or reads what one suspect matrix has planted.",
        "python evaluate.py",
        (
            "suspect=CHECKPOINT base=CHECKPOINT subjects=names.txt report=audit.html",
            "suspect=CHECKPOINT repair=FOLDER relations=RELATIONS_FOLDER",
            "decoder=DECODER_FOLDER",
            "decoder=DECODER_FOLDER store=STORE_FOLDER device=cuda",
            "decoder=DECODER_FOLDER precision=int8",
            "decoder=DECODER_FOLDER suspect=matrix.safetensors top=2",
            "decoder=DECODER_FOLDER suspect=matrix.safetensors json=true",
            "decoder=DECODER_FOLDER suspect=CHECKPOINT_FOLDER",
            "decoder=DECODER_FOLDER,ANOTHER suspect=CHECKPOINT_FOLDER",
            "decoder=DECODER_FOLDER,ANOTHER gate=gate.json suspect=CHECKPOINT_FOLDER",
        ),
    ),
    "report": (
        "Compares runs: layer curves, heat map, table, best layers by validation. One run folder gets its own page again.",
        "python -m decoder.report",
        (
            "runs/main",
            "runs/layers runs/main to=compared",
            "wandb=ENTITY/PROJECT group=layers",
            "readers=FOLDER",
            "collapse=FOLDER",
            "tracing=FOLDER",
        ),
    ),
    "export": (
        "Collects the best decoder of every host and edited layer, by validation, in one folder.",
        "python -m decoder.export",
        ("runs/layers to=decoders", "runs/layers to=decoders push=USER/NAME", "runs/layers to=decoders push=USER/NAME send=true"),
    ),
}
OPENED = r"experiment|cache_dir|host\..*|facts\..*|swap\.memory_budget|trainer\.(accelerator|devices)"
TEXT = r"keys\.(text|top_k|split|field)|edits\.(key_tokens|seed)"
PLANNED = r"keys\..*|splits\.(?!minimum).*"
READ = {
    "produce": rf"{OPENED}|store|parquet|shard|{PLANNED}|edits\..*|launcher\.(name|jobs|cpus|gpus)",
    "keys": rf"{OPENED}|{TEXT}|keys\.(layers|memory_budget)|edits\.layer",
    "causal_trace": rf"{OPENED}|n|draws|noise|window|out|runs|seed|edits\.layer",
    "sequential": rf"{OPENED}|out|at|text_tokens|broken_from|seed|grid|{PLANNED}"
    r"|edits\.(?!batch_size|broken_from|facts_per_host|scores|shard_size).*",
    "tracing": rf"{OPENED}|{TEXT}|store|n|repeats|texts|out|seed",
}
"""What a command reads of the settings that it shares with train.py, as a pattern. The others it takes too: an experiment is for all."""
FLAGS = {"--help": "show this page", "--cfg": "print the composed config as YAML", "--resolve": "with --cfg: fill in ${...}"}
GRID_FLAG = {"-m": "run a grid: KEY=A,B or KEY=range(START,STOP,STEP) are several runs; finished ones are skipped"}


def kind(field: Field) -> str:
    """What a setting accepts, in words."""
    annotation = field.type
    if told := field.metadata["kind"]:
        return told() if callable(told) else told
    if get_origin(annotation) is Literal:
        return "|".join(get_args(annotation))
    if get_origin(annotation) is list:
        return f"list of {get_args(annotation)[0].__name__}"
    parts = get_args(annotation) or (annotation,)
    return "|".join("null" if part is type(None) else {str: "text", bool: "true|false"}.get(part, part.__name__) for part in parts)


def write_help(name: str, config: Any, options: dict[str, list[str]]) -> None:
    """Writes the page of program `name` to stdout, with `config`'s values as the defaults; in colour if stdout is a terminal."""
    purpose, program, examples = PAGES[name]
    head = f"{purpose}\n\nUsage: {program} " + ("[GROUP=NAME ...] " if options else "") + "[KEY=VALUE ...] [--cfg [--resolve]] [--help]"
    flags = FLAGS | (GRID_FLAG if name in ("train", "sequential") else {})
    blocks = {"Options": [(flag, "", line) for flag, line in flags.items()]}
    listed = [(key, field) for key, field in settings(config) if re.fullmatch(READ.get(name, ".*"), key)]
    keys = {key for key, _ in listed}
    if groups := {group: names for group, names in options.items() if keys & {group, f"{group}.name", f"{group}.editor"}}:
        blocks["Groups"] = [(f"{group}={'|'.join(names)}", "", f"a file of configs/{group}/") for group, names in groups.items()]
    for key, field in listed:
        section = key.rpartition(".")[0]
        title = f"Settings of {section} (KEY=DEFAULT, type, meaning)" if section else "Settings (KEY=DEFAULT, type, meaning)"
        blocks.setdefault(title, []).append((f"{key}={typed(attrgetter(key)(config))}", kind(field), field.metadata["help"]))
    blocks["Examples"] = [(f"{program} {example}", "", "") for example in examples]
    (_write_rich if sys.stdout.isatty() else _write_plain)(head, blocks)


def _widths(blocks: dict[str, list[tuple[str, str, str]]]) -> list[int]:
    rows = [row for title, block in blocks.items() if title.startswith("Settings") for row in block]
    return [max(len(row[column]) for row in rows) for column in (0, 1)]


def _write_plain(head: str, blocks: dict[str, list[tuple[str, str, str]]]) -> None:
    first, second = _widths(blocks)
    lines = [head]
    for title, rows in blocks.items():
        lines += ["", title, *(f"  {left:<{first}}  {middle:<{second}}  {right}".rstrip() for left, middle, right in rows)]
    sys.stdout.write("\n".join(lines) + "\n")


def _write_rich(head: str, blocks: dict[str, list[tuple[str, str, str]]]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False)
    first, second = _widths(blocks)
    console.print(head)
    for title, rows in blocks.items():
        console.print(f"\n{title}", style="bold")
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
        table.add_column(style="cyan", min_width=min(first, console.width // 3), overflow="fold")
        if any(row[1] for row in rows):
            table.add_column(style="green", min_width=min(second, console.width // 5), overflow="fold")
        table.add_column(overflow="fold")
        for row in rows:
            table.add_row(*(row if len(table.columns) == 3 else (row[0], row[2])))
        console.print(table)
