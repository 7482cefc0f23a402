"""Streams edits and the tokens of their objects to a decoder.

Shape letters: B edits in a batch, N edits in a store, T object tokens, D hidden width, F MLP width.
"""

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from data.facts import load_facts
from data.probe_keys import probe_keys
from data.produce import prepare_editor, produce
from data.splits import assign, draw_splits
from data.store import EditStore
from decoder.config import TrainConfig
from decoder.edit import PADDING, EditBatch
from decoder.host import Host

EXPORT_BATCH = 128
IMPORTED = "imported"


class EditRows(Dataset):
    """Some rows of a store; a list of indices gives a whole `EditBatch`, read in one piece.

    Args:
        weight_DF: the host's W_V; given, batches carry whole matrices W'_V instead of factors.
        planted: rows whose objects are the targets, if not the rows themselves (the shuffled-label control).
    """

    def __init__(
        self,
        store: EditStore,
        rows: list[int],
        terminator_id: int | None,
        weight_DF: Tensor | None = None,
        planted: list[int] | None = None,
    ) -> None:
        self.store, self.rows, self.weight_DF = store, torch.tensor(rows), weight_DF
        end = [] if terminator_id is None else [terminator_id]
        targets = [torch.tensor(store.object_ids[row] + end) for row in planted or rows]
        self.object_ids_NT = torch.nn.utils.rnn.pad_sequence(targets, batch_first=True, padding_value=PADDING)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: list[int]) -> EditBatch:
        rows_B = self.rows[indices]
        edits = self.store.edits(rows_B)
        ids_BT = self.object_ids_NT[indices]
        longest = int((ids_BT != PADDING).sum(1).max())
        return EditBatch(edits if self.weight_DF is None else edits.applied_to(self.weight_DF), ids_BT[:, :longest], rows_B)


class EpochShuffle(Sampler[int]):
    """Rows in an order that follows from seed and epoch alone, so that a resumed fit sees what it would have seen."""

    def __init__(self, length: int, seed: int) -> None:
        self.length, self.seed, self.epoch = length, seed, 0

    def __len__(self) -> int:
        return self.length

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before every epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.length)
        return iter(order.tolist())


class EditDataModule(LightningDataModule):
    """Edits of one host and layer, split into training, validation and test.

    `prepare_data` makes the store if it is not there; `setup` opens it and draws the splits. Both may be called any number of
    times. Loaders are named by `val_splits` and `test_splits`, in order; tests read the validation splits too, because
    calibration needs them. `split_rows` gives the rows of a store instead of drawing them, as an exported decoder does.
    """

    def __init__(self, cfg: TrainConfig, host: Host) -> None:
        super().__init__()
        self.cfg, self.host = cfg, host
        self.prepare_data_per_node = False
        self.store: EditStore | None = None

    def prepare_data(self) -> None:
        self.store = produce(self.cfg, self.host)

    def setup(self, stage: str | None = None) -> None:
        if self.store is None:
            self.store = produce(self.cfg, self.host)
        if hasattr(self, "rows"):
            return
        self.facts = load_facts(self.cfg.facts)
        self.plan = draw_splits(self.facts, self.cfg.splits)
        self.table = self.store.table()
        self.rows = assign(self.plan, self.table, self.cfg.splits)
        if self.cfg.data.max_train:
            self.rows["train"] = _evenly_over_relations(self.rows["train"], self.table, self.cfg.data.max_train)
        mark_seen(self.table, self.rows["train"])

    @property
    def val_splits(self) -> list[str]:
        return [split for split in ("val/id", "val/new") if self.rows[split]]

    @property
    def test_splits(self) -> list[str]:
        return [split for split in ("id", "ood", "unseen_object", "val/id", "val/new") if self.rows[split]]

    @property
    def training_subjects(self) -> list[str]:
        return sorted(set(self.table["subject"].iloc[self.rows["train"]]))

    @property
    def training_templates(self) -> list[str]:
        facts = [self.facts.by_relation[relation][0] for relation, role in self.plan.relation_role.items() if role == "train"]
        return sorted(template for fact in facts for template in (fact.prompt, *fact.paraphrases))

    def factors(self, split: str) -> EditBatch:
        """All edits of a split in one batch on the host's device, as factors whatever `data.form` says."""
        rows = EditRows(self.store, self.rows[split], self.host.terminator_id)
        return EditBatch(*(part.to(self.host.device) for part in rows.__getitems__(list(range(len(rows))))))

    def probe_keys(self) -> Tensor:
        """Keys (K, F) of training subjects and made-up ones, as `optim.gain_spread` needs them."""
        training = self.table.iloc[self.rows["train"]]
        prompts = list(zip(training["prompt"], training["subject"], strict=True))
        whiten = prepare_editor(self.cfg, self.host, self.facts).whiten
        return probe_keys(self.host, self.cfg.edits.layer, whiten, prompts, self.cfg.data.made_up_keys, self.cfg.edits.seed)

    def train_dataloader(self) -> DataLoader:
        planted = list(self.rows["train"])
        if self.cfg.data.shuffle_labels:
            random.Random(self.cfg.seed).shuffle(planted)
        return self._loader("train", self.cfg.data.batch_size, planted=planted)

    def val_dataloader(self) -> list[DataLoader]:
        return [self._loader(split, self.cfg.data.eval_batch_size) for split in self.val_splits]

    def test_dataloader(self) -> list[DataLoader]:
        return [self._loader(split, self.cfg.data.eval_batch_size) for split in self.test_splits]

    def _loader(self, split: str, batch_size: int, **rows: Any) -> DataLoader:
        weight_DF = self.host.weight_DF(self.cfg.edits.layer).cpu() if self.cfg.data.form == "dense" else None
        dataset = EditRows(self.store, self.rows[split], self.host.terminator_id, weight_DF, **rows)
        workers = self.cfg.data.workers
        sampler = EpochShuffle(len(dataset), self.cfg.seed) if split == "train" else None
        return DataLoader(dataset, batch_size, sampler=sampler, collate_fn=_as_is, num_workers=workers, persistent_workers=workers > 0)


