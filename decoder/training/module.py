"""Training and scoring a decoder with Lightning.

Shape letters: B edits, T object tokens, M prompt vectors, D hidden width, K keys, F MLP width.
"""

import math
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from lightning import LightningDataModule, LightningModule
from torch import Tensor

from decoder.answers import Reading, read_batch
from decoder.batch import PADDING, EditBatch
from decoder.config import TrainConfig
from decoder.edit import Edits, RankOneEdit
from decoder.host import Host
from decoder.metrics import split_meters, teacher_forced_correct
from decoder.model import ObjectDecoder
from decoder.scores import TEST_SPLITS, VAL_SPLITS
from decoder.swap import projection_inputs
from decoder.training.augment import varied
from decoder.training.distributed import gathered
from decoder.training.losses import KeySpread, gain_spread, key_spread, object_loss, together

WARMUP_BEFORE_EDIT = 100  # steps; 300 do as well


def random_prompt(host: Host, length: int, seed: int) -> Tensor:
    """Prompt vectors (M, D) drawn like the host's token embeddings: same mean and spread in every coordinate."""
    embed = host.model.get_input_embeddings()
    embedding_VD = embed.weight.float().cpu()
    if scale := getattr(embed, "scalar_embed_scale", None):  # Gemma scales inside the module
        embedding_VD = embedding_VD * scale
    generator = torch.Generator().manual_seed(seed)
    noise_MD = torch.randn(length, embedding_VD.shape[1], generator=generator)
    return embedding_VD.mean(0) + noise_MD * embedding_VD.std(0)


def untrained_decoder(cfg: TrainConfig, host: Host) -> ObjectDecoder:
    """The decoder before training: its start prompt and no trained layer."""
    prompt_MD = random_prompt(host, cfg.decoder.prompt_length, cfg.seed)
    decoder = ObjectDecoder(host, edited_layers=cfg.edits.layers, trained_layers=[], prompt_MD=prompt_MD, scope=cfg.decoder.scope)
    return decoder.to(host.device)


