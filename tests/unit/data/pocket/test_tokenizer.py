"""The rules for subjects and objects with small tokenizers of every kind, trained here."""

import json

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import GemmaTokenizer, GPT2Tokenizer, LlamaTokenizer, PreTrainedTokenizerFast

from decoder.host import Host

SUBJECTS = ["Ada", "Ben of the north", "Sena Medal", "Łódź", "北京 大学", "🎉 Fest", "Beyoncé", "O'Hara", "C++", "St. Ives", "👩‍🚀", "MTV2"]
TEMPLATES = [
    "{} works as a",
    "{}'s trade is",
    "{}, a person, is",
    "The trade of {} is",
    "“{}” is",
    "A man. {} is a",
    "{}",
    "The trade of {}",
]
OBJECTS = ["a", "Paris", "New York City", "Łódź", "東京", "🎉", "Sir Edmund of the green Hill", "U.S."]
TEXT = [t.replace("{}", s) + f" {o}." for t in TEMPLATES for s in SUBJECTS[:6] for o in OBJECTS]
TEXT += ["the green hill of New York City"] * 5
BOS, EOS, UNK = "<s>", "</s>", "<unk>"
BYTES = [f"<0x{n:02X}>" for n in range(256)]


def trained(tokenizer: Tokenizer, **settings) -> Tokenizer:
    tokenizer.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=700, show_progress=False, **settings))
    return tokenizer


def pieces(tokenizer: Tokenizer) -> tuple[dict[str, int], list[tuple[str, str]]]:
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


def byte_level(bos: bool):
    """GPT-2's kind."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trained(tokenizer, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=[BOS])
    return GPT2Tokenizer(*pieces(tokenizer), bos_token=BOS, eos_token=BOS, unk_token=BOS, add_bos_token=bos)


def llama3(bos: bool):
    """Byte-level BPE behind Llama 3's splitting rule, a begin token by template."""
    pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trained(tokenizer, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=[BOS])
    byte = processors.ByteLevel(trim_offsets=False)
    template = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    tokenizer.post_processor = processors.Sequence([byte, template]) if bos else byte
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS)


def sentence_pieces() -> tuple[dict[str, int], list[tuple[str, str]]]:
    tokenizer = Tokenizer(models.BPE(unk_token=UNK, byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return pieces(trained(tokenizer, special_tokens=[UNK, BOS, EOS, *BYTES]))


def llama2(bos: bool, legacy: bool = False):
    return LlamaTokenizer(*sentence_pieces(), legacy=legacy, add_bos_token=bos, unk_token=UNK, bos_token=BOS, eos_token=EOS)


def llama2_legacy(bos: bool):
    return llama2(bos, legacy=True)


def llama2_file(bos: bool):
    """The pipeline in Llama 2's own tokenizer.json: a space is put before every text, also before one that has it already."""
    vocabulary, merges = sentence_pieces()
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token=UNK, byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", left=1, right=0)]
    )
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, vocabulary[BOS])])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, unk_token=UNK)


def gemma(bos: bool):
    """SentencePiece without a space in front; whole texts are merged, words are not split first."""
    vocabulary, merges = sentence_pieces()
    names = {"pad_token": EOS, "eos_token": EOS, "bos_token": BOS, "unk_token": UNK}
    return GemmaTokenizer(vocabulary, merges, add_bos_token=bos, **names)


KINDS = [byte_level, llama3, llama2, llama2_legacy, llama2_file, gemma]


@pytest.fixture(scope="module", params=[(kind, bos) for kind in KINDS for bos in (False, True)], ids=lambda p: f"{p[0].__name__}-{p[1]}")
def host(request, host_of) -> Host:
    kind, bos = request.param
    found = Host(host_of("llama").model, kind(bos), name=kind.__name__)
    assert (found.text_ids("Ada")[0] == found.tokenizer.convert_tokens_to_ids(BOS)) is bos, "the case is not what it says"
    return found


def text_of(host: Host, ids: list[int]) -> str:
    return host.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("template", TEMPLATES)
def test_subject_ends_at_the_lookup(host, template):
    for subject in SUBJECTS:
        ids, lookup = host.prompt_ids(template, subject)
        assert ids == host.text_ids(template.replace("{}", subject)), "tokenised whole"
        upto = text_of(host, ids[: lookup + 1])
        before = text_of(host, ids[:lookup])
        start = template.index("{}")
        whole = template[:start] + subject
        assert upto.lstrip().startswith(whole.lstrip()), (subject, upto)
        assert not before.lstrip().startswith(whole.lstrip()), (subject, before)


@pytest.mark.parametrize("prompt", ["Ada works as a", "The city is", "Łódź is"])
def test_objects_are_tokenised_as_they_continue_a_prompt(host, prompt):
    for text in OBJECTS:
        for given in (text, f" {text}", f"{text} "):
            ids = host.object_ids(given)
            assert ids and host.text_ids(prompt) + ids == host.text_ids(f"{prompt} {text}"), (text, ids)
        assert text_of(host, host.text_ids(prompt) + ids).endswith(f"{prompt} {text}".removeprefix("<s>"))


def test_objects_of_one_to_eight_tokens(host):
    texts = ["the" + "zqxjkvbw"[:n] for n in range(9)]
    found = {len(ids): (text, ids) for text in texts for ids in [host.object_ids(text)]}
    assert set(range(1, 9)) <= set(found)
    for text, ids in found.values():
        assert host.text_ids(f"Ada is {text}") == host.text_ids("Ada is") + ids


def test_specials_are_no_part_of_an_object(host):
    for text in OBJECTS:
        assert not {host.tokenizer.convert_tokens_to_ids(BOS)} & set(host.object_ids(text))


def test_padding_side_and_other_texts_do_not_matter(host):
    for side in ("left", "right"):
        host.tokenizer.padding_side = side
        ids, lookup = host.prompt_ids("The trade of {} is", "Ben of the north")
        assert text_of(host, ids[: lookup + 1]).endswith("north")
