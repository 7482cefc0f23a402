"""Every setting of a run, one line each: name, type, default and what it means. Those of the other commands are in `commands.py`.

The composer (`decoder/config/compose.py`) fills these dataclasses from `configs/` and the command line. Nothing here imports torch,
so that `--help` answers at once.
"""

from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from decoder.config.editors import EDITORS, EditsConfig
from decoder.config.options import as_list, group, option, place

C = TypeVar("C")


@dataclass
class PocketConfig:
    layers: int = option(4, "number of blocks", least=1)
    windowed_layers: int = option(2, "leading blocks whose attention sees only `window` positions")
    window: int = option(1, "positions seen by a windowed block; 1 is the token itself", least=1)
    hidden_size: int = option(128, "hidden width D", least=1)
    mlp_size: int = option(384, "MLP width F", least=1)
    heads: int = option(4, "attention heads", least=1)
    subject_spread: float = option(0.1, "spread of the embeddings of subjects' last tokens, which are drawn and not trained")
    subject_cosine: float = option(0.15, "what these embeddings share: the cosine between two of them")
    object_vocabulary: int = option(600, "size of the BPE vocabulary learnt on the objects", least=1)
    steps: int = option(600, "optimiser steps", least=1)
    batch_size: int = option(32, "rows in a step", least=1)
    row_tokens: int = option(48, "tokens in a row", least=1)
    lr: float = option(3e-3, "peak learning rate of AdamW")
    weight_decay: float = option(0.1, "weight decay of AdamW")
    warmup_steps: int = option(100, "steps of linear warm-up")
    min_recall: float = option(0.97, "the program stops if exact recall on any template is lower", most=1)


@dataclass
class HostConfig:
    name: str = option("pocket", "name of the host in tables and folders")
    path: str | None = place(None, "local folder, GGUF file or Hub id; empty takes host.package or host.hub, or builds the pocket host")
    package: str | None = option(None, "installed package whose GGUF file is taken where host.path is empty; its code is never run")
    hub: str | None = option(None, "Hub id where host.path is empty and the package is not installed")
    revision: str | None = option(None, "Hub revision to pin")
    dtype: Literal["float32", "bfloat16", "float16"] = option("float32", "dtype the frozen weights are loaded in")
    terminator: str | None = option(None, "text that ends an object; empty if the host has none")
    source: str | None = option(None, "where its file's edit settings come from: published, untested, or measured here")
    seed: int = option(0, "seed of the pocket host's text and weights")
    pocket: PocketConfig = group(PocketConfig)

    @property
    def is_pocket(self) -> bool:
        """Whether it is built here, and not read from anywhere."""
        return not (self.path or self.package or self.hub)


@dataclass
class FactsConfig:
    source: str = option("pocket", "pocket (embedded), counterfact, zsre, zsre-alt, pararel, mquake, knowedit, fever, yago or plain")
    path: str | None = place(None, "file, folder or Hub data set of any source but the pocket")
    split: str = option("train", "split of a Hub data set")
    relations: str | None = place(None, "your sentences: YAML, relation: {templates: [...]}, and name, kind, category if you like")
    min_per_relation: int = option(0, "leave out relations with fewer facts")
    per_relation: int | None = option(None, "keep so many facts of each relation, drawn by facts.seed; empty keeps all", least=1)
    seed: int = option(0, "seed of that draw")


@dataclass
class KeysConfig:
    text: str | None = place(
        None,
        "text for key statistics and contexts: .txt or .jsonl file, folder, Hub data set; self: the host's own; empty: the facts told",
    )
    top_k: int | None = option(50, "keys.text=self: likeliest tokens that the next one is drawn among; empty: all", least=1)
    split: str = option("train", "split of a Hub data set")
    field: str = option("text", "field of a record that holds its text")
    layers: list[int] = option([], "layers counted in the same pass over the text as edits.layer, for edits that are made later")
    memory_budget: float = option(1.0, "GiB that the keys caught at a time may take while they are counted")
    statistics: str | None = place(
        None, "published second moment instead of counting: .npz with mom2.mom2 and mom2.count; {} is the layer's number"
    )


@dataclass
class MinimumConfig:
    """Fewest successful edits of each split; `val/id` may be written so."""

    train: int = option(800, "fewest successful training edits")
    val_id: int = option(100, "fewest successful val/id edits")
    val_new: int = option(60, "fewest successful val/new edits")
    id: int = option(280, "fewest successful id edits")
    ood: int = option(320, "fewest successful ood edits")
    unseen_object: int = option(150, "fewest successful unseen_object edits")


@dataclass
class SplitsConfig:
    train_relations: int = option(17, "relations trained on")
    val_relations: int = option(3, "relations of val/new")
    ood_relations: int = option(11, "relations of the ood test")
    held_out_objects: float = option(0.15, "share of objects that are never a training or validation target", most=1)
    val_subjects: float = option(0.1, "share of a training relation's subjects kept for val/id", most=1)
    test_subjects: float = option(0.3, "share of a training relation's subjects kept for id and unseen_object", most=1)
    seed: int = option(0, "seed of the draw")
    train_per_relation: int = option(55, "training edits asked for per training relation")
    spelt_per_relation: int = option(0, "training edits beside these that plant nouns and names which SmolLM2 has in several tokens")
    val_per_relation: int = option(8, "val/id edits per training relation")
    id_per_relation: int = option(18, "id test edits per training relation")
    unseen_per_relation: int = option(30, "at most so many unseen_object edits per training relation")
    other_per_relation: int = option(32, "edits per val/new and ood relation")
    minimum: MinimumConfig = group(MinimumConfig)


