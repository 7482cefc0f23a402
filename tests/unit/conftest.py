"""What tests share: one store of drawn edits a module, for stores, loaders and streams; runs with decoders, for collections."""

from pathlib import Path

import pytest
from drawn_stores import DrawnEdits, config, draw_layers, drawn_scores
from exported_runs import write_run

import data.keys.text
import data.produce.plan
import data.produce.shards
from data.datamodule import EditDataModule
from data.facts.fact import FactSet
from data.facts.load import load_facts
from data.pocket.tokenizer import build_tokenizer
from decoder.config import FactsConfig
from decoder.host import Host


@pytest.fixture(scope="module")
def drawn_edits():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data.produce.plan, "load_editor", lambda name: DrawnEdits)
        patch.setattr(data.produce.shards, "score_made", drawn_scores)
        patch.setattr(data.keys.text, "key_text", lambda facts, seed, sentences: [])
        yield


@pytest.fixture()
def alive():
    DrawnEdits.asked, DrawnEdits.killed_at = [], 10**9


@pytest.fixture(scope="session")
def pocket_facts() -> FactSet:
    return load_facts(FactsConfig())


@pytest.fixture(scope="module")
def fact_host(new_host, pocket_facts) -> Host:
    """A tiny random host whose tokenizer knows the pocket's facts."""
    tokenizer = build_tokenizer(pocket_facts, 600)
    return Host(new_host("qwen3 window", vocab_size=len(tokenizer)).model, tokenizer, name="tiny", terminator=".")


@pytest.fixture(scope="module")
def store_path(drawn_edits, fact_host, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores") / "store"
    EditDataModule(config(folder), fact_host).prepare_data()
    return folder


@pytest.fixture(scope="module")
def layers_store(fact_host, pocket_facts, tmp_path_factory):
    """Some hosts that are edited in two layers, two terms in each."""
    return draw_layers(fact_host, pocket_facts, [0, 1], 10, tmp_path_factory.mktemp("stores") / "layers")


@pytest.fixture()
def opened(store_path, fact_host):
    """The edits of the store, with other data settings or another store if the test likes."""

    def make(store=store_path, **data_settings) -> EditDataModule:
        edits = EditDataModule(config(store, **data_settings), fact_host)
        edits.prepare_data()
        edits.setup()
        return edits

    return make


@pytest.fixture
def runs(host_of, tmp_path) -> Path:
    """Two hosts; on one of them two edited layers. The best run of each is that of seed 1."""
    top = tmp_path / "runs"
    for name, edited, trained, seed, validation in (
        ("llama", 0, 0, 0, 0.5),
        ("llama", 0, 0, 1, 0.7),
        ("llama", 0, 1, 0, 0.6),
        ("llama", 1, 1, 1, 0.4),
        ("gpt2", 1, 0, 1, 0.3),
    ):
        write_run(top, host_of(name), edited, trained, seed, validation)
    return top