class DecoderModule(LightningModule):
    """Trains an `ObjectDecoder`; validates on val/id and val/new; collects readings in tests.

    Checkpoints hold the prompt and the trained layer only: the host is outside the module tree.

    Args:
        hparams: plain dict of the resolved config, saved in checkpoints.
    """

    def __init__(self, cfg: TrainConfig, host: Host, *, hparams: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.save_hyperparameters(hparams or {}, logger=False)
        self.cfg = cfg
        prompt_MD = random_prompt(host, cfg.decoder.prompt_length, cfg.seed)
        self.decoder = ObjectDecoder(
            host,
            edited_layers=cfg.edits.layers,
            trained_layers=cfg.decoder.layers,
            prompt_MD=prompt_MD,
            train_prompt=cfg.decoder.train_prompt,
            scope=cfg.decoder.scope,
            arithmetic=cfg.swap.arithmetic,
        )
        self.meters = split_meters([*VAL_SPLITS, *(f"test/{split}" for split in TEST_SPLITS)])
        self.readings: dict[str, list[Reading]] = {}
        self.key_spreads: list[dict[int, KeySpread]] = []

    def on_fit_start(self) -> None:
        self.decoder.host.model.to(self.device)
        if self.cfg.optim.gain_spread:
            self.key_spreads = [
                {layer: KeySpread(*(part.to(self.device) for part in key_spread(key_KF))) for layer, key_KF in keys.items()}
                for keys in self.trainer.datamodule.probe_keys()
            ]

    # Loaders come in the order of the datamodule's `val_splits` and `test_splits`.

    def training_step(self, batch: EditBatch, batch_idx: int) -> Tensor:
        spread_layers = self.key_spreads[0] if self.key_spreads else ()
        with ExitStack() as stack:
            inputs = {layer: stack.enter_context(projection_inputs(self.decoder.host, layer)) for layer in spread_layers}
            logits_NV, ids_N = self.decoder.scored(self._varied(batch, batch_idx), self._targets(batch))
            loss = self._share(object_loss(logits_NV, ids_N), batch)
        self._log_epoch("train/loss", loss, batch)
        if not spread_layers:
            return loss
        # The first input is the prompt's, flat or not, once or for every edit. In the lowest layer edits have not shaped it: once will do.
        seen = {layer: inputs[layer][0].flatten(0, -2) for layer in spread_layers}
        lowest = min(seen)
        seen[lowest] = seen[lowest][: len(self.decoder.prompt_MD)]
        spread = together([sum(gain_spread(seen[layer], keys) for layer, keys in own.items()) / len(own) for own in self.key_spreads])
        self._log_epoch("train/gain_spread", spread, batch)
        return loss + self.cfg.optim.gain_spread * spread

    def _log_epoch(self, name: str, value: Tensor, batch: EditBatch) -> None:
        self.log(name, value, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(batch.edits), sync_dist=True)

    def validation_step(self, batch: EditBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        # Teacher-forced: it says which epoch is better as well as the beam search of the tests does, at a small part of the cost.
        name, whole_BT = self.trainer.datamodule.val_splits[dataloader_idx], batch.object_ids_BT
        logits_NV, ids_N = self.decoder.scored(batch.edits, whole_BT)
        counted = len(batch.edits) if self.cfg.decoder.target == "first_token" else len(ids_N)
        first_B, whole_B = teacher_forced_correct(logits_NV, whole_BT, self.decoder.host.terminator_id)
        self._count(name, object_loss(logits_NV[:counted], ids_N[:counted]), counted, first_token=first_B, exact_match=whole_B)

    def on_validation_epoch_end(self) -> None:
        self._log_scores(self.trainer.datamodule.val_splits)

    def on_test_start(self) -> None:
        self.decoder.host.model.to(self.device)
        self.decoder.apart = self.trainer.datamodule.is_apart
        self.learn_to_read(self.trainer.datamodule)
        self.readings = {split: [] for split in self.trainer.datamodule.test_splits}

    def learn_to_read(self, datamodule: LightningDataModule) -> None:
        """What a trained decoder takes from training edits for reading others."""
        decoder, no_end = self.decoder, self.decoder.host.terminator_id is None
        train = datamodule.factors("train") if no_end or self.cfg.decoder.rekeyed else None
        if self.cfg.decoder.rekeyed:
            decoder.learn_keys(train.edits, datamodule.usual_keys())
        decoder.take_prior(self.cfg.decoder.prior)
        decoder.learn_start(datamodule.training_beginnings)
        if no_end:
            decoder.learn_end(train.edits, train.object_ids_BT)

    def test_step(self, batch: EditBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        split, search = self.trainer.datamodule.test_splits[dataloader_idx], self.cfg.decoder.search
        facts = self.cfg.edits.facts_per_host
        # What is scored is each fact's own term, what is read the host with all of them.
        edits = self.trainer.datamodule.hosts(batch.row_B.cpu()) if self.decoder.apart else batch.edits
        if split not in TEST_SPLITS:
            self.readings[split] += read_batch(self.decoder.host, self.decoder.read(edits, **search), batch, facts)
            return
        if self.decoder.apart:
            found = self.decoder.read(edits, **search)
            logits_NV, ids_N = self.decoder.scored(self.decoder.rekeyed(batch.edits), self._targets(batch))
        else:
            found, logits_NV, ids_N = self.decoder.read_and_scored(edits, self._targets(batch), **search)
        readings = read_batch(self.decoder.host, found, batch, facts)
        self.readings[split] += readings
        correct = {name: torch.tensor([getattr(reading, name) for reading in readings]) for name in ("first_token", "exact_match")}
        self._count(f"test/{split}", object_loss(logits_NV, ids_N), len(ids_N), **correct)

    def on_test_epoch_end(self) -> None:
        """From here on every process has the readings of all of them, in store order."""
        splits = self.trainer.datamodule.test_splits
        self._log_scores([f"test/{split}" for split in splits if split in TEST_SPLITS])
        self.readings = {split: sorted(gathered(self.readings[split])) for split in splits}

    def _varied(self, batch: EditBatch, batch_idx: int) -> Edits:
        if self.cfg.data.also and not isinstance(batch.edits, RankOneEdit):
            return batch.edits
        # Seeded by the batch, so that a resumed fit draws what it would have drawn.
        place = np.random.SeedSequence((self.cfg.seed, self.current_epoch, batch_idx, self.global_rank)).generate_state(1)
        generator = torch.Generator().manual_seed(int(place[0]))
        return varied(batch.edits, self.cfg.optim.recombined, self.cfg.optim.value_noise, generator)

    def _targets(self, batch: EditBatch) -> Tensor:
        return batch.object_ids_BT[:, :1] if self.cfg.decoder.target == "first_token" else batch.object_ids_BT

    def _share(self, loss: Tensor, batch: EditBatch) -> Tensor:
        """The loss of this process's share of a batch, weighted so that the mean over processes is the loss of the whole batch."""
        if self.trainer.world_size == 1:
            return loss
        tokens = (self._targets(batch) != PADDING).sum().to(loss)
        return loss * tokens / self.trainer.strategy.reduce(tokens.clone(), reduce_op="mean")

    def _count(self, name: str, loss: Tensor, tokens: int, **correct: Tensor) -> None:
        """Counts a batch in under `name`. Tokens count alike, so that a split's loss does not depend on how it was cut into batches."""
        self.meters[name]["loss"].update(loss, weight=tokens)
        for metric, right_B in correct.items():
            self.meters[name][metric].update(right_B.float())

    def _log_scores(self, names: list[str]) -> None:
        """Logs what was counted in under each name, by all processes together, also where this one had no edit of a split."""
        for name in names:
            for metric, meter in self.meters[name].items():
                self.log(f"{name}/{metric}", meter.compute(), prog_bar=metric == "exact_match")
                meter.reset()

    def configure_optimizers(self) -> dict[str, Any]:
        optim = self.cfg.optim
        groups = [{"params": list(self.decoder.trained.parameters()), "lr": optim.lr_layer, "name": "layer"}]
        if self.cfg.decoder.train_prompt:
            groups.append({"params": [self.decoder.prompt_MD], "lr": optim.lr_prompt, "name": "prompt"})
        optimizer = torch.optim.AdamW(groups, betas=tuple(optim.betas), weight_decay=optim.weight_decay)
        steps, warmup = self.trainer.estimated_stepping_batches, self._warmup_steps()
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _learning_rate(step, steps, warmup, optim.schedule))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _warmup_steps(self) -> int:
        if (asked := self.cfg.optim.warmup_steps) is not None:
            return asked
        # What such a layer changes reaches the edit through frozen blocks: first steps at the full rate leave prompts there that no
        # edit answers to, and training never comes back.
        return WARMUP_BEFORE_EDIT if min(self.decoder.trained_layers) < self.decoder.edited_layers[0] else 0


def _learning_rate(step: int, steps: int, warmup_steps: int, schedule: str) -> float:
    """Factor of the learning rates: linear warm-up, then constant or half a cosine down to 0."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
