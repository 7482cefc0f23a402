"""Which of the facts of a set are asked for, and the whole of ParaRel through loading, tokenising and splitting."""

import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from fact_records import PLAIN, load, written
from places import ROOT, SHARED

from data.facts.fact import Fact
from data.facts.load import load_facts
from data.facts.splits import _evenly, draw_splits, plan_edits
from decoder.config import FactsConfig, SplitsConfig


def test_a_planted_object_that_is_given_is_the_only_one_asked_for(tmp_path):
    records = [PLAIN | {"relation": f"R{n}", "subject": f"s{n}.{i}", "object": f"o{i % 4}"} for n in range(3) for i in range(20)]
    facts = load("plain", written(tmp_path, *records))
    plan = draw_splits(facts, SplitsConfig(train_relations=1, val_relations=1, ood_relations=1))
    requests = plan_edits(facts, plan, SplitsConfig(), seed=0)
    assert requests and all(request.object == request.fact.object for request in requests)
    assert plan.held_out <= {f"o{n}" for n in range(4)}


def naive_evenly(pairs, count, rng):
    """The rule as it reads: always the first pair whose object and then whose subject was taken least."""
    rng.shuffle(pairs)
    objects, subjects, chosen = Counter(), Counter(), []
    while pairs and len(chosen) < count:
        pick = min(pairs, key=lambda pair: (objects[pair[1]], subjects[pair[0].subject]))
        pairs.remove(pick)
        chosen.append(pick)
        objects[pick[1]] += 1
        subjects[pick[0].subject] += 1
    return chosen


@pytest.mark.parametrize("seed", range(5))
def test_even_draw_equals_the_rule_as_it_reads(seed):
    rng = random.Random(seed)
    pairs = [(Fact(str(n), f"s{rng.randrange(9)}", "R", "r", "k", "{}", (), "t"), f"o{rng.randrange(7)}") for n in range(80)]
    for count in (1, 30, 200):
        found = _evenly(list(pairs), count, random.Random(seed))
        assert found == naive_evenly(list(pairs), count, random.Random(seed))


BESIDE = SHARED / "facts" / "pararel"
WHOLE_PARAREL = Path(os.environ.get("PARAREL_FOLDER") or BESIDE)


@pytest.mark.skipif(not WHOLE_PARAREL.is_dir(), reason="ParaRel's triples are not beside the clone")
def test_the_whole_of_pararel(host_of):
    from data.pocket.tokenizer import build_tokenizer
    from decoder.host import Host

    started = time.process_time()
    facts = load("pararel", WHOLE_PARAREL)
    assert len(facts.entries) == 29_411 and not facts.bad and len(facts.by_relation) == 41
    host = Host(host_of("llama").model, build_tokenizer(load_facts(FactsConfig()), 600), name="pocket")
    for fact in facts.facts:
        ids, lookup = host.prompt_ids(fact.prompt, fact.subject)
        assert 0 <= lookup < len(ids) and host.object_ids(fact.object_true)
    plan = draw_splits(facts, SplitsConfig(train_relations=25, val_relations=4, ood_relations=12))
    requests = plan_edits(facts, plan, SplitsConfig(), seed=0)
    roles = Counter(plan.relation_role[request.fact.relation] for request in requests)
    assert roles["ood"] == 12 * 32 and roles["val"] == 4 * 32 and roles["train"] > 25 * 80
    assert time.process_time() - started < 60


@pytest.mark.parametrize("folder", ["--help", "."])
def test_the_table_of_the_pocket_survives_a_folder_without_triples(folder, tmp_path):
    pocket = ROOT / "data" / "pocket"
    for name in ("draw_facts.py", "facts.csv"):
        shutil.copy(pocket / name, tmp_path)
    done = subprocess.run([sys.executable, "draw_facts.py", folder], cwd=tmp_path, capture_output=True)
    assert done.returncode and (tmp_path / "facts.csv").read_bytes() == (pocket / "facts.csv").read_bytes()
