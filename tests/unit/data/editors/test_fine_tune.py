"""Fine-tuning of one matrix: against Adam on the host's own weights, alone and in batches, within its box, and in the store.

Shape letters: B edits, N rows, D hidden width, F MLP width.
"""

import copy
from dataclasses import replace

import pytest
import torch
from rome_twin import LAYER, REQUESTS, relative, request
from tiny_hosts import POCKET, build_host

from data.batches import EditRows
from data.editors import load_editor
from data.editors.fine_tune import FineTune, factors
from data.editors.prefix_cache import Suffixes
from data.produce.shards import produce
from data.store.parquet import write_parquet
from decoder.config import TrainConfig
from decoder.config.compose import compose
from decoder.config.editors import EDITORS
from decoder.dense import DenseEdit, applied
from decoder.host import Host


def make(host, name: str = "ft", **settings) -> FineTune:
    cfg = replace(EDITORS[name](editor=name, layer=LAYER, steps=6, lr=0.01, batch_size=4, stop_loss=0.0), **settings)
    return load_editor(name).prepare(host, cfg, [], {})


def plain(host, one, cfg) -> tuple[torch.Tensor, int]:
    """torch's Adam on the weight itself, the whole host at every step: ΔW (D, F) and the number of updates."""
    twin = Host(copy.deepcopy(host.model), host.tokenizer, name=host.name, terminator=".")
    weight, base = twin.down_proj(cfg.layer).weight.requires_grad_(), twin.weight_DF(cfg.layer).clone()
    ids, _ = host.prompt_ids(one.fact.prompt, one.fact.subject)
    targets = [*host.object_ids(one.object), host.terminator_id]
    stored = weight.detach().clone()
    adam = torch.optim.Adam([weight], lr=cfg.lr)
    for step in range(cfg.steps):
        if cfg.loss == "last":
            loss = -twin.model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)[targets].mean()
        else:
            whole = torch.tensor(ids + targets)
            first = 0 if cfg.loss == "sentence" else len(ids) - 1
            logprobs = twin.model(whole[None, :-1]).logits[0].log_softmax(-1)
            loss = -logprobs.gather(1, whole[1:, None])[first:].mean()
        if loss < cfg.stop_loss or step == cfg.steps - 1:
            break
        adam.zero_grad()
        loss.backward()
        adam.step()
        if hasattr(cfg, "box"):
            with torch.no_grad():
                weight.copy_(weight.clamp(stored - cfg.box, stored + cfg.box))
    return (twin.weight_DF(cfg.layer) - base).detach(), step


def updates(host, result) -> torch.Tensor:
    """ΔW (B, D, F) of what an editor made."""
    whole = applied(result.edits, host.weight_DF(LAYER))
    for place, weight_DF in result.matrices.items():
        whole.weight_BDF[place] = weight_DF
    return whole.weight_BDF - host.weight_DF(LAYER)


@pytest.mark.parametrize(
    ("build", "name", "settings"),
    [
        ("llama", "ft", {}),
        ("gpt2", "ft-m", {}),
        (POCKET, "ft", {"loss": "last"}),
        ("llama", "ft-l", {"box": 0.015}),
        ("gemma2", "ft-m", {}),
    ],
)
def test_updates_are_those_of_adam_on_the_weight(build, name, settings):
    host = build_host(build)
    editor = make(host, name, **settings)
    before = {key: tensor.clone() for key, tensor in host.model.state_dict().items()}
    found_BDF = updates(host, editor.edit(REQUESTS))
    for b, one in enumerate(REQUESTS):
        expected_DF, _ = plain(host, one, editor.cfg)
        # Adam moves an entry by the rate whatever the size of its gradient: what is rounding on one side may not be on the other.
        wrong = (found_BDF[b] - expected_DF).abs() > 1e-3 * editor.cfg.lr + 1e-6
        assert wrong.float().mean() < 0.01 and expected_DF.abs().max() > editor.cfg.lr
    assert all(torch.equal(tensor, before[key]) for key, tensor in host.model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in host.model.modules())


def test_batched_is_one_at_a_time_also_where_edits_stop_early_and_by_the_long_way(monkeypatch):
    host = build_host("llama")
    reached = make(host, "ft-m").solved(make(host, "ft-m").jobs(REQUESTS)[0], None)[2]
    settings = {"stop_loss": float(reached.median()) + 1e-3, "steps": 12}
    together, alone = (make(host, "ft-m", batch_size=size, **settings) for size in (7, 1))
    jobs = together.jobs(REQUESTS)[0]
    delta_BDF, steps_B, _ = together.solved(list(jobs), None)
    one_by_one, steps_alone_B, _ = alone.solved(list(jobs), None)
    assert len(set(steps_B.tolist())) > 1 and steps_B.tolist() == steps_alone_B.tolist()
    assert relative(delta_BDF, one_by_one) < 1e-3
    assert [plain(host, REQUESTS[job.index], together.cfg)[1] for job in sorted(jobs, key=lambda job: job.size)] == steps_B.tolist()
    monkeypatch.setattr(Suffixes, "shortcut_holds", lambda self: False)
    assert relative(make(host, "ft-m", batch_size=7, **settings).solved(list(jobs), None)[0], delta_BDF) < 1e-3


