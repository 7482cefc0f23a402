"""Every setting of the commands beside `train.py`, one line each."""

from dataclasses import dataclass
from typing import Any, Literal

from decoder.config.options import group, option, place
from decoder.config.schema import HostConfig, TrainConfig


@dataclass
class ProduceConfig(TrainConfig):
    """What `python -m data.produce` reads."""

    parquet: str | None = place(None, "also write the store as Parquet files to this folder, for data.streaming=true or the Hub")
    shard: str | None = option(None, "make only every 16th shard, from the third on, as 3/16; `merge` joins what all parts made")


@dataclass
class TraceConfig(TrainConfig):
    """What `python -m data.causal_trace` reads."""

    n: int = option(100, "facts to ask, drawn by seed; those that the host answers rightly are traced", least=1)
    draws: int = option(10, "draws of noise, a fact", least=1)
    noise: float = option(3.0, "noise on the subject's embeddings, in standard deviations of subjects' embeddings")
    window: int | None = option(None, "layers whose MLP or attention is restored together; empty: a fifth of the host's", least=1)
    out: str | None = place(None, "folder for causal_trace.html and causal_trace.json; empty: causal-trace/HOST in runs=")


@dataclass
class TracingConfig(TrainConfig):
    """What `python -m data.tracing` reads."""

    n: int = option(310, "edits that signs, pcs, similarity and reversal are measured on, drawn by seed, relations taking turns", least=2)
    repeats: int = option(5, "draws of relations and of subjects for the accuracy of relations", least=2)
    texts: int = option(100, "texts that hosts with and without an edit go on with; 0 leaves them out", least=0)
    out: str = place("tracing", "folder for what is measured: a JSON file a store, and the page of all of them")


@dataclass
class SequentialConfig(TrainConfig):
    """What `python -m data.sequential` reads."""

    out: str = place("sequential", "folder for what is found: JSON lines, a file an editor, seed and settings, and the page of all of them")
    at: list[int] = option([1, 2, 5, 10, 20, 50, 100, 200], "after how many facts the host is looked at, ascending")
    text_tokens: int = option(
        2000,
        "tokens of text for the perplexity, without what names a subject: of keys.text; empty: what the host writes, pocket: the facts",
        least=2,
    )
    broken_from: float = option(2.0, "perplexity, in multiples of the clean host's, from which a host counts as broken", least=1)


@dataclass
class EvaluateConfig:
    """What `evaluate.py` reads."""

    decoder: str | None = place(
        None,
        "exported decoder folder, or a folder of several with index.json: the one that fits is used; A,B,C: these vote, or gate= says whom "
        "to believe; empty audits a whole checkpoint",
    )
    gate: str | None = place(
        None, "file of `python -m data.gate`: which of the decoders A,B,C to believe, edit by edit; empty lets them vote"
    )
    layer: int | None = option(None, "edited layer: which decoder of a folder of several; a single one must be of it")
    store: str | None = place(None, "store of edits to score, its own or another editor's; empty finds the decoder's own in the cache")
    precision: Literal["factors", "float32", "bf16", "fp16", "int8", "int4", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0"] = option(
        "factors", "how the edits are scored: as factors, or as whole matrices W' that were kept in this precision"
    )
    suspect: str | None = place(
        None, "suspect to read: safetensors or npz file with one matrix; GGUF file, checkpoint folder or LoRA adapter"
    )
    base: str | None = place(None, "audit: the unedited checkpoint, folder or GGUF file, if it is at hand")
    subjects: str | None = place(
        None,
        "audit: whom an edit may be about, 50 names or more, lines or a JSON list; empty takes the subjects of the built-in facts",
    )
    repair: str | None = place(None, "audit: new folder for the checkpoint without the edits that were found")
    relations: str | None = place(None, "audit: folder of `python -m data.relations`, which tells the relation of an edit by its value")
    nulls: str | None = place(
        None, "audit: file of `python -m data.perturb nulls=120`; empty takes those in the cache that are of a host like the suspect"
    )
    report: str | None = place(None, "audit: HTML file for the finding as one page, for people who decide")
    tensor: str | None = option(None, "name of the suspect matrix, if the file holds several 2-D tensors")
    form: Literal["auto", "weight", "update"] = option(
        "auto", "what a suspect is: weights W', or their update W' - W; auto takes weights and refuses what looks like an update"
    )
    host: str | None = place(None, "host folder, GGUF file or Hub id; empty takes what the decoder was trained on")
    top: int = option(4, "objects to print, at most the beams of the decoder", least=1)
    json: bool = option(False, "print one JSON object and nothing else")
    allow_host_mismatch: bool = option(False, "go on with a host that is not the decoder's")
    cache_dir: str | None = place(None, "cache of hosts and stores")
    device: str = option("cpu", "device to run on")


@dataclass
class GateConfig:
    """What `python -m data.gate` reads."""

    decoder: str | None = place(None, "exported decoders of one host and layer, A,B,C, mostly of different editors")
    stores: list[str] = place([], "stores of edits of all these editors, and of others if you like: their validation edits are learnt from")
    out: str | None = place(None, "file to write; nothing is ever written over")
    host: str | None = place(None, "host folder, GGUF file or Hub id; empty takes what the decoders were trained on")
    allow_host_mismatch: bool = option(False, "go on with a host that is not the decoders'")
    cache_dir: str | None = place(None, "cache of hosts")
    device: str = option("cpu", "device to run on")


