"""Stores of hosts that are edited in several layers: what editors make, how it lies on disk, what is read and scored.

Shape letters: B hosts, R terms, D hidden width, F MLP width.
"""

import json

import pytest
import torch
from lightning import Trainer

from data.batches import EditRows
from data.datamodule import EditDataModule
from data.facts.fact import EditRequest
from data.facts.load import load_facts
from data.produce.plan import store_path
from data.produce.score import score
from data.produce.shards import produce
from data.store.fact_rows import one_fact_a_row
from data.store.parquet import write_parquet
from data.store.store import EditStore
from decoder.config.commands import ProduceConfig
from decoder.config.compose import compose
from decoder.dense import applied
from decoder.edit import LayerEdits, LowRankEdit, RankOneEdit
from decoder.model import ObjectDecoder
from decoder.scores import TEST_SPLITS, VAL_SPLITS
from decoder.swap import projection_inputs
from decoder.training.losses import gain_spread, key_spread
from decoder.training.module import DecoderModule

QUICK = ["splits.train_relations=2", "splits.val_relations=1", "splits.ood_relations=1", "edits.shard_size=3", "edits.steps=2"]
LAYERS = [0, 1]


def config(*words):
    return compose(ProduceConfig, "train", ["edits=memit", "experiment=smoke", *QUICK, *words])


@pytest.fixture(scope="module")
def made(fact_host, tmp_path_factory):
    cfg = config("edits.layer=[0,1]", "edits.facts_per_host=2", f"store={tmp_path_factory.mktemp('made') / 'store'}")
    return cfg, produce(cfg, fact_host)


def test_a_row_has_factors_of_every_layer(made, fact_host):
    cfg, store = made
    manifest = json.loads((store.path / "manifest.json").read_text())
    assert manifest["layers"] == LAYERS == store.layers and "layer" not in manifest
    assert manifest["module"] == [fact_host.module_path(layer) for layer in LAYERS]
    assert manifest["base_sha256"] == [fact_host.base_sha256(layer) for layer in LAYERS] and manifest["rank"] == 2
    names = {"key_0", "value_0", "key_1", "value_1"}
    assert {name for name in store.dataset.column_names if name.startswith(("key", "value"))} == names
    edits = store.edits(torch.tensor([2, 0]))
    assert isinstance(edits, LayerEdits) and edits.layers == LAYERS and len(edits) == 2
    for layer in LAYERS:
        assert isinstance(edits.by_layer[layer], LowRankEdit)
        assert edits.by_layer[layer].key_BRF.shape == (2, 2, fact_host.mlp_size(layer))
        assert torch.equal(edits.by_layer[layer].value_BRD.flatten(1), torch.tensor(store.dataset[f"value_{layer}"])[[2, 0]])
    assert produce(cfg, fact_host).fingerprint == store.fingerprint == EditStore(store.path).fingerprint
    facts = one_fact_a_row(store).edits(torch.tensor([5, 0]))
    assert torch.equal(facts.by_layer[0].key_BRF, edits.by_layer[0].key_BRF), "facts 0 and 5 are of hosts 0 and 2"


def test_scores_are_those_of_edits_written_in_place(made, fact_host, in_place, pocket_facts):
    """The lower layer's edit in the weights, the upper's swapped in."""
    cfg, store = made
    edits, found = store.edits(torch.tensor([0])), {fact.fact_id: fact for fact in load_facts(cfg.facts).facts}
    twin = in_place(fact_host, applied(edits.by_layer[0], fact_host.weight_DF(0)), 0, 0)
    twin.terminator_id = fact_host.terminator_id
    told = store.facts(0)
    requests = [EditRequest(fact["edit_id"], found[fact["fact_id"]], fact["object"]) for fact in told]
    both = score(fact_host, requests, edits.by_layer, pocket_facts, owners=[0, 0])
    upper = score(twin, requests, {1: edits.by_layer[1]}, pocket_facts, owners=[0, 0])
    for name in ("efficacy_probability", "paraphrase_probability"):
        assert both[name] == pytest.approx(upper[name], rel=1e-3)
        assert store.table()[name][0] == pytest.approx(sum(both[name]) / 2, rel=1e-3)
    norms = [torch.linalg.matrix_norm(edits.by_layer[layer].delta()[0]) for layer in LAYERS]
    own = [fact_host.weight_DF(layer).norm() for layer in LAYERS]
    ratio = float(torch.stack(norms).norm() / torch.stack(own).norm())
    assert store.table()["delta_norm_ratio"][0] == pytest.approx(ratio, rel=1e-4)


