"""Every setting of a run, one line each: name, type, default and what it means. Those of the other commands are in `commands.py`.

The composer (`decoder/config/compose.py`) fills these dataclasses from `configs/` and the command line. Nothing here imports torch,
so that `--help` answers at once.
"""

from dataclasses import dataclass, field
from typing import Any, Literal


def option(default: Any, help: str, kind: str | None = None) -> Any:
    """A dataclass field with its line of help; mutable defaults are copied for every instance. `kind` describes an `Any`."""
    metadata = {"help": help, "kind": kind}
    if isinstance(default, (list, dict)):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def group(config_class: type) -> Any:
    """A nested group of settings."""
    return field(default_factory=config_class)


@dataclass
class PocketConfig:
    layers: int = option(4, "number of blocks")
    windowed_layers: int = option(2, "leading blocks whose attention sees only `window` positions")
    window: int = option(1, "positions seen by a windowed block; 1 is the token itself")
    hidden_size: int = option(128, "hidden width D")
    mlp_size: int = option(384, "MLP width F")
    heads: int = option(4, "attention heads")
    subject_spread: float = option(0.1, "spread of the embeddings of subjects' last tokens, which are drawn and not trained")
    subject_cosine: float = option(0.15, "what these embeddings share: the cosine between two of them")
    object_vocabulary: int = option(600, "size of the BPE vocabulary learnt on the objects")
    steps: int = option(600, "optimiser steps")
    batch_size: int = option(32, "rows in a step")
    row_tokens: int = option(48, "tokens in a row")
    lr: float = option(3e-3, "peak learning rate of AdamW")
    weight_decay: float = option(0.1, "weight decay of AdamW")
    warmup_steps: int = option(100, "steps of linear warm-up")
    min_recall: float = option(0.97, "the program stops if exact recall on any template is lower")


@dataclass
class HostConfig:
    name: str = option("pocket", "name of the host in tables and folders")
    path: str | None = option(None, "local folder or Hub id; empty builds the pocket host")
    revision: str | None = option(None, "Hub revision to pin")
    dtype: Literal["float32", "bfloat16", "float16"] = option("float32", "dtype the frozen weights are loaded in")
    terminator: str | None = option(None, "text that ends an object; empty if the host has none")
    source: str | None = option(None, "where its file's edit settings come from: published, or untested")
    seed: int = option(0, "seed of the pocket host's text and weights")
    pocket: PocketConfig = group(PocketConfig)


@dataclass
class FactsConfig:
    source: str = option("pocket", "pocket (embedded), counterfact, zsre, zsre-alt, pararel, mquake, knowedit or plain")
    path: str | None = option(None, "file, folder or Hub data set of any source but the pocket")
    split: str = option("train", "split of a Hub data set")
    min_per_relation: int = option(0, "leave out relations with fewer facts")
    per_relation: int | None = option(None, "keep so many facts of each relation, drawn by facts.seed; empty keeps all")
    seed: int = option(0, "seed of that draw")


@dataclass
class KeysConfig:
    text: str | None = option(
        None, "text for key statistics and contexts: .txt or .jsonl file, folder, Hub data set; empty: the facts told"
    )
    split: str = option("train", "split of a Hub data set")
    field: str = option("text", "field of a record that holds its text")
    layers: list[int] = option([], "layers counted in the same pass over the text as edits.layer, for edits that are made later")
    memory_budget: float = option(1.0, "GiB that the keys caught at a time may take while they are counted")
    statistics: str | None = option(None, "published second moment instead of counting: .npz with mom2.mom2 and mom2.count")