@dataclass
class ImportConfig:
    """What `python -m data.import_edits` reads."""

    host: HostConfig = group(HostConfig)
    edited: str | None = place(
        None, "what was edited: a safetensors, npz or GGUF file, a checkpoint or adapter folder, or a folder of many of them"
    )
    base: str | None = place(None, "the same before the edit, a file or checkpoint folder; empty takes the host's own weights")
    facts: str | None = place(None, "what was planted: a fact set, by name of the edited file or in the order of their names")
    several: bool = option(
        False, "several facts were planted in a source: all records are of the one source, or of several those whose fact_id is its name"
    )
    schema: str = option("plain", "schema of the facts: plain, counterfact, zsre, zsre-alt, pararel, mquake, knowedit, fever or yago")
    relations: str | None = place(None, "your sentences for the facts' relations, as facts.relations of train.py")
    layer: Any = option(None, "edited layer, several as [3,4]; empty finds them where whole checkpoints are given", "int|list of int")
    tensor: str | None = option(None, "name of the matrix in a file that has several")
    form: Literal["auto", "weight", "update"] = option(
        "auto", "what was saved: weights W', or their update W' - W; auto takes weights and refuses what looks like an update"
    )
    store: str | None = place(None, "folder of the store to write")
    tolerance: float = option(1e-4, "an update is of rank R when less than this share of its length is left over, rounding aside")
    cache_dir: str | None = place(None, "cache of hosts")


@dataclass
class PerturbConfig:
    """What `python -m data.perturb` reads. Settings of single kinds are empty: a kind that takes one has its own default."""

    host: HostConfig = group(HostConfig)
    kind: Literal["none", "finetune", "lora", "prune", "average", "noise", "decoys", "turn"] = option(
        "none", "what is done to the checkpoint, after an edit if one is given"
    )
    out: str | None = place(None, "folder to write; nothing is ever written over; with nulls= a file, empty is in the cache")
    nulls: int | None = option(None, "make and audit so many checkpoints that nobody edited, for audits to be held against", least=5)
    subjects: str | None = place(None, "nulls: names they are asked about, as of evaluate.py; empty takes the built-in facts' subjects")
    decoder: str | None = place(None, "nulls: exported decoders that read each of them too, one, A,B that vote, or a folder of several")
    device: str = option("cpu", "nulls: device to run on")
    store: str | None = place(None, "store of the edit that comes first")
    edit: str | None = option(None, "the edit that comes first: its row in the store, or its edit_id")
    scale: float = option(1.0, "how much of the edit is planted")
    precision: Literal["float32", "bf16", "fp16", "int8", "int4", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0"] = option(
        "bf16", "what the weights are rounded to in the end; what is coarser than 16 bits is written as the numbers that it leaves"
    )
    seed: int = option(0, "seed of everything that is drawn", most=2**63 - 1)
    text: str | None = place(None, "file of lines to train on; empty takes sentences about the facts of five relations")
    lr: float | None = option(None, "finetune, average (1e-5), lora (1e-3): learning rate")
    steps: int | None = option(None, "finetune, average, lora (50): steps", least=1)
    batch_size: int | None = option(None, "finetune, average, lora (8): rows of 32 tokens in a step", least=1)
    optimizer: str | None = option(None, "finetune, average, lora: adamw (the default) or sgd")
    rank: int | None = option(None, "lora (8): rank of the updates", least=1)
    modules: str | None = option(None, "lora: all (the default) projections, those of mlp, or those of attention")
    share: float | None = option(None, "prune (0.3): share of every matrix that becomes zero", most=1)
    weight: float | None = option(None, "average (0.5): what the fine-tune counts", most=1)
    size: float | None = option(None, "noise (0.01): in spreads of a matrix's entries; decoys (1): in lengths of the edit")
    count: int | None = option(None, "decoys (3): layers that get one", least=1)
    cosine: float | None = option(None, "turn (0.5): of the edit's key with what it was", least=0.01, most=1)
    cache_dir: str | None = place(None, "cache of hosts")


@dataclass
class RelationsConfig:
    """What `python -m data.relations` reads."""

    store: str | None = place(None, "store of edits whose relations are known")
    out: str | None = place(None, "folder to write; nothing is ever written over")


@dataclass
class ReportConfig:
    """What `python -m decoder.report` reads."""

    runs: list[str] = place([], "run folders, or folders above them; may be given without `runs=`")
    to: str | None = place(None, "folder for the page and what belongs to it; empty is the folder given, or for W&B this one")
    wandb: str | None = option(None, "entity/project of W&B whose training runs are compared instead")
    group: str | None = option(None, "with wandb=: the runs of one W&B group only")
    collapse: str | None = place(None, "what many edits do to a host instead: folder of what `python -m data.sequential` found")
    readers: str | None = place(None, "who reads whom instead: folder of what benchmarks/editors.py found")
    tracing: str | None = place(None, "the tables of tracing and reversing edits instead: folder of what `python -m data.tracing` found")


@dataclass
class ExportConfig:
    """What `python -m decoder.export` reads."""

    runs: list[str] = place([], "run folders, or folders above them; may be given without `runs=`")
    to: str | None = place(None, "folder to write: a decoder for each host and edited layer, and index.json")
    push: str | None = option(None, "Hub repository, as user/name, to send the folder to; only shown unless send=true")
    send: bool = option(False, "with push=: send it. Without, what would be sent is listed and nothing leaves this machine")
    private: bool = option(True, "with push=: a new repository is private")
