"""Facts planted one after the other: the chain against edits made by hand, and what it refuses.

Shape letters: N facts before and the edit's own, F MLP width.
"""

import pytest
import torch
from closed_forms import key_of, make, moment
from rome_twin import LAYER, REQUESTS, relative
from tiny_hosts import build_host

import data.sequential.chain as chains
from data.facts.splits import draw_splits, plan_edits
from data.produce.perplexity import MOST_NLL, neutral_texts, perplexity
from data.produce.score import score
from data.produce.shards import ShardMaker, produce
from data.sequential.chain import chain, chosen
from decoder.config.commands import ProduceConfig, SequentialConfig, TraceConfig
from decoder.config.compose import compose
from decoder.dense import DenseEdit
from decoder.edit import LayerEdits, RankOneEdit
from decoder.utils.errors import UserError

QUICK = ["edits.steps=4", "edits.key_tokens=300"]
TEXTS = ["Ada lives in Rome", "the small red city", "Ben of the north works as a baker ."]


def sequential(*words):
    return compose(SequentialConfig, "train", [*words, *QUICK])


def requests_of(cfg, facts, count):
    return chosen(plan_edits(facts, draw_splits(facts, cfg.splits), cfg.splits, cfg.edits.seed), count, cfg.seed)


@pytest.mark.parametrize("name", ["rome", "alphaedit", "ft"])
def test_each_fact_is_planted_on_what_those_before_left(fact_host, pocket_facts, name):
    more = ["edits.threshold=1"] if name == "alphaedit" else []
    cfg = sequential(f"edits={name}", *more)
    requests = requests_of(cfg, pocket_facts, 3)
    before = fact_host.fingerprint
    del fact_host.__dict__["fingerprint"]
    found = [line for line, _ in chain(cfg, fact_host, pocket_facts, requests, TEXTS, [1, 3])]
    assert fact_host.fingerprint == before and [line["facts"] for line in found] == [1, 3]
    editor = chains.prepare_editor(cfg, fact_host, pocket_facts)
    weight_DF, clean_DF = fact_host.weight_DF(1), fact_host.weight_DF(1).clone()
    try:
        for request in requests:
            made = editor.edit([request], lambda count: None)
            if name == "alphaedit":
                editor.keep([request])
            if made.matrices:
                weight_DF.copy_(made.matrices[0])
            else:
                weight_DF += made.edits.delta()[0]
        edited_DF = weight_DF.clone()
    finally:
        weight_DF.copy_(clean_DF)
    assert found[1]["norm_ratio"] == pytest.approx(float((edited_DF - clean_DF).norm() / clean_DF.norm()), rel=1e-5)
    assert found[1]["norm_ratio"] != pytest.approx(found[0]["norm_ratio"], rel=1e-2) and found[0]["passed_over"] == 0
    columns = score(fact_host, requests, {1: DenseEdit(edited_DF[None])}, pocket_facts, owners=[0, 0, 0])
    assert (found[1]["first"], found[1]["last"]) == (columns["efficacy"][0], columns["efficacy"][2])
    assert found[1]["efficacy"] == pytest.approx(sum(columns["efficacy"]) / 3) and found[1]["asked"] == 3
    weight_DF.copy_(edited_DF)
    try:
        assert found[1]["perplexity"] == pytest.approx(float(perplexity(fact_host, TEXTS)), rel=1e-4)
    finally:
        weight_DF.copy_(clean_DF)
    assert found[1]["clean_perplexity"] == pytest.approx(float(perplexity(fact_host, TEXTS)), rel=1e-6)


@pytest.mark.parametrize("name", ["memit", "alphaedit"])
def test_several_facts_at_a_time_are_solved_for_together(fact_host, pocket_facts, name):
    cfg = sequential(f"edits={name}", "edits.facts_per_host=2", "at=[2,4]", *(["edits.threshold=1"] if name == "alphaedit" else []))
    requests = requests_of(cfg, pocket_facts, 4)
    (_, early), (line, late) = chain(cfg, fact_host, pocket_facts, requests, TEXTS, cfg.at)
    editor = chains.prepare_editor(cfg, fact_host, pocket_facts)
    weight_DF, clean_DF = fact_host.weight_DF(1), fact_host.weight_DF(1).clone()
    try:
        for batch, reached in ((requests[:2], early), (requests[2:], late)):
            weight_DF += editor.edit_together([batch]).edits.delta()[0]
            assert relative(weight_DF, reached.weight_DF) < 1e-6
            if name == "alphaedit":
                editor.keep(batch)
                assert torch.equal(editor.kept[1], reached.kept_NF)
    finally:
        weight_DF.copy_(clean_DF)
    assert (line["facts"], line["passed_over"], line["asked"]) == (4, 0, 4)


