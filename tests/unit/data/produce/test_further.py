"""Fluency, portability and efficiency: closed forms, and one text or question at a time with the edit written into the weights."""

import math
import time
from dataclasses import replace

import pytest
import torch
from drawn_stores import config
from tiny_hosts import POCKET, build_host

from data.editors import Edited
from data.facts.fact import Consequence, EditRequest, Fact
from data.produce.cost import Cost, measured
from data.produce.fluency import entropy, ngram_entropy, written
from data.produce.further import fluency, further_scores, portability
from data.produce.shards import produce
from data.store.store import FURTHER_COLUMNS, EditStore
from decoder.edit import LayerEdits, RankOneEdit
from decoder.host import Host
from decoder.utils.errors import UserError

LAYER = 1
FACTS = [
    Fact("f0", "Ada", "P0", "r", "k", "{} works as", ("the city of {} is",), "baker", openings=("Ada is", "Ada is", "small Ada lives in")),
    Fact("f1", "Ben of the north", "P0", "r", "k", "{} works as", ("{} lives in",), "red"),
]
REQUESTS = [EditRequest(f"e{n}", fact, "singer") for n, fact in enumerate(FACTS)]


def planted(edits: RankOneEdit) -> LayerEdits:
    return LayerEdits({LAYER: edits})


def test_entropy_of_a_constant_text_is_none_and_of_unlike_pairs_the_logarithm():
    assert entropy("Paris " * 50) == 0 and ngram_entropy([], 2) == ngram_entropy(["a"], 2) == 0
    words = [str(n) for n in range(17)]
    assert ngram_entropy(words, 2) == pytest.approx(math.log2(16)) and ngram_entropy(words, 3) == pytest.approx(math.log2(15))
    assert entropy(" ".join(words)) == pytest.approx(math.log2(16) / 3 + 2 * math.log2(15) / 3)
    # "a b", "b a", "a b": two thirds and one third
    assert ngram_entropy(list("abab"), 2) == pytest.approx(-(2 / 3) * math.log2(2 / 3) - (1 / 3) * math.log2(1 / 3))
    assert entropy("Ada's, Ben's.") == entropy("Ada ' s , Ben ' s .") > 0


@pytest.mark.parametrize("name", ["gpt2", "llama", "opt", "bloom", POCKET, "gemma2"])
def test_texts_equal_sampling_without_a_cache_by_hosts_with_the_edit_in_them(name, random_edits, in_place):
    host = build_host(name)
    edits, owners = random_edits(host, 2), [1, 0, 1]
    prompts = [host.text_ids(text) for text in ("Ada is", "Ben works as a", "Eve is")]
    texts = written(host, prompts, ["a", "b", "c"], (planted(edits), owners))
    for prompt, seed, owner, text in zip(prompts, "abc", owners, texts, strict=True):
        twin, ids, generator = in_place(host, edits, owner, LAYER).model, list(prompt), __import__("random").Random(seed)
        limit = min(100, host.longest_input or 100)
        while len(ids) < limit:
            with torch.no_grad():
                best = twin(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].topk(5)
            chances = best.values.softmax(0).cumsum(0).tolist()
            drawn = generator.random()
            ids.append(int(best.indices[next(k for k, chance in enumerate(chances) if chance >= drawn)]))
        assert text == host.tokenizer.decode(ids, skip_special_tokens=True)
    assert written(host, prompts[:1], ["a"], (planted(edits), [1])) == texts[:1]
    assert written(host, prompts[:1], ["z"], (planted(edits), [1])) != texts[:1] and written(host, prompts[:1], ["a"]) != texts[:1]


def test_fluency_is_the_mean_over_the_openings_or_else_the_sentences(random_edits):
    host = build_host(POCKET)
    edits = random_edits(host, 2)
    found = fluency(host, REQUESTS, (planted(edits), [0, 1]))
    for b, texts in enumerate((FACTS[0].openings, ("Ben of the north works as", "Ben of the north lives in"))):
        seeds = [f"fluency e{b} {k}" for k in range(len(texts))]
        alone = [written(host, [host.text_ids(text)], [seed], (planted(edits), [b]))[0] for text, seed in zip(texts, seeds, strict=True)]
        assert found[b] == pytest.approx(sum(map(entropy, alone)) / len(texts))
    assert fluency(host, REQUESTS) != found
    long = replace(FACTS[0], openings=("red " * 100,))
    assert math.isnan(fluency(host, [replace(REQUESTS[0], fact=long)])[0])


