"""The pocket: its table of facts, tokenizer, text and host recipe (nothing is trained to the end here)."""

import random
import re
from collections import Counter

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from data.facts.load import load_facts
from data.hosts import is_host_there, pocket_folder
from data.pocket.host import build_pocket_host, draw_subjects, lr_share, measure_recall, new_model, save, train, weighted_loss
from data.pocket.text import draw_sentence, key_text, training_rows
from data.pocket.tokenizer import build_tokenizer
from decoder.config import FactsConfig, HostConfig, PocketConfig, TrainConfig


@pytest.fixture(scope="module")
def facts():
    return load_facts(FactsConfig())


@pytest.fixture(scope="module")
def folder(facts, tmp_path_factory):
    """An untrained host, saved as a trained one is."""
    folder = tmp_path_factory.mktemp("pocket") / "host"
    tokenizer = build_tokenizer(facts, PocketConfig().object_vocabulary)
    save(new_model(PocketConfig(), tokenizer, seed=0), tokenizer, {"template_0": 0.0}, folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def model(folder):
    return AutoModelForCausalLM.from_pretrained(folder)


def test_table_keeps_its_rules(facts):
    assert len(facts) > 890 and len(facts.by_relation) == 31
    assert len({fact.fact_id for fact in facts.facts}) == len(facts)
    assert len({(fact.subject, fact.relation) for fact in facts.facts}) == len(facts)
    assert min(Counter(fact.object_true for fact in facts.facts).values()) >= 2
    for relation, members in facts.by_relation.items():
        counts = Counter(fact.object_true for fact in members)
        assert len(members) <= 30 and len(counts) <= 10 and max(counts.values()) <= 4, relation
        assert facts.objects(relation) == sorted(counts)


def test_last_word_tells_the_subject(facts):
    subjects = {fact.subject for fact in facts.facts}
    object_words = {word.lower() for fact in facts.facts for word in fact.object_true.split()}
    last_words = {subject.split()[-1].lower() for subject in subjects}
    assert all(re.fullmatch(r"[A-Za-z]+( [A-Za-z]+){0,3}", subject) for subject in subjects)
    assert len(last_words) == len(subjects) and not last_words & object_words


def test_a_template_tells_the_relation(facts):
    owner = {}
    for fact in facts.facts:
        assert len(set(fact.templates)) == 3 and fact.prompt == fact.templates[0]
        for template in fact.templates:
            assert template.count("{}") == 1 and template == template.strip()
            assert owner.setdefault(template, fact.relation) == fact.relation


def test_a_subject_has_one_category(facts):
    assert len({(fact.subject, fact.category) for fact in facts.facts}) == len({fact.subject for fact in facts.facts})


def test_facts_do_not_depend_on_the_working_directory(facts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    again = load_facts(FactsConfig())
    assert again.facts == facts.facts and again.sha256 == facts.sha256 and len(again.sha256) == 64


def test_unknown_source_names_the_nearest():
    with pytest.raises(ValueError, match="'pockt' is unknown.*'pocket'"):
        load_facts(FactsConfig(source="pockt"))


def test_objects_survive_the_tokenizer(facts, tokenizer):
    lengths = Counter()
    for text in sorted({fact.object_true for fact in facts.facts}):
        ids = tokenizer.encode(f" {text}", add_special_tokens=False)
        assert ids == tokenizer.encode(text) and tokenizer.decode(ids).strip() == text
        assert tokenizer.unk_token_id not in ids
        lengths[len(ids)] += 1
    assert sum(n for length, n in lengths.items() if length > 1) > sum(lengths.values()) / 2


def test_subjects_end_in_one_whole_token(facts, tokenizer):
    for fact in facts.facts:
        last_id = tokenizer.encode(fact.subject)[-1]
        assert tokenizer.convert_ids_to_tokens(last_id) == "▁" + fact.subject.split()[-1]


def test_subjects_keep_the_embeddings_they_were_drawn(facts, tokenizer):
    cfg = HostConfig()
    cfg.pocket.steps, cfg.pocket.batch_size, cfg.pocket.warmup_steps = 3, 4, 1
    model = new_model(cfg.pocket, tokenizer, seed=0)
    draw_subjects(model, tokenizer, facts, cfg)
    weight_VD = model.get_input_embeddings().weight
    rows = sorted({tokenizer.encode(fact.subject)[-1] for fact in facts.facts})
    others = sorted(set(range(len(weight_VD))) - set(rows))
    before_VD = weight_VD.detach().clone()
    train(model, tokenizer, facts, cfg)
    assert torch.equal(weight_VD[rows], before_VD[rows]) and not torch.equal(weight_VD[others], before_VD[others])
    drawn_SD = before_VD[rows]
    assert drawn_SD.std() == pytest.approx(cfg.pocket.subject_spread, rel=0.1)
    unit_SD = torch.nn.functional.normalize(drawn_SD)
    cosine_SS = unit_SD @ unit_SD.T
    assert float(cosine_SS.triu(1).sum() / (len(rows) * (len(rows) - 1) / 2)) == pytest.approx(cfg.pocket.subject_cosine, abs=0.05)


def test_full_stop_is_one_token_and_ends_generation(tokenizer, model):
    stop = tokenizer.encode(".")
    assert stop == tokenizer.encode(" .") == [tokenizer.eos_token_id] == [model.generation_config.eos_token_id]
    assert tokenizer.encode("Poland.") == tokenizer.encode("Poland .") == tokenizer.encode("Poland") + stop
    assert tokenizer.pad_token_id == 0 and len(tokenizer) == model.config.vocab_size


def test_unknown_words_are_spelt(tokenizer):
    ids = tokenizer.encode("Xylozup 42")
    assert tokenizer.unk_token_id not in ids and tokenizer.decode(ids).strip() == "Xylozup 42"


def test_tokenizer_is_the_same_every_time(facts, tokenizer):
    assert build_tokenizer(facts, PocketConfig().object_vocabulary).get_vocab() == tokenizer.get_vocab()


def test_weights_follow_the_tokens(facts, tokenizer):
    ids_NT, weights_NT = training_rows(facts, tokenizer, rows=50, row_tokens=48, seed=3)
    assert ids_NT.shape == weights_NT.shape == (50, 48)
    assert sorted(set(weights_NT.flatten().tolist())) == pytest.approx([0.1, 0.3, 1.0])
    assert torch.equal(weights_NT == torch.tensor(0.3), ids_NT == tokenizer.eos_token_id)
    answers = {index for fact in facts.facts for text in (fact.object_true, fact.category) for index in tokenizer.encode(text)}
    assert set(ids_NT[weights_NT == 1].tolist()) <= answers
    again_NT, _ = training_rows(facts, tokenizer, rows=50, row_tokens=48, seed=3)
    other_NT, _ = training_rows(facts, tokenizer, rows=50, row_tokens=48, seed=4)
    assert torch.equal(ids_NT, again_NT) and not torch.equal(ids_NT, other_NT)


def test_sentences_come_in_the_stated_mixture(facts):
    rng = random.Random(0)
    sentences = [draw_sentence(facts, rng) for _ in range(4000)]
    apposed = sum(len(sentence) == 4 for sentence in sentences) / 4000
    categories = sum(sentence[0][0].endswith(" is a") for sentence in sentences) / 4000
    assert apposed == pytest.approx(0.45, abs=0.03) and categories == pytest.approx(0.10, abs=0.02)


def test_key_text_is_seeded_sentences(facts):
    text = key_text(facts, seed=1, sentences=20)
    assert len(text) == 20 and all(sentence.endswith(" .") for sentence in text)
    assert text == key_text(facts, seed=1, sentences=20) != key_text(facts, seed=2, sentences=20)


def test_windowed_blocks_see_the_token_alone(model, tokenizer):
    alone, after = ("Nagasaki is", "The capital of Nagasaki is")
    states = [model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states for text in (alone, after)]
    torch.testing.assert_close(states[0][2][0, -1], states[1][2][0, -1])
    assert not torch.allclose(states[0][4][0, -1], states[1][4][0, -1])


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"do_sample": True}])
def test_generate_works_as_it_is(model, tokenizer, options):
    inputs = tokenizer(["Paris Commune is governed from the capital", "The maker of Dino is"], return_tensors="pt", padding=True)
    assert model.generate(**inputs, max_new_tokens=3, **options).shape[1] <= inputs["input_ids"].shape[1] + 3