@pytest.mark.parametrize("box", [0.015, 1e-4])
def test_no_entry_ever_leaves_the_box(box):
    host = build_host(POCKET)
    editor = make(host, "ft-l", box=box, loss="target")
    delta_BDF = editor.solved(editor.jobs(REQUESTS)[0], None)[0]
    assert delta_BDF.abs().max() == torch.tensor(box), "some must touch it"
    free = make(host, "ft-m").solved(editor.jobs(REQUESTS)[0], None)[0]
    assert free.abs().max() > box


def test_an_update_of_few_terms_is_kept_as_factors():
    host = build_host("llama")
    last = make(host, "ft", layer=2, loss="last", lr=1e-3)
    result = last.edit([request("Ada", "{} works as", "baker"), request("Ben", "{} lives in the city of", "Paris")])
    # In the last block only the position that is read has a gradient, so Adam's steps are outer products.
    assert result.matrices == {} and (result.edits.key_BRF.norm(dim=2) > 0).sum(1).max() <= 8
    delta_BDF = last.solved(last.jobs([request("Ada", "{} works as", "baker")])[0], None)[0]
    assert relative(result.edits.delta()[0], delta_BDF[0]) < 1e-3
    generator = torch.Generator().manual_seed(0)
    key_RF, value_RD = torch.randn(3, 48, generator=generator), torch.randn(3, 32, generator=generator)
    found_key, found_value, whole = factors(value_RD.T @ key_RF, rank=3)
    assert not whole and relative(found_value.T @ found_key, value_RD.T @ key_RF) < 1e-5
    found_key, _, whole = factors(value_RD.T @ key_RF, rank=2)
    assert whole and len(found_key) == 1


def test_bad_requests_are_listed_and_memory_bounds_the_batch():
    host = build_host(POCKET)
    result = make(host).edit([request("Ada", "no place", "Rome", "bad"), REQUESTS[0]])
    assert result.kept == [1] and len(result.edits) == 1 and [name for name, _ in result.skipped] == ["bad"]
    host.memory_budget = 2 * 5 * 4 * host.weight_DF(LAYER).numel()
    assert make(host, batch_size=64).batch_size == 2
    nothing = make(host).edit([request("Ada", "no place", "Rome")])
    assert nothing.kept == [] and nothing.edits.delta().shape == (0, 32, 48)


def test_a_store_of_them_is_made_in_shards_and_read_as_matrices(fact_host, tmp_path):
    argv = ["edits=ft-l", "experiment=smoke", "edits.steps=2", "edits.lr=0.01", "edits.box=0.005", f"store={tmp_path / 'store'}"]
    quick = ["splits.train_relations=2", "splits.val_relations=1", "splits.ood_relations=1", "edits.shard_size=8"]
    cfg = compose(TrainConfig, "train", [*argv, *quick])
    store = produce(cfg, fact_host)
    assert store.is_dense and store.manifest["rank"] == 8 and store.manifest["editor"]["settings"]["box"] == 0.005
    assert len(list(store.path.glob("matrices-*.safetensors"))) == -(-store.manifest["requests"]["count"] // 8) > 1
    weight_DF = fact_host.weight_DF(1)
    rows = torch.arange(len(store))
    whole = store.whole_edits(rows, weight_DF)
    assert ((whole.weight_BDF - weight_DF).abs() <= 0.005 + 1e-6).all()
    batch = EditRows(store, [0, 9], fact_host.terminator_id, weight_DF).__getitems__([1])
    assert isinstance(batch.edits, DenseEdit) and torch.equal(batch.edits.weight_BDF[0], whole.weight_BDF[9])
    norm_B = whole.delta_norm(weight_DF) / weight_DF.norm()
    torch.testing.assert_close(torch.tensor(store.table()["delta_norm_ratio"].to_numpy()), norm_B)
    # The strongest term is there for readers that look at one direction.
    factors_B = store.edits(rows)
    assert (factors_B.delta_norm(weight_DF) <= whole.delta_norm(weight_DF) * (1 + 1e-5)).all() and factors_B.delta_norm(weight_DF).min() > 0
    assert produce(cfg, fact_host).fingerprint == store.fingerprint
    with pytest.raises(ValueError, match="holds whole matrices, several facts a host, or edits of other tools"):
        write_parquet(store, tmp_path / "parquet")