@dataclass
class DataConfig:
    form: Literal["factors", "dense"] = option("factors", "what a batch carries: factors of the edits, or whole W'_V")
    batch_size: int = option(32, "edits in a training batch, over all devices together", least=1)
    eval_batch_size: int = option(128, "edits in an evaluation batch, on each device", least=1)
    also: list[str] = place([], "stores of other editors on the same host, layer and facts: their edits are trained on and tested too")
    workers: int = option(0, "loader processes; 0 reads in the training process, which a mapped store is fast enough for")
    prefetch: int = option(2, "batches that each loader process, or a stream, has ready", least=1)
    pin_memory: bool = option(True, "page-locked batches where there is a GPU")
    streaming: bool = option(False, "read store= as a stream of Parquet files, a folder or a Hub data set, instead of mapping it")
    shuffle_buffer: int = option(4096, "streaming: edits a training edit is drawn from; they are held in memory", least=1)
    made_up_keys: int = option(3000, "keys of made-up subjects beside those of the training subjects, for optim.gain_spread")
    shuffle_labels: bool = option(False, "control: train on objects that are permuted between the edits")
    max_train: int | None = option(None, "train on at most so many edits, drawn evenly over relations", least=1)


@dataclass
class DecoderConfig:
    layer: Any = option(1, "trained layer, 0-based; several as [0,1]", "int|list of int")
    prompt_length: int = option(12, "learnable prompt vectors M", least=1)
    train_prompt: bool = option(True, "learn the prompt vectors; the paper keeps them fixed")
    scope: Literal["prompt", "all"] = option("prompt", "positions the trained layer acts on: the prompt only (two passes), or all")
    target: Literal["object", "first_token"] = option(
        "object", "train on the whole object and its terminator, or its first token as in the paper"
    )
    rekeyed: bool = option(True, "read what an edit of one term writes at a key of the decoder's own; false: where it is, as published")
    beams: int = option(4, "beams of the search over whole objects; validation while training is greedy", least=1)
    prior: float = option(0.2, "share of a first token's log-probability without an edit that is taken off when reading", most=1)
    max_object_tokens: int = option(8, "longest object that is generated, terminator not counted", least=1)

    @property
    def layers(self) -> list[int]:
        """The trained layers, one or several."""
        return as_list(self.layer)

    @property
    def search(self) -> dict[str, int]:
        """How whole objects are searched for, as `ObjectDecoder.read` and an exported decoder's config have it."""
        return {"beams": self.beams, "max_object_tokens": self.max_object_tokens}


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
    recombined: float = option(0.3, "chance of a training edit to get the key of another one of its batch", most=1)
    value_noise: float = option(0.3, "noise on the values of training edits, as a share of their length")
    epochs: int = option(24, "most epochs", least=1)
    patience: int = option(15, "validation checks without a better val/id/loss before training stops", least=1)


@dataclass
class TrainerConfig:
    accelerator: Literal["auto", "cpu", "cuda", "gpu", "mps"] = option("auto", "Lightning accelerator")
    devices: Any = option(1, "Lightning devices", "int|list of int|auto", least=None)
    num_nodes: int = option(1, "machines, see docs/scaling.md", least=1)
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
    jobs: int | None = option(None, "most runs at a time; empty: one here, and as many as there is room for on ray and slurm", least=1)
    cpus: int = option(4, "ray, slurm: cores of a run", least=1)
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
    runs: str = place("runs", "folder of run folders")
    cache_dir: str | None = place(None, "cache of hosts, key statistics and stores; empty is $XDG_CACHE_HOME/palimpsest")
    resume: bool | None = option(None, "go on from the last checkpoint, or start anew; empty goes on with a killed run of these settings")
    host: HostConfig = group(HostConfig)
    store: str | None = place(None, "folder of the store of edits; empty is in the cache")
    facts: FactsConfig = group(FactsConfig)
    keys: KeysConfig = group(KeysConfig)
    edits: EditsConfig = group(EDITORS[EditsConfig.editor])
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


RENAMED = {f"edits.{split}_per_relation": f"splits.{split}_per_relation" for split in ("train", "val", "id", "unseen", "other")} | {
    f"splits.min_{split}": f"splits.minimum.{split}" for split in ("train", "val_id", "val_new", "id", "ood", "unseen_object")
}
"""Settings of earlier versions -> what they are called now: refused where they are typed, read as that where they were recorded."""


def with_editor(config_class: type[C], editor: str | None = None) -> C:
    """The defaults of a config, its `edits` being those of an editor; of one that is not known, what all editors share."""
    config = config_class()
    if editor is not None and isinstance(config, TrainConfig):
        config.edits = EDITORS.get(editor, EditsConfig)(editor=editor)
    return config