def test_no_fact_of_the_chain_counts_as_another_subject_that_it_harms(fact_host, pocket_facts, monkeypatch):
    told = []

    def watched(host, requests, *given, others_edited, **more):
        told.append(({request.fact.subject for request in requests}, others_edited))
        return score(host, requests, *given, others_edited=others_edited, **more)

    monkeypatch.setattr(chains, "score", watched)
    monkeypatch.setattr(chains, "LOOKED_AT", 1)
    cfg = sequential("edits=rome")
    requests = requests_of(cfg, pocket_facts, 6)
    list(chain(cfg, fact_host, pocket_facts, requests, TEXTS, [6]))
    ((asked, edited),) = told
    assert asked < edited == {request.fact.subject for request in requests}


def test_alphaedit_leaves_the_keys_of_facts_before_as_they_are():
    host = build_host("llama")
    threshold = 1e-5 * float(torch.linalg.eigvalsh(moment(host))[-1])
    editor = make("alphaedit", host, threshold=threshold, weight=0.2)
    delta_D = editor.edit(REQUESTS[2:3]).delta_BD[0].double()
    for request in REQUESTS[:2]:
        editor.keep([request])
    made = editor.edit(REQUESTS[2:3])
    key_NF = torch.stack([key_of(host, REQUESTS[n]) for n in (2, 0, 1)])
    value_F, vector_FF = torch.linalg.eigh(moment(host))
    basis_FN = vector_FF[:, value_F < threshold]
    project_FF = basis_FN @ basis_FN.T
    system_FF = key_NF.T @ key_NF @ project_FF + 0.2 * torch.eye(len(value_F), dtype=torch.float64)
    found_DF = made.edits.delta()[0].double()
    assert relative(found_DF @ system_FF, torch.outer(delta_D, key_NF[0]) @ project_FF) < 1e-4
    without = make("alphaedit", host, threshold=threshold, weight=0.2).edit(REQUESTS[2:3]).edits.delta()[0].double()
    kept = (key_NF[1:] @ found_DF.T).norm() / (key_NF[1:] @ without.T).norm()
    assert kept < 0.5, "what is written disturbs them less"
    assert relative(made.edits.key_BF.norm(dim=1), torch.ones(1)) < 1e-5


def test_perplexity_is_that_of_every_sentence_alone():
    host = build_host("gpt2")
    edits = RankOneEdit(
        torch.randn(2, 48, generator=torch.Generator().manual_seed(0)), torch.randn(2, 32, generator=torch.Generator().manual_seed(1))
    )
    weight_DF, clean_DF = host.weight_DF(LAYER), host.weight_DF(LAYER).clone()

    def plain() -> float:
        total, tokens = 0.0, 0
        for text in TEXTS:
            ids = torch.tensor(host.text_ids(text))
            logprobs_TV = host.model(ids[None]).logits[0].log_softmax(-1)
            total -= sum(float(logprobs_TV[t, ids[t + 1]]) for t in range(len(ids) - 1))
            tokens += len(ids) - 1
        return float(torch.tensor(total / tokens).exp())

    with torch.no_grad():
        assert float(perplexity(host, TEXTS)) == pytest.approx(plain(), rel=1e-5)
        found_B = perplexity(host, TEXTS, LayerEdits({LAYER: edits}))
        for b in range(2):
            weight_DF += torch.outer(edits.value_BD[b], edits.key_BF[b])
            assert float(found_B[b]) == pytest.approx(plain(), rel=1e-4)
            weight_DF.copy_(clean_DF)
        assert not torch.isclose(found_B[0], found_B[1], rtol=1e-3)
        broken = DenseEdit(torch.full_like(clean_DF, torch.nan)[None])
        assert float(perplexity(host, TEXTS, LayerEdits({LAYER: broken}))) == pytest.approx(torch.tensor(MOST_NLL).double().exp().item())


