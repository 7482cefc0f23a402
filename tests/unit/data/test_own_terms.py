"""Every fact of a host with its own term of the host's edit, whatever order the store keeps them in.

Shape letters: N facts, R terms, D hidden width, F MLP width.
"""

import pytest
import torch

from data.keys.probe import lookup_keys
from data.own_terms import OwnTerms, own_terms
from data.produce.shards import produce
from data.store.fact_rows import one_fact_a_row
from data.store.joined import JoinedStores
from decoder.config.commands import ProduceConfig
from decoder.config.compose import compose

QUICK = ["experiment=smoke", "splits.train_relations=2", "splits.val_relations=1", "splits.ood_relations=1", "edits.steps=2"]


@pytest.fixture(scope="module")
def stores(fact_host, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")

    def made(editor, *settings):
        asked = [f"edits={editor}", *QUICK, *settings, f"store={folder / editor}{len(settings)}"]
        return produce(compose(ProduceConfig, "train", asked), fact_host)

    return {"memit": made("memit", "edits.facts_per_host=3"), "emmet": made("emmet", "edits.facts_per_host=3"), "alone": made("memit")}


@pytest.mark.parametrize("name", ["memit", "emmet"])
def test_a_facts_term_is_the_one_that_answers_to_its_subject(fact_host, stores, name):
    rows = one_fact_a_row(stores[name])
    own, table = own_terms(rows, fact_host), rows.table()
    assert isinstance(own, OwnTerms) and len(own) == len(rows) and own.fingerprint == rows.fingerprint
    prompts = list(zip(table["prompt"], table["subject"], strict=True))
    key_NF = lookup_keys(fact_host, own.layers[0], prompts)
    everything = torch.arange(len(rows))
    alone, together = own.edits(everything), rows.edits(everything)
    for n in range(len(rows)):
        # What is written for this subject is its own term's, and hardly anything is written for the others of the host.
        said_RD = (together.key_BRF[n] @ key_NF[n]).unsqueeze(1) * together.value_BRD[n]
        own_D = (alone.key_BF[n] @ key_NF[n]) * alone.value_BD[n]
        assert own_D.norm() == pytest.approx(float(said_RD.norm(dim=1).max()), rel=1e-4)
    for host in table["host"].unique():
        of_host = table.index[table["host"] == host].tolist()
        parts_DF = torch.einsum("nd,nf->df", alone.value_BD[of_host], alone.key_BF[of_host])
        assert torch.allclose(parts_DF, together[of_host[:1]].delta()[0], atol=1e-5), "each term is one fact's"


def test_rows_may_come_in_any_order(fact_host, stores):
    own = own_terms(one_fact_a_row(stores["memit"]), fact_host)
    everything = own.edits(torch.arange(len(own)))
    some = own.edits(torch.tensor([4, 0, 2]))
    assert torch.equal(some.key_BF, everything.key_BF[[4, 0, 2]]) and torch.equal(some.value_BD, everything.value_BD[[4, 0, 2]])


def test_stores_of_one_fact_a_host_are_as_they_are(fact_host, stores):
    assert own_terms(stores["alone"], fact_host) is stores["alone"]


def test_joined_stores_have_the_terms_of_each(fact_host, stores):
    parts = [one_fact_a_row(stores[name]) for name in ("memit", "emmet")]
    joined, alone = own_terms(JoinedStores(parts), fact_host), [own_terms(part, fact_host) for part in parts]
    last = torch.tensor([len(joined) - 1, 0])
    found = joined.edits(last)
    assert torch.equal(found.value_BD[0], alone[1].edits(torch.tensor([len(alone[1]) - 1])).value_BD[0])
    assert torch.equal(found.value_BD[1], alone[0].edits(torch.tensor([0])).value_BD[0])
    without = JoinedStores([stores["alone"]])
    assert own_terms(without, fact_host) is without
