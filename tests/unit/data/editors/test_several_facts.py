"""Several facts in one host: solved for together, or one after the other, against the slow way; and their rows in a store.

Shape letters: B hosts, N facts of one, D hidden width, F MLP width.
"""

import copy
from collections import Counter

import pytest
import torch
from closed_forms import key_of, make, moment, ridged
from rome_twin import CONTEXTS, LAYER, REQUESTS, TEXTS, plain_rome, relative, request
from tiny_hosts import POCKET, build_host

from data.editors.prefix_cache import Suffixes
from data.facts.splits import draw_splits, plan_edits
from data.facts.together import grouped, host_id
from data.keys.moments import keys_of
from data.produce.score import score
from data.produce.shards import produce
from data.store.fact_rows import one_fact_a_row
from decoder.config import TrainConfig
from decoder.config.commands import ProduceConfig
from decoder.config.compose import compose
from decoder.edit import LowRankEdit
from decoder.host import Host
from decoder.utils.errors import UserError

HOSTS = [REQUESTS[:3], REQUESTS[3:6]]


@pytest.fixture(scope="module")
def host():
    return build_host("llama")


@pytest.mark.parametrize("name", ["memit", "emmet", "alphaedit"])
def test_facts_are_solved_for_together(host, name):
    threshold = 1e-5 * float(torch.linalg.eigvalsh(moment(host))[-1])
    settings = {"memit": {"ridge": 0.1, "weight": 0.5}, "emmet": {"ridge": 0.1}, "alphaedit": {"threshold": threshold, "weight": 0.2}}
    editor = make(name, host, **settings[name])
    made = editor.edit_together(HOSTS)
    assert made.kept == [0, 1] and isinstance(made.edits, LowRankEdit) and made.edits.key_BRF.shape == (2, 3, 48)
    strength_BR = made.edits.value_BRD.norm(dim=2)
    assert (strength_BR[:, :-1] >= strength_BR[:, 1:]).all(), "strongest first"
    value_F, vector_FF = torch.linalg.eigh(moment(host))
    basis_FN = vector_FF[:, value_F < threshold]
    project_FF = basis_FN @ basis_FN.T
    for b, requests in enumerate(HOSTS):
        key_NF = torch.stack([key_of(host, one) for one in requests])
        delta_ND = editor.edit(requests).delta_BD.double()
        found_DF = made.edits.delta()[b].double()
        if name == "memit":
            assert relative(found_DF @ (0.5 * ridged(host, 0.1) + key_NF.T @ key_NF), delta_ND.T @ key_NF) < 1e-4
        elif name == "emmet":
            assert relative(key_NF @ found_DF.T, delta_ND) < 1e-4
        else:
            system_FF = key_NF.T @ key_NF @ project_FF + 0.2 * torch.eye(len(value_F), dtype=torch.float64)
            assert relative(found_DF @ system_FF, delta_ND.T @ key_NF @ project_FF) < 1e-4
            for text in TEXTS:
                key_TF = keys_of(host, LAYER, input_ids=torch.tensor([host.text_ids(text)]))
                assert (key_TF @ found_DF.float().T).norm() < 1e-5 * (key_TF @ host.weight_DF(LAYER).T).norm()


@pytest.mark.parametrize("build", ["llama", POCKET, "gpt2"])
def test_rome_plants_each_fact_on_what_those_before_have_left(build):
    host = build_host(build)
    cfg = make("rome", host).cfg
    # What an edit does to the words of a prompt changes what is searched for after it.
    hosts = [[request("Ada", "{} works as", "baker"), request("Ben of the north", "{} lives in", "Paris"), REQUESTS[2]], REQUESTS[3:6]]
    made = make("rome", host).edit_together(hosts)
    for b, requests in enumerate(hosts):
        twin = Host(copy.deepcopy(host.model), host.tokenizer, name=host.name, terminator=".")
        for one in requests:
            _, _, change_DF = plain_rome(twin, one, cfg, CONTEXTS)
            twin.weight_DF(LAYER).add_(change_DF)
        expected_DF = twin.weight_DF(LAYER) - host.weight_DF(LAYER)
        assert relative(made.edits.delta()[b], expected_DF) < 1e-3
        apart = make("rome", host).edit(requests).edits
        assert relative(apart.delta().sum(0), expected_DF) > 1e-3, "the order must count here"


def test_of_one_fact_it_is_the_edit_itself_and_batches_do_not_count(host):
    for name in ("rome", "r-rome", "memit"):
        single = make(name, host).edit(REQUESTS[:2]).edits
        together = make(name, host).edit_together([[one] for one in REQUESTS[:2]]).edits
        assert relative(together.delta(), single.delta()) < 1e-5
        whole, small = (make(name, host, batch_size=size).edit_together(HOSTS).edits for size in (64, 1))
        assert relative(small.delta(), whole.delta()) < 1e-3


def test_a_host_with_a_fact_that_cannot_be_planted_is_listed(host, monkeypatch):
    bad = [REQUESTS[0], request("Ada", "no place", "Rome", "bad")]
    made = make("rome", host).edit_together([bad, REQUESTS[:2]])
    assert made.kept == [1] and len(made.edits) == 1 and [name for name, _ in made.skipped] == [host_id(bad)]
    assert len(make("memit", host).edit_together([bad]).edits) == 0
    monkeypatch.setattr(Suffixes, "shortcut_holds", lambda self: False)
    with pytest.raises(ValueError, match="facts cannot follow each other. Use memit or emmet"):
        make("rome", host).edit_together(HOSTS)
    assert len(make("emmet", host).edit_together(HOSTS).edits) == 2


