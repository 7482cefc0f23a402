"""Streams edits and the tokens of their objects to a decoder.

Shape letters: B edits in a batch, N edits in a store, T object tokens, D hidden width, F MLP width.
"""

import random
from dataclasses import replace
from functools import cached_property
from typing import Any

import pandas as pd
import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from data.batches import EditRows, EpochShuffle, SharedBatches, as_is, padded_objects
from data.facts.fact import Fact, FactSet
from data.facts.load import load_facts
from data.facts.splits import assign, draw_splits
from data.keys.probe import probe_keys, vocabulary_keys
from data.own_terms import has_own_terms, own_terms
from data.produce.plan import imported, prepare_editor, refuse_too_few, requested, settings_of
from data.produce.shards import produce
from data.store.fact_rows import one_fact_a_row
from data.store.joined import JoinedStores
from data.store.manifest import IMPORTED
from data.store.parquet import EditStream
from data.store.store import EditStore
from data.stream_loader import StreamLoader
from decoder.batch import EditBatch
from decoder.config import TrainConfig
from decoder.edit import Edits
from decoder.host import Host
from decoder.scores import TEST_SPLITS, VAL_SPLITS

MOST_IN_MEMORY = 20_000  # edits that baselines and calibration look at; 640 MB at the widths of GPT2-XL