def exported_splits(
    store: EditStore, splits: dict[str, list[str]], terminator_id: int | None
) -> tuple[dict[str, DataLoader], pd.DataFrame]:
    """Loaders of the test splits whose edit_ids an exported decoder lists, and the edits' table; of imported edits, all as one split.

    Raises:
        ValueError: the store lacks edits of the list.
    """
    table = store.table()
    if store.manifest["editor"]["name"] == IMPORTED:
        # Edits of other tools were in no split: every one of them is a test.
        mark_seen(table, [])
        return {IMPORTED: DataLoader(EditRows(store, list(range(len(store))), terminator_id), EXPORT_BATCH, collate_fn=_as_is)}, table
    row_of = {edit_id: row for row, edit_id in enumerate(table["edit_id"])}
    mark_seen(table, [row_of[edit_id] for edit_id in splits["train"] if edit_id in row_of])
    loaders = {}
    for split in ("id", "ood", "unseen_object"):
        if missing := [edit_id for edit_id in splits[split] if edit_id not in row_of]:
            raise ValueError(
                f"store {store.path} lacks {len(missing)} of the decoder's {split} edits, {missing[0]} first. Give its own store="
            )
        if splits[split]:
            dataset = EditRows(store, [row_of[edit_id] for edit_id in splits[split]], terminator_id)
            loaders[split] = DataLoader(dataset, EXPORT_BATCH, collate_fn=_as_is)
    return loaders, table


def mark_seen(table: pd.DataFrame, train_rows: list[int]) -> None:
    """Adds the columns seen_object and seen_kind: whether a training edit has the object, or an object of its kind."""
    training = table.iloc[train_rows]
    table["seen_object"] = table["object"].isin(set(training["object"]))
    table["seen_kind"] = table["kind"].isin(set(training["kind"]))


def _as_is(batch: EditBatch) -> EditBatch:
    """The dataset reads whole batches, so there is nothing left to collate."""
    return batch


def _evenly_over_relations(rows: list[int], table: pd.DataFrame, count: int) -> list[int]:
    """The first `count` rows when relations take turns."""
    turn = table.iloc[rows].groupby("relation").cumcount().to_numpy()
    return [rows[i] for i in turn.argsort(kind="stable")[:count]]
