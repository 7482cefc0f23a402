"""The test stage against its slow twin: every batch read, and then scored, from the start."""

import pytest
import torch
from lightning import Trainer

from decoder.answers import read_batch
from decoder.batch import PADDING
from decoder.ending import inside_words
from decoder.parts import rekey
from decoder.training.losses import object_loss
from decoder.training.module import TEST_SPLITS, DecoderModule, random_prompt


@pytest.mark.parametrize("target", ["object", "first_token"])
@torch.no_grad()
def test_the_test_stage_equals_reading_and_scoring_apart(opened, fact_host, target, monkeypatch):
    monkeypatch.setattr(rekey, "COMMON", 0.0)  # these keys were drawn
    edits = opened(eval_batch_size=50)
    decoder_cfg = edits.cfg.decoder
    decoder_cfg.prompt_length, decoder_cfg.target, decoder_cfg.beams, edits.cfg.trainer.accelerator = 4, target, 3, "cpu"
    module = DecoderModule(edits.cfg, fact_host)
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.test(module, edits, verbose=False)
    assert module.decoder.own_keys is not None and not module.decoder.apart
    inside_V = inside_words(fact_host)
    assert inside_V.any() and torch.equal(module.decoder.prior_V > 1000, inside_V), "objects begin as words do, which those of training did"
    search = {"beams": decoder_cfg.beams, "max_object_tokens": decoder_cfg.max_object_tokens}
    for split, loader in zip(edits.test_splits, edits.test_dataloader(), strict=True):
        readings, losses, tokens = [], [], []
        for batch in loader:
            readings += read_batch(fact_host, module.decoder.read(batch.edits, **search), batch)
            targets_BT = batch.object_ids_BT if target == "object" else batch.object_ids_BT[:, :1]
            losses.append(object_loss(*module.decoder.scored(module.decoder.rekeyed(batch.edits), targets_BT)))
            tokens.append(int((targets_BT != PADDING).sum()))
        assert [reading._replace(probability=0.0) for reading in module.readings[split]] == [
            reading._replace(probability=0.0) for reading in sorted(readings)
        ]
        found, expected = ([reading.probability for reading in some] for some in (module.readings[split], sorted(readings)))
        assert found == pytest.approx(expected, rel=1e-6)
        if split in TEST_SPLITS:
            expected = float(torch.stack(losses) @ torch.tensor(tokens, dtype=torch.float32)) / sum(tokens)
            assert float(trainer.callback_metrics[f"test/{split}/loss"]) == pytest.approx(expected, rel=1e-6)


def test_random_prompts_have_the_scale_of_what_the_host_reads(host_of):
    """Gemma's embedding module scales what its weight holds."""
    for name in ("gemma", "llama"):
        embed = host_of(name).model.get_input_embeddings()
        found_MD = random_prompt(host_of(name), 400, seed=0)
        read_VD = embed(torch.arange(embed.num_embeddings)).detach()
        assert found_MD.std() == pytest.approx(float(read_VD.std()), rel=0.1)