def test_portability_counts_the_best_answer_of_each_consequence(random_edits, in_place):
    host = build_host("llama", terminator=None)
    edits = random_edits(host, 2)
    twin = in_place(host, edits, 1, LAYER)

    def likelihood(prompt, answer):
        ids, target = host.text_ids(prompt), host.object_ids(answer)
        logprobs = twin.model(torch.tensor([ids + target])).logits[0].log_softmax(-1)[len(ids) - 1 : -1]
        hits = (logprobs.argmax(-1) == torch.tensor(target)).tolist()
        return float(logprobs[range(len(target)), target].sum().exp()), sum(hits) / len(hits)

    said = host.tokenizer.decode(twin.model(torch.tensor([host.text_ids("Ada is a")])).logits[0, -1].argmax())
    other = next(word for word in ("red", "blue") if word != said)
    consequences = (
        Consequence("Reasoning", ("Ada is a",), (other, said)),
        Consequence("Reasoning", ("Ben lives in",), ("dark green Paris",)),
        Consequence("alias", ("Eve is", "Ada is a"), (f"{said} {other}",)),
        Consequence("too long", ("red " * 70,), ("Paris",)),
    )
    request = EditRequest("e", replace(FACTS[0], consequences=consequences), "singer")
    found = portability(host, [REQUESTS[1], request], (planted(edits), [0, 1]))
    assert all(math.isnan(values[0]) for values in found.values())
    each = [
        max(likelihood("Ada is a", other), likelihood("Ada is a", said)),
        likelihood("Ben lives in", "dark green Paris"),
    ]
    aliases = [likelihood(prompt, f"{said} {other}") for prompt in ("Eve is", "Ada is a")]
    for place, name in enumerate(("portability_probability", "portability_tokens")):
        expected = ((each[0][place] + each[1][place]) / 2 + max(one[place] for one in aliases)) / 2
        assert found[name][1] == pytest.approx(expected, rel=1e-3)
    exact = [1.0, each[1][1] == 1, any(one[1] == 1 for one in aliases)]
    assert found["portability"][1] == ((exact[0] + exact[1]) / 2 + exact[2]) / 2


def test_several_facts_and_whole_matrices(random_edits):
    host = build_host(POCKET)
    edits, cost = random_edits(host, 2), Cost(seconds=6.0, peak_memory=1.5)
    alone = fluency(host, REQUESTS, (planted(edits), [0, 0]))
    together = further_scores(host, [LAYER], [REQUESTS], Edited([0], edits[0], []), ["fluency", "efficiency"], cost)
    assert together == {"fluency": [pytest.approx(sum(alone) / 2)], "seconds": [6.0], "peak_memory": [1.5]}
    whole = {1: host.weight_DF(LAYER) + torch.outer(edits.value_BD[1], edits.key_BF[1])}
    blank = RankOneEdit(edits.key_BF, edits.value_BD * torch.tensor([[1.0], [0.0]]))
    made = Edited([0, 1], blank, [("e2", "cannot")], matrices=whole)
    found = further_scores(host, [LAYER], [[one] for one in REQUESTS], made, ["fluency", "efficiency"], cost)
    assert found["fluency"] == pytest.approx(fluency(host, REQUESTS, (planted(edits), [0, 1]))) and found["seconds"] == [2.0, 2.0]


def test_a_block_is_measured():
    with measured(torch.device("cpu")) as cost:
        held = torch.ones(64 * 2**20)
        time.sleep(0.05)
    with measured(torch.device("cpu")) as other:
        pass
    assert 0.05 <= cost.seconds < 5 and cost.peak_memory >= held.nbytes / 2**30
    del held
    assert other.seconds < 0.05


@pytest.mark.usefixtures("drawn_edits", "alive")
class TestStore:
    def test_columns_are_there_where_they_were_asked_for(self, store_path, fact_host: Host, tmp_path):
        usual = EditStore(store_path)
        assert "scores" not in usual.manifest and not {*FURTHER_COLUMNS} & {*usual.dataset.column_names}
        cfg = config(tmp_path / "store")
        cfg.edits.scores = ["efficiency", "portability"]
        store = produce(cfg, fact_host)
        assert store.manifest["scores"] == ["efficiency", "portability"]
        table = store.table()
        assert (table["seconds"] > 0).all() and (table["peak_memory"] > 0).all() and table["portability"].isna().all()
        assert "fluency" not in table and table[list(usual.table())].equals(usual.table())

    def test_a_store_without_them_is_refused_where_they_are_asked_for_and_good_where_not(self, store_path, fact_host, tmp_path):
        cfg = config(store_path)
        cfg.edits.scores = ["efficiency"]
        with pytest.raises(ValueError, match=r"made with edits\.scores=null \(here \[efficiency\]\)\."):
            produce(cfg, fact_host)
        cfg.store = str(tmp_path / "store")
        produce(cfg, fact_host)
        cfg.edits.scores = []
        assert len(produce(cfg, fact_host)) == len(EditStore(store_path))


def test_unknown_scores_are_refused():
    cfg = config("store")
    cfg.edits.scores = ["fluent"]
    with pytest.raises(UserError, match="edits.scores=fluent: no such score; did you mean 'fluency'"):
        cfg.edits.check()