@pytest.mark.parametrize("name", ["rome", "memit"])
def test_a_host_with_one_subject_twice_is_listed(host, name):
    again = [REQUESTS[0], request(REQUESTS[0].fact.subject, "{} lives in", "Paris", "again")]
    made = make(name, host).edit_together([again, REQUESTS[:2], [REQUESTS[0]] * 2])
    assert made.kept == [1] and made.skipped[1][1] == "one host has the subject 'Ada' twice: e0 and e0. Leave one out"
    assert made.skipped[:1] == [(host_id(again), "one host has the subject 'Ada' twice: e0 and again. Leave one out")]


def test_hosts_have_facts_of_one_split_and_no_subject_twice(pocket_facts):
    cfg = TrainConfig()
    plan = draw_splits(pocket_facts, cfg.splits)
    requests = plan_edits(pocket_facts, plan, cfg.splits, 0)
    hosts = grouped(requests, plan, 16, seed=0)
    for together in hosts:
        assert len(together) == 16 == len({one.fact.subject for one in together})
        assert len({plan.split_of(one.fact.relation, one.fact.subject, one.object) for one in together}) == 1
        assert len({one.fact.relation for one in together}) > 1
    ids = Counter(one.edit_id for together in hosts for one in together)
    assert max(ids.values()) == 1 and len(ids) > 0.9 * len(requests)
    assert hosts == grouped(requests, plan, 16, seed=0) != grouped(requests, plan, 16, seed=1)
    assert [one for (one,) in grouped(requests, plan, 1, seed=0)] == requests
    assert len({host_id(together) for together in hosts}) == len(hosts) and host_id(requests[:1]) == requests[0].edit_id


def test_a_store_row_is_an_edited_host_with_its_facts(fact_host, pocket_facts, tmp_path):
    quick = ["splits.train_relations=2", "splits.val_relations=1", "splits.ood_relations=1", "edits.shard_size=3", "edits.steps=2"]
    quick.append("experiment=smoke")
    cfg = compose(ProduceConfig, "train", ["edits=memit", "edits.facts_per_host=2", *quick, f"store={tmp_path / 'store'}"])
    store = produce(cfg, fact_host)
    assert (store.manifest["facts_per_host"], store.manifest["rank"], store.manifest["counts"]["rows"]) == (2, 2, len(store))
    edits, table = store.edits(torch.arange(len(store))), store.table()
    assert isinstance(edits, LowRankEdit) and edits.key_BRF.shape[:2] == (len(store), 2)
    for row in range(len(store)):
        facts = store.facts(row)
        assert len(facts) == 2 and facts[0]["subject"] == table["subject"][row] != facts[1]["subject"]
        assert [fact_host.object_ids(fact["object"]) for fact in facts] == [fact["object_ids"] for fact in facts]
    found = {fact.fact_id: fact for fact in pocket_facts.facts}
    for row in (0, len(store) - 1):
        alone = [score(fact_host, [request_of(found, fact)], {1: edits[row]}, pocket_facts) for fact in store.facts(row)]
        for name in ("efficacy_probability", "paraphrase_probability", "ps"):
            assert table[name][row] == pytest.approx((alone[0][name][0] + alone[1][name][0]) / 2, rel=1e-3)
        assert [fact["paraphrase"] for fact in store.facts(row)] == pytest.approx([one["paraphrase"][0] for one in alone])
        assert table["delta_norm_ratio"][row] == pytest.approx(alone[0]["delta_norm_ratio"][0], rel=1e-4)
    assert produce(cfg, fact_host).fingerprint == store.fingerprint
    facts = one_fact_a_row(store)
    planted = [fact for row in range(len(store)) for fact in store.facts(row)]
    assert len(facts) == 2 * len(store) == len(facts.edits(torch.arange(len(facts))))
    assert torch.equal(facts.edits(torch.tensor([3, 0])).key_BRF, edits.key_BRF[[1, 0]])
    assert facts.object_ids == [fact["object_ids"] for fact in planted]
    assert facts.table()["edit_id"].tolist() == [fact["edit_id"] for fact in planted]
    assert facts.table()["success"].tolist() == [fact["efficacy"] == 1 for fact in planted]
    assert list(facts.table()) == [*table, "host", "planted"] and facts.fingerprint == store.fingerprint
    assert facts.table()["host"].tolist() == [row for row in range(len(store)) for _ in range(2)]
    assert facts.table()["planted"].tolist() == [[one["object"] for one in store.facts(row)] for row in range(len(store)) for _ in range(2)]
    facts._facts[1]["efficacy"] = 1.0
    assert facts.table()["success"].tolist()[:2] == [planted[0]["efficacy"] == 1, True], "of one fact, whatever the others do"
    alone = produce(compose(ProduceConfig, "train", ["edits=emmet", *quick, f"store={tmp_path / 'one'}"]), fact_host)
    assert one_fact_a_row(alone) is alone
    assert [fact["edit_id"] for fact in alone.facts(1)] == [alone.table()["edit_id"][1]] and "facts_per_host" not in alone.manifest


def request_of(facts, planted):
    return type(REQUESTS[0])(planted["edit_id"], facts[planted["fact_id"]], planted["object"])


def test_more_facts_than_there_are_and_editors_of_one_fact_are_one_line(fact_host, tmp_path):
    with pytest.raises(UserError, match="edits.facts_per_host=2: ft plants one fact a host; several: rome, r-rome"):
        compose(ProduceConfig, "train", ["edits=ft", "edits.facts_per_host=2"])
    cfg = compose(ProduceConfig, "train", ["edits.facts_per_host=5000", f"store={tmp_path / 'store'}"])
    with pytest.raises(ValueError, match="edits.facts_per_host=5000: no split has so many facts of different subjects. Ask for fewer"):
        produce(cfg, fact_host)
    assert not list(tmp_path.iterdir())