@dataclass
class EditsConfig:
    editor: Literal["rome", "r-rome", "p-rome"] = option("rome", "method that plants the edits")
    layer: int = option(1, "edited layer: 0-based block whose MLP down-projection carries the edit")
    ridge: Any = option(0.03, "added to the keys' second moment: 0, a fraction of its largest eigenvalue, or `identity`", "float|identity")
    contexts: int = option(5, "contexts a key is averaged over, the bare prompt among them")
    steps: int = option(30, "most Adam steps of the value optimisation")
    lr: float = option(0.3, "learning rate of the value optimisation")
    clamp: float = option(5.0, "largest norm of the value change, as a multiple of the clean value's norm")
    decay: float = option(1e-3, "weight of the norm penalty on the value change")
    kl: float = option(8.0, "weight of the KL term that keeps the subject's essence")
    stop_loss: float = option(0.05, "an edit stops when its loss falls below this")
    batch_size: int = option(64, "edits optimised together; halved where memory does not hold them")
    precision: Literal["float32", "tf32", "bf16"] = option("float32", "of the value optimisation's matrix products; tf32 on GPUs only")
    shard_size: int = option(256, "edits in a shard of the store; a killed run resumes at the next shard")
    key_tokens: int = option(60000, "tokens of text for the keys' second moment")
    seed: int = option(0, "seed of contexts, of the text for the keys, and of which objects are planted")
    train_per_relation: int = option(55, "training edits asked for per training relation")
    val_per_relation: int = option(8, "val/id edits per training relation")
    id_per_relation: int = option(18, "id test edits per training relation")
    unseen_per_relation: int = option(30, "at most so many unseen_object edits per training relation")
    other_per_relation: int = option(32, "edits per val/new and ood relation")


@dataclass
class SplitsConfig:
    train_relations: int = option(17, "relations trained on")
    val_relations: int = option(3, "relations of val/new")
    ood_relations: int = option(11, "relations of the ood test")
    held_out_objects: float = option(0.15, "share of objects that are never a training or validation target")
    val_subjects: float = option(0.1, "share of a training relation's subjects kept for val/id")
    test_subjects: float = option(0.3, "share of a training relation's subjects kept for id and unseen_object")
    seed: int = option(0, "seed of the draw")
    min_train: int = option(800, "fewest successful training edits")
    min_val_id: int = option(100, "fewest successful val/id edits")
    min_val_new: int = option(60, "fewest successful val/new edits")
    min_id: int = option(280, "fewest successful id edits")
    min_ood: int = option(320, "fewest successful ood edits")
    min_unseen_object: int = option(150, "fewest successful unseen_object edits")


@dataclass
class DataConfig:
    form: Literal["factors", "dense"] = option("factors", "what a batch carries: factors of the edits, or whole W'_V")
    batch_size: int = option(32, "edits in a training batch, over all devices together")
    eval_batch_size: int = option(128, "edits in an evaluation batch, on each device")
    workers: int = option(0, "loader processes; 0 reads in the training process, which a mapped store is fast enough for")
    prefetch: int = option(2, "batches that each loader process, or a stream, has ready")
    pin_memory: bool = option(True, "page-locked batches where there is a GPU")
    streaming: bool = option(False, "read store= as a stream of Parquet files, a folder or a Hub data set, instead of mapping it")
    shuffle_buffer: int = option(4096, "streaming: edits a training edit is drawn from; they are held in memory")
    made_up_keys: int = option(3000, "keys of made-up subjects beside those of the training subjects, for optim.gain_spread")
    shuffle_labels: bool = option(False, "control: train on objects that are permuted between the edits")
    max_train: int | None = option(None, "train on at most so many edits, drawn evenly over relations")


@dataclass
class DecoderConfig:
    layer: Any = option(1, "trained layer, 0-based; several as [0,1]", "int|list of int")
    prompt_length: int = option(12, "learnable prompt vectors M")
    train_prompt: bool = option(True, "learn the prompt vectors; the paper keeps them fixed")
    scope: Literal["prompt", "all"] = option("prompt", "positions the trained layer acts on: the prompt only (two passes), or all")
    target: Literal["object", "first_token"] = option(
        "object", "train on the whole object and its terminator, or its first token as in the paper"
    )
    beams: int = option(4, "beams of the search over whole objects; validation while training is greedy")
    prior: float = option(0.2, "share of a first token's log-probability without an edit that is taken off when reading")
    max_object_tokens: int = option(8, "longest object that is generated, terminator not counted")


