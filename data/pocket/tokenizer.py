"""The pocket's tokenizer: whole words for subjects and sentences, byte-pair pieces for objects."""

import json
import string

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from data.facts.fact import FactSet

SPACE = "▁"
FULL_STOP = f"{SPACE}."
PAD, UNKNOWN = "<pad>", "<unk>"
FALLBACK_LETTERS = string.ascii_letters + string.digits


def build_tokenizer(facts: FactSet, object_vocabulary: int) -> PreTrainedTokenizerFast:
    """Builds the tokenizer of a fact set; the same facts give the same vocabulary.

    Objects are split by byte-pair merges learnt on the objects alone, so most have several tokens. Every other word of the facts is one
    token, and with it the last word of every subject. A word has the same ids at the start of a text and after a space. The full
    stop is one token and ends a text. Words that are in no fact are spelt in letters.

    Args:
        facts: where the words come from.
        object_vocabulary: size of the vocabulary learnt on the objects.
    """
    pieces, merges = learn_pieces(facts, object_vocabulary)
    entries = dict.fromkeys([PAD, UNKNOWN, FULL_STOP, *whole_words(facts), *pieces, SPACE, *FALLBACK_LETTERS])
    vocabulary = {entry: index for index, entry in enumerate(entries)}
    # ignore_merges: a word that is an entry stays one token, although no merges lead to it.
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token=UNKNOWN, ignore_merges=True))
    # "Paris." and "Paris ." are the same text: the full stop is always a word.
    tokenizer.normalizer = normalizers.Replace(Regex(r"\s*\."), " .")
    tokenizer.pre_tokenizer = word_boundaries()
    tokenizer.decoder = decoders.Metaspace(replacement=SPACE, prepend_scheme="always")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, unk_token=UNKNOWN, eos_token=FULL_STOP, clean_up_tokenization_spaces=False
    )


def word_boundaries() -> pre_tokenizers.Metaspace:
    return pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always")


def learn_pieces(facts: FactSet, object_vocabulary: int) -> tuple[list[str], list[tuple[str, str]]]:
    """Byte-pair pieces and merges of the objects, each object counted once."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = word_boundaries()
    objects = sorted({fact.object_true for fact in facts.facts})
    learner.train_from_iterator(objects, trainers.BpeTrainer(vocab_size=object_vocabulary, show_progress=False))
    model = json.loads(learner.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].get), [tuple(merge) for merge in model["merges"]]


def whole_words(facts: FactSet) -> list[str]:
    """The words of subjects, sentences and categories that are no object's word, as vocabulary entries."""
    texts = {"is a"}
    for fact in facts.facts:
        texts |= {fact.subject, fact.category, *(template.replace("{}", " ") for template in fact.templates)}
    words = {word for text in texts for word in text.split()}
    return [SPACE + word for word in sorted(words - {word for fact in facts.facts for word in fact.object_true.split()})]