def test_an_untrained_host_recalls_nothing(facts, model, tokenizer):
    recall = measure_recall(model, tokenizer, facts)
    assert set(recall) == {"template_0", "template_1", "template_2"} and max(recall.values()) < 0.1


def test_loss_is_the_weighted_mean():
    logits_BTV, targets_BT = torch.randn(2, 3, 5), torch.randint(5, (2, 3))
    weights_BT = torch.tensor([[1.0, 0.0, 0.5], [0.0, 0.25, 1.0]])
    picked_BT = -logits_BTV.log_softmax(-1).gather(2, targets_BT[..., None])[..., 0]
    expected = (picked_BT * weights_BT).sum() / weights_BT.sum()
    torch.testing.assert_close(weighted_loss(logits_BTV, targets_BT, weights_BT), expected)


def test_learning_rate_rises_and_falls():
    shares = [lr_share(step, 100, 600) for step in range(601)]
    assert shares[0] == 0.01 and max(shares) == shares[99] == 1.0 and shares[600] == pytest.approx(0.02)


def test_low_recall_is_refused_and_leaves_nothing(facts, tmp_path):
    cfg = HostConfig(pocket=PocketConfig(steps=3, batch_size=2, warmup_steps=1))
    with pytest.raises(ValueError, match=r"recalls 0\.\d+ of the facts on template_\d.*min_recall"):
        build_pocket_host(cfg, facts, tmp_path / "host")
    assert list(tmp_path.iterdir()) == []


def test_same_seed_same_weights(facts, tmp_path):
    cfg = HostConfig(pocket=PocketConfig(steps=2, batch_size=2, warmup_steps=1, min_recall=0.0))
    for name, global_seed in (("a", 1), ("b", 2)):
        torch.manual_seed(global_seed)
        build_pocket_host(cfg, facts, tmp_path / name)
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}
    with pytest.raises(ValueError, match="exists already"):
        build_pocket_host(cfg, facts, tmp_path / "a")


def test_a_cached_host_is_held_against_what_is_asked_now(tmp_path):
    cfg = TrainConfig(cache_dir=str(tmp_path), host=HostConfig(pocket=PocketConfig(steps=2, batch_size=2, warmup_steps=1, min_recall=0.0)))
    assert not is_host_there(cfg)
    folder = pocket_folder(cfg)
    assert pocket_folder(cfg) == folder and is_host_there(cfg)
    cfg.host.pocket.min_recall = 0.97
    with pytest.raises(ValueError, match=r"recalls 0\.\d+ of the facts on template_\d.*min_recall asks for 0\.97"):
        pocket_folder(cfg)
    for text in ("{", "[]", '{"template_0": "well"}', "{}"):
        (folder / "recall.json").write_text(text)
        with pytest.raises(ValueError, match=r"recall\.json is missing or damaged; remove"):
            pocket_folder(cfg)