class EditDataModule(LightningDataModule):
    """Edits of one host and its edited layers, split into training, validation and test.

    `prepare_data` makes the store if it is not there; `setup` opens it and draws the splits. Both may be called any number of
    times. Loaders are named by `val_splits` and `test_splits`, in order; tests read the validation splits too, because
    calibration needs them.
    """

    def __init__(self, cfg: TrainConfig, host: Host) -> None:
        super().__init__()
        self.cfg, self.host = cfg, host
        self.prepare_data_per_node = False
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.store: EditStore | EditStream | None = None

    def prepare_data(self) -> None:
        self.store = self._open()

    def setup(self, stage: str | None = None) -> None:
        if self.store is None:
            self.store = self._open()
        if hasattr(self, "rows"):
            return
        is_imported = self.store.manifest["editor"]["name"] == IMPORTED
        self.facts = facts_of(self.store) if is_imported else load_facts(self.cfg.facts)
        self.plan = draw_splits(self.facts, self.cfg.splits)
        self.table = self.store.table()
        self.rows = assign(self.plan, self.table, self.cfg.splits)
        if count := self.cfg.data.max_train:
            self.rows["train"] = _evenly_over_relations(self._in_any_order(self.rows["train"]), self.table, count)
        mark_seen(self.table, self.rows["train"])

    @cached_property
    def _learnt_from(self) -> EditStore | EditStream:
        """The store as training and validation see it: every fact alone."""
        return self.store if isinstance(self.store, EditStream) else own_terms(self.store, self.host)

    @property
    def is_apart(self) -> bool:
        """Whether hosts have several facts, each of which is learnt from as if it were alone."""
        return has_own_terms(self.store)

    def _in_any_order(self, rows: list[int]) -> list[int]:
        """As they are, or shuffled where edits that plant something else come last."""
        return random.Random(self.cfg.splits.seed).sample(rows, len(rows)) if "spelt" in self.store.manifest else rows

    def _open(self) -> EditStore | EditStream:
        if self.cfg.data.streaming:
            return open_stream(self.cfg, self.host)
        if not self.cfg.data.also and imported(self.cfg, self.host) is None:
            refuse_too_few(self.cfg)
        stores = [one_fact_a_row(store) for store in (produce(self.cfg, self.host), *map(EditStore, self.cfg.data.also))]
        return stores[0] if len(stores) == 1 else JoinedStores(stores)

    @property
    def val_splits(self) -> list[str]:
        return [split for split in VAL_SPLITS if self.rows[split]]

    @property
    def test_splits(self) -> list[str]:
        return [split for split in (*TEST_SPLITS, *VAL_SPLITS) if self.rows[split]]

    @property
    def training_subjects(self) -> list[str]:
        return sorted(set(self.table["subject"].iloc[self.rows["train"]]))

    @property
    def training_beginnings(self) -> set[int]:
        """The first tokens of what is planted in training."""
        return {self.store.object_ids[row][0] for row in self.rows["train"]}

    @property
    def training_templates(self) -> list[str]:
        facts = [self.facts.by_relation[relation][0] for relation, role in self.plan.relation_role.items() if role == "train"]
        return sorted(template for fact in facts for template in (fact.prompt, *fact.paraphrases))

    def factors(self, split: str) -> EditBatch:
        """The edits of a split in one batch on the host's device, as factors whatever `data.form` says.

        They are held in memory: of a large split, the first `MOST_IN_MEMORY` when relations take turns.
        """
        rows = self._few(split)
        ids_NT = padded_objects(self.store, rows, self.host.terminator_id)
        return EditBatch(self._learnt_from.edits(torch.tensor(rows)), ids_NT, torch.tensor(rows)).on(self.host.device)

    def hosts(self, row_B: Tensor) -> Edits:
        """What was done to the edited hosts that some rows are facts of."""
        base = self._dense_base()
        return self.store.edits(row_B) if base is None else self.store.whole_edits(row_B, base)

    def training_hosts(self) -> Edits:
        """What was done to the hosts of training facts, as `factors` has it, each as often as it has such facts."""
        return self.store.edits(torch.tensor(self._few("train"))).to(self.host.device)

    def probe_keys(self) -> list[dict[int, Tensor]]:
        """For each editor trained on, keys (K, F) of training and made-up subjects of each layer, as `optim.gain_spread` needs them."""
        training = self.table.iloc[self._few("train")]
        prompts = list(zip(training["prompt"], training["subject"], strict=True))
        others = self.store.parts[1:] if isinstance(self.store, JoinedStores) else []
        configs = [self.cfg, *(replace(self.cfg, edits=settings_of(store.manifest)) for store in others)]
        return [self._probed(cfg, prompts) for cfg in configs]

    def usual_keys(self) -> dict[int, Tensor]:
        """Keys (K, F) of the host's vocabulary in each edited layer, as reading at a key of the decoder's own needs them."""
        return {layer: vocabulary_keys(self.host, layer) for layer in self.cfg.edits.layers}

    def _probed(self, cfg: TrainConfig, prompts: list[tuple[str, str]]) -> dict[int, Tensor]:
        editor, layers = prepare_editor(cfg, self.host, self.facts, is_made=True), cfg.edits.layers
        whiteners = editor.whiteners if len(layers) > 1 else {layers[0]: editor.whiten or torch.Tensor.double}
        made_up, seed = self.cfg.data.made_up_keys, self.cfg.edits.seed
        return {layer: probe_keys(self.host, layer, whiten, prompts, made_up, seed) for layer, whiten in whiteners.items()}

    def _few(self, split: str) -> list[int]:
        rows = self.rows[split]
        return _evenly_over_relations(rows, self.table, MOST_IN_MEMORY) if len(rows) > MOST_IN_MEMORY else rows

    def transfer_batch_to_device(self, batch: EditBatch, device: torch.device, dataloader_idx: int) -> EditBatch:
        return batch.on(device)

    def train_dataloader(self) -> DataLoader | StreamLoader:
        rows, data = self.rows["train"], self.cfg.data
        planted = list(rows)
        if data.shuffle_labels:
            random.Random(self.cfg.seed).shuffle(planted)
        rank, world = self._place()
        if isinstance(self.store, EditStream):
            shuffle = (self.cfg.seed, data.shuffle_buffer)
            return self._stream_loader(rows, data.batch_size, planted, shuffle=shuffle, rank=rank, world=world)
        # Edits of one batch exchange keys and values, which mean the same in those of one editor only.
        editor_N = self.store.part_of(torch.tensor(rows)).tolist() if isinstance(self.store, JoinedStores) else None
        batches = SharedBatches(EpochShuffle(len(rows), self.cfg.seed), data.batch_size, rank, world, editor_N)
        return self._loader(rows, planted, batch_sampler=batches)

    def val_dataloader(self) -> list[DataLoader | StreamLoader]:
        return [self._evaluation_loader(split) for split in self.val_splits]

    def test_dataloader(self) -> list[DataLoader | StreamLoader]:
        return [self._evaluation_loader(split) for split in self.test_splits]

    def _evaluation_loader(self, split: str) -> DataLoader | StreamLoader:
        rank, world = self._place()
        # Every edit once: processes may have one edit more or less than others, and a small split none at all.
        rows, size = self.rows[split][rank::world], self.cfg.data.eval_batch_size
        if isinstance(self.store, EditStream):
            return self._stream_loader(rows, size, rows)
        return self._loader(rows, rows, batch_size=size)

    def _loader(self, rows: list[int], planted: list[int], **batches: Any) -> DataLoader:
        data = self.cfg.data
        dataset = EditRows(self._learnt_from, rows, self.host.terminator_id, self._dense_base(), planted)
        workers = {"num_workers": data.workers, "persistent_workers": True, "prefetch_factor": data.prefetch} if data.workers else {}
        pinned = data.pin_memory and torch.cuda.is_available()
        return DataLoader(dataset, collate_fn=as_is, pin_memory=pinned, **workers, **batches)

    def _stream_loader(self, rows: list[int], batch_size: int, planted: list[int], **more: Any) -> StreamLoader:
        ids_NT = padded_objects(self.store, planted, self.host.terminator_id)
        return StreamLoader(self.store, rows, ids_NT, batch_size, weight_DF=self._dense_base(), prefetch=self.cfg.data.prefetch, **more)

    def _dense_base(self) -> Tensor | dict[int, Tensor] | None:
        whole = self.cfg.data.form == "dense" or (isinstance(self.store, EditStore) and self.store.is_dense)
        return bases(self.host, self.cfg.edits.layers) if whole else None

    def _place(self) -> tuple[int, int]:
        """Rank of this process and how many there are."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)


def bases(host: Host, layers: list[int]) -> Tensor | dict[int, Tensor]:
    """W_V as `EditStore.whole_edits` takes it: of several layers by layer."""
    found = {layer: host.weight_DF(layer).cpu() for layer in layers}
    return found if len(layers) > 1 else found[layers[0]]


def facts_of(store: EditStore) -> FactSet:
    """The facts that imported edits are about: splits are drawn over their relations, subjects and objects."""
    columns = ("fact_id", "subject", "relation", "relation_name", "kind", "prompt", "object_true", "object")
    rows = store.table()[list(columns)].to_dict("records")
    facts = store.manifest["facts"]
    return FactSet(tuple(Fact(**row, paraphrases=()) for row in rows), source=facts["source"], sha256=facts["sha256"])


def mark_seen(table: pd.DataFrame, train_rows: list[int]) -> None:
    """Adds the columns seen_object and seen_kind: whether a training edit has the object, or an object of its kind."""
    training = table.iloc[train_rows]
    table["seen_object"] = table["object"].isin(set(training["object"]))
    table["seen_kind"] = table["kind"].isin(set(training["kind"]))


def _evenly_over_relations(rows: list[int], table: pd.DataFrame, count: int) -> list[int]:
    """The first `count` rows when relations take turns."""
    turn = table.iloc[rows].groupby([name for name in ("relation", "editor") if name in table]).cumcount().to_numpy()
    return [rows[i] for i in turn.argsort(kind="stable")[:count]]


def open_stream(cfg: TrainConfig, host: Host) -> EditStream:
    """The Parquet store that `store` names, checked against what a config asks for.

    Raises:
        ValueError: none is named or there, or it was made for something else.
    """
    if not cfg.store:
        raise ValueError(
            "data.streaming=true: store= is missing. Give a folder of Parquet files (python -m data.produce parquet=FOLDER "
            "writes one), or a data set on the Hub as USER/NAME"
        )
    stream = EditStream(cfg.store)
    stream.check(requested(cfg, host)[2])
    return stream
