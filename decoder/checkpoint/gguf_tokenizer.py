"""The tokenizer of a GGUF file, from its metadata.

Built here, as what transformers reads from such files differs from release to release: added tokens, their ends, the first token of a text.
A host's fingerprint has its vocabulary in it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from gguf import TokenType
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from decoder.checkpoint.gguf_header import AGAIN

_WORDS, _REST = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+", r" ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
GPT2, SINGLE_DIGITS = rf"{_WORDS}| ?\p{{N}}+|{_REST}", rf"{_WORDS}|\p{{N}}|{_REST}"
_ENDS, _SIGNS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)", r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = rf"{_ENDS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_SIGNS}"
QWEN2 = rf"{_ENDS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_SIGNS}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = (
    dict.fromkeys(("default", "gpt-2", "phi-2", "olmo"), GPT2)
    | dict.fromkeys(("smollm", "starcoder", "refact"), SINGLE_DIGITS)
    | dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3"), LLAMA3)
    | dict.fromkeys(("qwen2", "deepseek-r1-qwen"), QWEN2)
    | {"tekken": TEKKEN}
)
"""`tokenizer.ggml.pre` -> how text is split before its pieces are merged."""
WHOLE_FIRST = (LLAMA3, TEKKEN)  # a piece that is a token is taken as it is, however it would be merged
SPECIAL = {"bos_token": "bos_token_id", "eos_token": "eos_token_id", "unk_token": "unknown_token_id", "pad_token": "padding_token_id"}
SPACE = "\u2581"


def tokenizer_of(metadata: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    """The tokenizer that a file's metadata describe.

    Raises:
        ValueError: there is none, it is damaged, or it is of a kind that is not read.
    """
    read = {key.removeprefix("tokenizer.ggml."): value for key, value in metadata.items() if key.startswith("tokenizer.ggml.")}
    tokens, kind = read.get("tokens"), read.get("model")
    if not isinstance(tokens, list) or kind not in ("gpt2", "llama"):
        raise ValueError(f"its tokenizer is {kind!r}, expected gpt2 (byte-level BPE) or llama (SentencePiece). Give the safetensors")
    _check_tokens(tokens)
    tokenizer = _byte_level(tokens, read) if kind == "gpt2" else _sentencepiece(tokens, read, metadata["general.architecture"])
    kinds = list(zip(tokens, read.get("token_type") or [], strict=False))
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token, of in kinds if of == TokenType.CONTROL])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token, of in kinds if of == TokenType.USER_DEFINED])
    special = {name: tokens[read[key]] for name, key in SPECIAL.items() if isinstance(read.get(key), int) and read[key] < len(tokens)}
    if read.get("add_bos_token", kind == "llama" or read.get("pre") in SPLITS and SPLITS[read["pre"]] == LLAMA3) and "bos_token" in special:
        first = special["bos_token"]
        ends = processors.TemplateProcessing(
            single=[first, "$A"], pair=[first, "$A", first, "$B:1"], special_tokens=[(first, read["bos_token_id"])]
        )
        levels = [processors.ByteLevel(trim_offsets=False)] if kind == "gpt2" else []
        tokenizer.post_processor = processors.Sequence([*levels, ends])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def _check_tokens(tokens: Sequence[Any]) -> None:
    """Raises ValueError for what makes no vocabulary. Tokens without text may be several, as llama.cpp has it."""
    seen: set[str] = set()
    for number, token in enumerate(tokens):
        if not isinstance(token, str):
            raise ValueError(f"its tokenizer is damaged: token {number} is {token!r}, expected text. {AGAIN}")
        if token in seen:
            raise ValueError(f"its tokenizer is damaged: token {number}, {token!r}, stands there twice. {AGAIN}")
        seen |= {token} - {""}


def _listed_merges(vocabulary: Mapping[str, int], merges: Any) -> list[tuple[str, str]]:
    """The merges that a file lists. Checked here, as `tokenizers` panics over those whose tokens are missing.

    Raises:
        ValueError: they are no list, or one of them is not of two tokens that make a third.
    """
    if not isinstance(merges, list):
        raise ValueError(f"its tokenizer is damaged: its merges are {type(merges).__name__}, expected a list. {AGAIN}")
    found = []
    for number, merge in enumerate(merges):
        if not isinstance(merge, str) or not all(pair := merge.partition(" ")):
            raise ValueError(f"its tokenizer is damaged: merge {number} is {merge!r}, expected two tokens with a space between. {AGAIN}")
        left, _, right = pair
        if absent := [token for token in (left, right, left + right) if token not in vocabulary]:
            raise ValueError(f"its tokenizer is damaged: merge {number}, {merge!r}, needs token {absent[0]!r}, which is missing. {AGAIN}")
        found.append((left, right))
    return found


def _byte_level(tokens: Sequence[str], read: Mapping[str, Any]) -> Tokenizer:
    if (rule := read.get("pre", "default")) not in SPLITS:
        raise ValueError(f"its tokenizer splits text by the rule {rule!r}; known are {', '.join(SPLITS)}. Give the safetensors checkpoint")
    vocabulary = {token: number for number, token in enumerate(tokens)}
    merges = _listed_merges(vocabulary, read.get("merges", []))
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=SPLITS[rule] in WHOLE_FIRST))
    levels = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(SPLITS[rule]), behavior="isolated"), levels])
    tokenizer.post_processor, tokenizer.decoder = processors.ByteLevel(trim_offsets=False), decoders.ByteLevel()
    return tokenizer


def _sentencepiece(tokens: Sequence[str], read: Mapping[str, Any], architecture: str) -> Tokenizer:
    if architecture.startswith("gemma"):
        # Runs of spaces stand there as such, and the order of merges is that of the tokens.
        tokens = [SPACE * len(token) if token.strip(" ") == "" else token for token in tokens]
        scores: Sequence[float] = range(0, -len(tokens), -1)
    else:
        scores = read.get("scores") or range(0, -len(tokens), -1)
    vocabulary = {token: number for number, token in enumerate(tokens)}
    unknown = read.get("unknown_token_id")
    tokenizer = Tokenizer(
        models.BPE(
            vocabulary,
            _merges(vocabulary, dict(zip(tokens, scores, strict=False))),
            unk_token=tokens[unknown] if isinstance(unknown, int) and unknown < len(tokens) else None,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    has_prefix = read.get("add_space_prefix", True)
    tokenizer.normalizer = normalizers.Sequence([*([normalizers.Prepend(SPACE)] if has_prefix else []), normalizers.Replace(" ", SPACE)])
    ends = [decoders.Strip(" ", 1, 0)] if has_prefix else []
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *ends])
    return tokenizer


def _merges(vocabulary: Mapping[str, int], scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """Every way to put a token together from two, the best tokens first; such files list none."""
    found = []
    for token, score in scores.items():
        halves = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        pairs = [pair for pair in halves if pair[0] in vocabulary and pair[1] in vocabulary]
        found += [(score, pair) for pair in sorted(pairs, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))]
    return [pair for _, pair in sorted(found, key=lambda one: (one[0], len(one[1][0]), len(one[1][1])), reverse=True)]