def test_a_decoder_gets_the_edits_of_all_layers(made, fact_host, in_place):
    cfg, store = made
    bases = {layer: fact_host.weight_DF(layer) for layer in LAYERS}
    factors, whole = (EditRows(store, [0, 1, 2], fact_host.terminator_id, base).__getitems__([0, 2]) for base in (None, bases))
    decoder = ObjectDecoder(fact_host, edited_layers=LAYERS, trained_layers=[1], prompt_MD=torch.randn(4, fact_host.hidden_size))
    with torch.no_grad():
        found_BTV = decoder(factors.edits, factors.object_ids_BT)
        torch.testing.assert_close(decoder(whole.edits, whole.object_ids_BT), found_BTV, rtol=1e-4, atol=1e-4)
        for b in range(2):
            twin = in_place(fact_host, whole.edits.by_layer[0], b, 0)
            upper = ObjectDecoder(twin, edited_layers=[1], trained_layers=[1], prompt_MD=decoder.prompt_MD)
            alone_TV = upper(factors.edits.by_layer[1][b], factors.object_ids_BT[b : b + 1])[0]
            torch.testing.assert_close(found_BTV[b], alone_TV, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"edits are of layers \[0, 1\], expected layers \[1\]"):
        upper(factors.edits, factors.object_ids_BT)
    with pytest.raises(ValueError, match=r"edits are of one layer, expected layers \[0, 1\]"):
        decoder(factors.edits.by_layer[1], factors.object_ids_BT)


def opened(made, fact_host):
    cfg = config("edits.layer=[0,1]", "data.made_up_keys=7")
    cfg.store = str(made[0].store)
    cfg.edits.facts_per_host = 2
    edits = EditDataModule(cfg, fact_host)
    edits.prepare_data()
    # Two steps make no edit that sticks, and splits hold those that did.
    edits.table, edits.facts, edits.rows = edits.store.table(), load_facts(cfg.facts), dict.fromkeys((*VAL_SPLITS, *TEST_SPLITS), [])
    edits.rows |= {"train": [0, 1, 2], "ood": [3]}
    return cfg, edits, edits.probe_keys()[0]


def test_keys_to_train_on_are_of_every_layer(made, fact_host):
    _, edits, keys = opened(made, fact_host)
    assert list(keys) == LAYERS and all(len(key_KF) > 7 and key_KF.shape[1] == fact_host.mlp_size(0) for key_KF in keys.values())
    assert isinstance(edits.factors("ood").edits, LayerEdits)


def test_a_step_of_training_evens_the_gains_of_every_layer(made, fact_host):
    cfg, edits, keys = opened(made, fact_host)
    cfg.optim.recombined = cfg.optim.value_noise = 0.0
    module, batch = DecoderModule(cfg, fact_host), edits.factors("train")
    with torch.no_grad(), projection_inputs(fact_host, 0) as low, projection_inputs(fact_host, 1) as high:
        module.decoder.scored(batch.edits, batch.object_ids_BT)
    # What the lower edit has made of the prompt differs from host to host.
    seen = {0: low[0].flatten(0, -2), 1: high[0].flatten(0, -2)}
    assert len(seen[0]) == cfg.decoder.prompt_length and len(seen[1]) == 3 * cfg.decoder.prompt_length
    expected = sum(float(gain_spread(seen[layer], key_spread(keys[layer]))) for layer in LAYERS) / 2
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(accelerator="cpu", max_epochs=1, limit_val_batches=0, num_sanity_val_steps=0, **quiet)
    trainer.fit(module, edits)
    assert list(module.key_spreads[0]) == LAYERS
    assert float(trainer.callback_metrics["train/gain_spread"]) == pytest.approx(expected, rel=1e-4)


def test_another_layer_is_another_store(made, fact_host, tmp_path):
    cfg, store = made
    one = config("edits.layer=1", "edits.facts_per_host=2", f"store={store.path}")
    with pytest.raises(ValueError, match=r"made with edits\.layer=\[0,1\] \(here 1\)\. Give these settings"):
        produce(one, fact_host)
    assert store_path(config("edits.layer=[0,1]"), fact_host, {}).name.startswith("tiny-memit-e0-1-")
    with pytest.raises(ValueError, match="several facts a host, or edits of other tools, which are read from their own store only"):
        write_parquet(store, tmp_path / "parquet")


def test_of_one_fact_a_layer_has_a_key_and_a_value(fact_host, tmp_path):
    store = produce(config("edits.layer=[0,1]", f"store={tmp_path / 'store'}"), fact_host)
    edits = store.edits(torch.arange(len(store)))
    assert "rank" not in store.manifest and all(isinstance(own, RankOneEdit) for own in edits.by_layer.values())
    assert edits.key_BF is edits.by_layer[1].key_BF, "baselines look at the last"


def test_more_facts_than_a_host_holds_are_one_line(fact_host, tmp_path):
    width = fact_host.mlp_size(1)
    asked = ["edits=memit", "edits.layer=[0,1]", f"edits.facts_per_host={width + 1}", f"store={tmp_path / 'store'}"]
    with pytest.raises(ValueError, match=rf"edits.facts_per_host={width + 1}: W_V of tiny takes {width} inputs"):
        produce(compose(ProduceConfig, "train", asked), fact_host)
    budget, fact_host.memory_budget = fact_host.memory_budget, 100
    try:
        with pytest.raises(
            ValueError, match="edits.facts_per_host=2: one such host takes 0.0 GiB, swap.memory_budget is 0.0. Ask for fewer"
        ):
            produce(config("edits.facts_per_host=2", f"store={tmp_path / 'store'}"), fact_host)
    finally:
        fact_host.memory_budget = budget
    assert not list(tmp_path.iterdir())