@dataclass
class OptimConfig:
    lr_layer: float = option(5e-3, "AdamW learning rate of the trained layer")
    lr_prompt: float = option(1e-2, "AdamW learning rate of the prompt")
    betas: list[float] = option([0.9, 0.98], "AdamW betas")
    weight_decay: float = option(0.01, "AdamW weight decay")
    schedule: Literal["constant", "cosine"] = option("cosine", "learning rate over the epochs")
    warmup_steps: int | None = option(None, "steps of linear warm-up; empty: 100 for a layer before the edited one, else 0")
    clip: float | None = option(1.0, "largest gradient norm")
    gain_spread: float = option(10.0, "weight of the penalty on how unevenly the prompt switches edits on; 0 for none")
    recombined: float = option(0.3, "chance of a training edit to get the key of another one of its batch")
    value_noise: float = option(0.3, "noise on the values of training edits, as a share of their length")
    epochs: int = option(24, "most epochs")
    patience: int = option(15, "validation checks without a better val/id/loss before training stops")


@dataclass
class TrainerConfig:
    accelerator: str = option("auto", "Lightning accelerator: auto, cpu, cuda, ...")
    devices: Any = option(1, "Lightning devices", "int|list of int|auto")
    num_nodes: int = option(1, "machines, see docs/scaling.md")
    strategy: str = option("auto", "Lightning strategy: auto or a form of ddp")
    precision: str = option("32-true", "Lightning precision")
    progress: Literal["auto", "rich", "none"] = option("auto", "progress bars; auto shows them in a terminal")


@dataclass
class SwapConfig:
    arithmetic: Literal["factors", "dense"] = option("factors", "W x + (key.x) value, or the product with W' rounded to the host's dtype")
    memory_budget: float = option(1.0, "GiB that copies of edits' whole matrices may take at a time; one matrix always may")


@dataclass
class WandbConfig:
    mode: Literal["online", "offline", "disabled"] = option("offline", "offline needs no account and sends nothing")
    project: str = option("palimpsest", "W&B project")
    entity: str | None = option(None, "W&B user or team")
    group: str | None = option(None, "W&B group; empty is the experiment's name")
    tags: list[str] = option([], "W&B tags")
    name: str | None = option(None, "W&B run name; empty is host, editor, layers and seed")
    log_decoder: bool = option(False, "log the exported decoder as an artifact")


@dataclass
class LauncherConfig:
    name: Literal["local", "ray", "slurm"] = option("local", "where runs go: here, to Ray, or into an sbatch script that slurm prints")
    jobs: int | None = option(None, "most runs at a time; empty: one here, and as many as there is room for on ray and slurm")
    cpus: int = option(4, "ray, slurm: cores of a run")
    gpus: float = option(0, "ray, slurm: GPUs of a run; on ray also a part of one, as 0.5")
    retries: int = option(3, "ray: how often a run is started again after its worker died")
    memory: str = option("16G", "slurm: memory of a run")
    time: str = option("04:00:00", "slurm: time limit of a run")
    partition: str | None = option(None, "slurm: partition")


@dataclass
class TrainConfig:
    """What `train.py` reads."""

    experiment: str = option("main", "name of the experiment; also picks configs/experiment/<name>.yaml")
    seed: int = option(0, "seed of the decoder; host.seed, edits.seed and splits.seed are their own")
    runs: str = option("runs", "folder of run folders")
    cache_dir: str | None = option(None, "cache of hosts, key statistics and stores; empty is $XDG_CACHE_HOME/palimpsest")
    resume: bool | None = option(None, "go on from the last checkpoint, or start anew; empty goes on with a killed run of these settings")
    host: HostConfig = group(HostConfig)
    store: str | None = option(None, "folder of the store of edits; empty is in the cache")
    facts: FactsConfig = group(FactsConfig)
    keys: KeysConfig = group(KeysConfig)
    edits: EditsConfig = group(EditsConfig)
    splits: SplitsConfig = group(SplitsConfig)
    data: DataConfig = group(DataConfig)
    decoder: DecoderConfig = group(DecoderConfig)
    optim: OptimConfig = group(OptimConfig)
    trainer: TrainerConfig = group(TrainerConfig)
    swap: SwapConfig = group(SwapConfig)
    wandb: WandbConfig = group(WandbConfig)
    launcher: LauncherConfig = group(LauncherConfig)
    grid: dict[str, Any] = option({}, "settings with several values, as an experiment file lists them for -m", "KEY: VALUES")
    variant: str | None = option(None, "added to the run folder's name; a grid names the settings there that no folder shows")
