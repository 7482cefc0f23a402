"""The help page: every setting with its type, default and line of help, taken from the dataclasses."""

import re
import shutil
import sys
import textwrap
from collections.abc import Iterator
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
    "sequential": rf"(?!splits\.spelt_per_relation)({OPENED}|out|at|text_tokens|broken_from|seed|grid|{PLANNED}"
    r"|edits\.(?!batch_size|broken_from|facts_per_host|scores|shard_size).*)",
    "tracing": rf"{OPENED}|{TEXT}|store|n|repeats|texts|out|seed",
}
"""What a command reads of the settings that it shares with train.py, as a pattern. The others it takes too: an experiment is for all."""
FLAGS = {"--help": "show this page", "--cfg": "print the composed config as YAML", "--resolve": "with --cfg: fill in ${...}"}
PIPE_WIDTH = 120  # where nobody says how wide the terminal is
NARROW = 40  # below, a meaning is hard to read as a column
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
    """Writes the page of program `name` to stdout, with `config`'s values as the defaults; as wide as the terminal, and in colour there."""
    purpose, program, examples = PAGES[name]
    width = shutil.get_terminal_size((PIPE_WIDTH, 0)).columns
    usage = f"Usage: {program} " + ("[GROUP=NAME ...] " if options else "") + "[KEY=VALUE ...] [--cfg [--resolve]] [--help]"
    flags = FLAGS | (GRID_FLAG if name in ("train", "sequential") else {})
    blocks = {"Options": [(flag, "", line) for flag, line in flags.items()]}
    listed = [(key, field) for key, field in settings(config) if re.fullmatch(READ.get(name, ".*"), key)]
    keys = {key for key, _ in listed}
    if groups := {group: names for group, names in options.items() if keys & {group, f"{group}.name", f"{group}.editor"}}:
        title = "Groups (GROUP=NAME takes a file of configs/GROUP/)"
        blocks[title] = [(f"{group}=NAME", "", ", ".join(names)) for group, names in groups.items()]
    for key, field in listed:
        section = key.rpartition(".")[0]
        title = f"Settings of {section} (KEY=DEFAULT, type, meaning)" if section else "Settings (KEY=DEFAULT, type, meaning)"
        blocks.setdefault(title, []).append((f"{key}={typed(attrgetter(key)(config))}", kind(field), field.metadata["help"]))
    rows = [row for title, block in blocks.items() if title.startswith("Settings") for row in block]
    first, second = (min(max(len(row[column]) for row in rows), width * share // 100) for column, share in ((0, 40), (1, 20)))
    lines = [(line, "", "") for paragraph in (purpose, "", usage) for line in _wrapped(paragraph, width) or [""]]
    for title, block in blocks.items():
        lines += [("", "", ""), (title, "", ""), *(line for row in block for line in _row(row, first, second, width))]
    lines += [("", "", ""), ("Examples", "", "")]
    for example in examples:
        # A shell takes a line that ends with a backslash and the next one for one.
        lines.append(("  " + " \\\n      ".join(_wrapped(f"{program} {example}", width - 8)), "", ""))
    (_write_rich if sys.stdout.isatty() else _write_plain)(lines)


def _row(row: tuple[str, str, str], first: int, second: int, width: int) -> Iterator[tuple[str, str, str]]:
    """The lines of a setting: its meaning stands beside it, or below it where there is little room."""
    left, middle, right = row
    left, middle = f"  {left:<{first}}", f"  {middle:<{second}}" if middle else ""
    beside = first + 4 + (second + 2 if middle else 0)
    indent = beside if beside + NARROW <= width else 6
    meaning = _wrapped(right, width - indent)
    if len(left + middle) + 2 <= indent:
        yield left, middle, f"  {meaning.pop(0)}"
    elif len(left + middle) <= width:
        yield left, middle.rstrip(), ""
    else:
        yield left.rstrip(), "", ""
        yield "", f"      {row[1]}", ""
    yield from (("", "", " " * indent + line) for line in meaning)


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)


def _write_plain(lines: list[tuple[str, str, str]]) -> None:
    sys.stdout.write("".join("".join(line).rstrip() + "\n" for line in lines))


def _write_rich(lines: list[tuple[str, str, str]]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, markup=False)
    for left, middle, right in lines:
        style = "cyan" if left.startswith("  ") else "bold"
        console.print(Text.assemble((left, style), (middle, "green"), right), soft_wrap=True)
