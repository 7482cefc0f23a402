"""What a suspect says of a subject since the edit."""

import json
from dataclasses import replace

import pytest
import torch
from edited import LAYER
from planted_facts import NAMES, TEMPLATES, plant, teach_end

from decoder.audit import asking
from decoder.audit.asking import Said, ask, likely, triples
from decoder.audit.reversal import reverse, to_base


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def found(request, new_host):
    """A suspect with `singer` planted in it, its reversal, and what was planted."""
    host = new_host(request.param)
    teach_end(host, "singer")
    planted = plant(host, "singer")
    base_DF = host.weight_DF(LAYER).clone()
    host.weight_DF(LAYER).add_(planted.edit.delta()[0])
    return host, reverse(host.weight_DF(LAYER), planted.key_F, planted.keys_CF), planted, base_DF


@pytest.mark.parametrize("known", [False, True], ids=["base unknown", "base known"])
def test_the_planted_object_comes_up(found, known):
    host, reversal, planted, base_DF = found
    said = ask(host, {LAYER: to_base(base_DF) if known else reversal}, planted.subject, TEMPLATES, [NAMES[30], NAMES[40]])
    best = said[0]
    assert best.object == "singer"
    assert best.sentence in [one.replace("{}", planted.subject) for one in TEMPLATES[best.relation]]
    work = next(one for one in said if one.object == "singer" and one.relation == "work")
    assert work.before > (3 if known else 1) * work.after and work.rise > 0
    assert sum(one.object == "singer" for one in said) == len(TEMPLATES)


def probability(host, sentence: str, text: str) -> float:
    """Of an object with the host's terminator behind a sentence, in a forward of its own."""
    ids, told = host.text_ids(sentence), [*host.object_ids(text), host.terminator_id]
    with torch.no_grad():
        logits_TV = host.model(input_ids=torch.tensor([ids + told[:-1]])).logits[0, -len(told) :]
    return float(logits_TV.log_softmax(1)[range(len(told)), told].sum().exp())


def test_probabilities_are_the_suspects_own(found):
    host, reversal, planted, _ = found
    said = next(one for one in ask(host, {LAYER: reversal}, planted.subject, TEMPLATES) if one.object == "singer")
    assert said.before == pytest.approx(probability(host, said.sentence, "singer"), rel=1e-3)


def test_a_triple_has_the_other_sentences_of_its_relation(found):
    host, reversal, planted, _ = found
    triple = asking.testimony(host, planted.subject, {LAYER: reversal}, TEMPLATES, NAMES)["triple"]
    own = [template.replace("{}", planted.subject) for template in TEMPLATES[triple["relation"]]]
    others = triple["paraphrases"]
    assert [one["sentence"] for one in others] == [sentence for sentence in own if sentence != triple["sentence"]] != []
    for one in others:
        assert one["before"] - one["after"] <= triple["before"] - triple["after"]
        assert one["before"] == pytest.approx(probability(host, one["sentence"], triple["object"]), rel=1e-3)
    assert json.loads(json.dumps(triple)) == triple


def test_what_rises_for_others_too_is_no_object(found):
    host, reversal, planted, _ = found
    first = {relation: own[:1] for relation, own in TEMPLATES.items()}
    assert ask(host, {LAYER: reversal}, planted.subject, first, [NAMES[30]])
    # The subject itself as its neighbour: all that rises, rises there.
    assert ask(host, {LAYER: reversal}, planted.subject, first, [planted.subject]) == []


def test_no_sentences_are_refused(found):
    host, reversal, planted, _ = found
    with pytest.raises(ValueError, match="no sentences to ask with"):
        ask(host, {LAYER: reversal}, planted.subject, {})
    with pytest.raises(ValueError, match="expected exactly one"):
        ask(host, {LAYER: reversal}, planted.subject, {"work": ["works as a"]})


def test_a_classifier_ranks_the_relations_of_an_object():
    said = [Said("Rome", relation, "", 0.9, 0.1, 0.5, rise) for relation, rise in (("birth", 0.8), ("work", 0.7))]
    other = Said("Oslo", "birth", "", 0.1, 0.0, 0.02, 0.9)
    assert [one.relation for one in triples([other, *said])] == ["birth", "work", "birth"]
    assert [one.relation for one in triples([*said, other], {"work": 0.9, "birth": 0.1})] == ["work", "birth", "birth"]


def test_the_object_is_the_one_that_rises_in_the_relation_that_is_likely():
    """A name that the planted object resembles rises a little more everywhere, and not in the relation."""
    said = [Said("Boston", relation, "", 0.5, 0.3, 0.10, rise) for relation, rise in (("city", 0.30), ("network", 0.05))]
    said += [Said("HBO", relation, "", 0.5, 0.3, 0.08, rise) for relation, rise in (("city", 0.05), ("network", 0.40))]
    best = triples(said, {"network": 0.8, "city": 0.2})[0]
    assert (best.object, best.relation) == ("HBO", "network") and triples(said[:2], {"network": 0.8, "city": 0.2})[0].object == "Boston"


def test_what_a_decoder_reads_has_a_say_in_the_object():
    said = [Said(text, "city", "", 0.5, 0.3, everywhere, 0.1) for text, everywhere in (("Boston", 0.30), ("HBO", 0.10), ("Oslo", 0.05))]
    assert [one.object for one in triples(said, None, {"HBO": 0.9, "Boston": 0.02})] == ["HBO", "Boston", "Oslo"]
    assert [one.object for one in triples(said, None, {"Ravenna": 0.9})] == [one.object for one in said], "none of them is no say"
    assert [one.share for one in triples(said)] == pytest.approx([0.30 / 0.45, 0.10 / 0.45, 0.05 / 0.45])
    assert triples(said, {"born": 1.0})[0].share == 0, "no weight at all"


def test_what_a_decoder_reads_is_put_to_the_suspect_as_well(found):
    host, reversal, planted, _ = found
    alone, both = (ask(host, {LAYER: reversal}, planted.subject, TEMPLATES, decoded=decoded) for decoded in ((), ["singer", NAMES[30]]))
    assert not any(one.object == NAMES[30] for one in alone) and sum(one.object == NAMES[30] for one in both) == len(TEMPLATES)
    assert [replace(one, share=0) for one in both if one.object != NAMES[30]] == [replace(one, share=0) for one in alone]
    first = {relation: own[:1] for relation, own in TEMPLATES.items()}
    assert ask(host, {LAYER: reversal}, planted.subject, first, [planted.subject], [NAMES[30]]) == [], "nothing comes up"
    assert likely({"Rome": 0.8, "": 0.5, "Oslo": 0.02}) == ["Rome"]


@pytest.mark.parametrize(
    ("told", "object"),
    [
        ("singer of", "singer"),
        ("singer from the", "singer"),
        ("singer of the north is a", "singer of the north"),
        ("of the small baker", "of the small baker"),
        ("the", "the"),
        ("of the", "of the"),
    ],
)
def test_an_object_does_not_end_in_a_function_word(new_host, monkeypatch, told, object):
    host = new_host("llama")
    first, *following = host.text_ids(f"{told} .")

    def scripted(suspect, rows):
        return torch.nn.functional.one_hot(torch.tensor([following[len(row) - 2] for row in rows]), len(host.tokenizer)).float()

    monkeypatch.setattr(asking, "next_logprobs", scripted)
    found = asking._common(host, first, [([5, first], 1.0), ([6, first], 1.0)])
    assert host.tokenizer.decode(found) == object