@pytest.mark.parametrize("name", ["memit", "ft"])
def test_a_store_flags_what_breaks_the_host_where_it_is_asked_to(fact_host, tmp_path, name):
    few = ["splits.train_relations=1", "splits.val_relations=1", "splits.ood_relations=1", "experiment=smoke", f"edits={name}", *QUICK]
    plain = produce(compose(ProduceConfig, "train", [*few, f"store={tmp_path / 'plain'}"]), fact_host)
    assert "broken" not in plain.table() and "broken_from" not in plain.manifest
    cfg = compose(ProduceConfig, "train", [*few, f"store={tmp_path / 'store'}", "edits.broken_from=1"])
    store = produce(cfg, fact_host)
    table, texts = store.table(), ShardMaker(cfg, fact_host)._texts
    clean = float(perplexity(fact_host, texts))
    assert store.manifest["broken_from"] == 1 and len(table) == len(plain.table()) > 3
    edits = store.whole_edits(torch.arange(len(store)), fact_host.weight_DF(1))
    for row in (0, len(table) - 1):
        assert table["perplexity"][row] == pytest.approx(float(perplexity(fact_host, texts, LayerEdits({1: edits[row]}))), rel=1e-4)
    assert table["broken"].tolist() == (table["perplexity"] > clean).tolist() and table["perplexity"].nunique() > 1
    assert produce(cfg, fact_host).fingerprint == store.fingerprint


def test_neutral_text_names_nobody_who_is_edited():
    host = build_host("gpt2")
    assert neutral_texts(host, [TEXTS[0], *TEXTS], ["ADA"], 4) == TEXTS[1:2]
    with pytest.raises(ValueError, match="4 tokens that name no edited subject, 100 were asked for"):
        neutral_texts(host, TEXTS, ["Ada", "Ben"], 100)


def test_a_chain_has_every_subject_once_and_begins_alike_whatever_its_length(pocket_facts):
    cfg = sequential()
    ten, four = requests_of(cfg, pocket_facts, 10), requests_of(cfg, pocket_facts, 4)
    assert len({request.fact.subject for request in ten}) == 10 and ten[:4] == four
    assert requests_of(sequential("seed=1"), pocket_facts, 4) != four
    with pytest.raises(ValueError, match="at=5000: the edits that are planned are about"):
        requests_of(cfg, pocket_facts, 5000)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("at=[]", "ascending"),
        ("at=[2,1]", "ascending"),
        ("at=[0,1]", "from 1 up"),
        ("edits.facts_per_host=2 at=[2,3]", "edits.facts_per_host=2 plants 2 facts at a time, 3 is no multiple of it"),
        ("edits=ft edits.facts_per_host=2 at=[2]", "ft plants one fact a host"),
        ("launcher=slurm", "chains of facts run here"),
        ("edits=memit edits.layer=[0,1]", "Give one"),
    ],
)
def test_what_no_chain_can_mean_is_one_line(word, message):
    with pytest.raises(UserError, match=message):
        sequential(*word.split())


@pytest.mark.parametrize(("kind", "page"), [(SequentialConfig, "sequential"), (TraceConfig, "causal_trace")])
def test_layers_that_nobody_typed_are_told_with_the_file_they_come_from(kind, page):
    """The settings that are published for a host spread an edit; the user asked for no layer."""
    told = (
        r"edits.layer=\[13,14,15,16,17\], which configs/edits/memit.yaml has for gpt2-xl: .*Give one, as edits.layer=17$",
        r"^edits.layer=\[3,4\]: .*Give one$",
    )
    for words, message in zip(([], ["edits.layer=[3,4]"]), told, strict=True):
        with pytest.raises(UserError, match=message):
            compose(kind, "train", ["edits=memit", "host=gpt2-xl", *words], page=page)
    assert compose(kind, "train", ["edits=memit", "host=gpt2-xl", "edits.layer=17"], page=page).edits.layers == [17]
