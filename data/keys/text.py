"""Text for key statistics and contexts, from files or a Hub data set; and the statistics that ROME's authors publish.

Shape letter: F MLP width.
"""

import hashlib
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from tokenize import TokenError

import numpy as np
import torch

from data.facts.fact import FactSet
from data.keys.cache import KeyStatistics
from data.keys.sampled import CONTEXT_TOKENS, SELF, sampled_texts
from data.pocket.text import key_text
from decoder.config import KeysConfig, TrainConfig
from decoder.host import Host
from decoder.utils.files import cache_root

SENTENCES = 20_000  # of the text that key statistics are counted on where none is given

ENDINGS = (".txt", ".jsonl")
CHARACTERS = 8  # read for each token of the budget: more than any tokenizer takes on average


def read_texts(cfg: KeysConfig, tokens: int) -> list[str]:
    """Texts with enough characters for `tokens` tokens, in their order; lines of .txt files, `keys.field` of everything else.

    Raises:
        ValueError: nothing there, another kind of file, a record without the field, or no text at all.
    """
    texts, left = [], CHARACTERS * tokens
    for text in _texts(cfg):
        if text.strip():
            texts.append(text.strip())
            left -= len(text)
        if left <= 0:
            break
    if not texts:
        raise ValueError(f"keys.text={cfg.text}: no text there")
    return texts


def texts_sha256(texts: list[str]) -> str:
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


def _texts(cfg: KeysConfig) -> Iterator[str]:
    place = Path(cfg.text).expanduser()
    if place.is_dir():
        files = sorted(file for file in place.iterdir() if file.suffix in ENDINGS)
        if not files:
            raise ValueError(f"keys.text={cfg.text}: the folder has no {' or '.join(ENDINGS)} file")
    elif place.exists():
        files = [place]
    elif cfg.text.count("/") == 1 and place.suffix not in ENDINGS:
        yield from _hub(cfg)
        return
    else:
        raise ValueError(f"keys.text={cfg.text}: no such file, folder or Hub data set (OWNER/NAME)")
    for file in files:
        if file.suffix not in ENDINGS:
            raise ValueError(f"keys.text={file}: expected {' or '.join(ENDINGS)}")
        with file.open(encoding="utf-8", errors="replace") as lines:
            for number, line in enumerate(lines, 1):
                yield line if file.suffix == ".txt" else _field(cfg, line, f"{file} line {number}")


def _field(cfg: KeysConfig, line: str, where: str) -> str:
    try:
        text = json.loads(line)[cfg.field] if line.strip() else ""
    except (json.JSONDecodeError, KeyError, TypeError, IndexError):
        text = None
    if not isinstance(text, str):
        raise ValueError(f"{where}: no JSON with text under {cfg.field!r}. Name the field with keys.field=")
    return text


def _hub(cfg: KeysConfig) -> Iterator[str]:
    import datasets

    try:
        for row in datasets.load_dataset(cfg.text, split=cfg.split, streaming=True):
            yield row[cfg.field]
    except Exception as error:  # the library raises a dozen kinds
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"keys.text={cfg.text}: the Hub data set cannot be read ({reason}). Give a local file") from None


def rome_statistics(file: str, mlp_size: int) -> KeyStatistics:
    """The second moment of keys from a `*_mom2_*.npz` of ROME, MEMIT or EasyEdit: a sum over tokens and their number.

    Raises:
        ValueError: no such file, no such arrays in it, another width, numbers that are none, or a pickle.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise ValueError(f"keys.statistics={file}: no such file")
    try:
        with np.load(path, allow_pickle=False) as archive:
            moment, count = archive["mom2.mom2"], int(archive["mom2.count"])
    except (ValueError, OSError, zipfile.BadZipFile, EOFError, KeyError, TypeError, SyntaxError, TokenError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"keys.statistics={file}: no whole npz with mom2.mom2 and mom2.count ({reason}); pickles are never loaded"
        ) from None
    if moment.shape != (mlp_size, mlp_size):
        raise ValueError(f"keys.statistics={file}: {moment.shape}, the edited layer's keys have width {mlp_size}. It is of another model")
    if count < 1 or not np.isfinite(moment).all():
        raise ValueError(f"keys.statistics={file}: {count} tokens, or NaN or infinity in the sum. Get the file again")
    return KeyStatistics(torch.from_numpy(moment.astype(np.float64) / count).float(), count)


def key_texts(cfg: TrainConfig, facts: FactSet, host: Host, counted: bool = True) -> list[str]:
    """The text for key statistics and contexts: the one that is given, what the host writes itself, or the facts told.

    Args:
        counted: whether statistics are counted on it; contexts alone need less of what the host writes.
    """
    if cfg.keys.text == SELF:
        tokens = cfg.edits.key_tokens if counted else min(CONTEXT_TOKENS, cfg.edits.key_tokens)
        return sampled_texts(host, tokens, cfg.edits.seed, cfg.keys.top_k, cache_root(cfg.cache_dir))
    return read_texts(cfg.keys, cfg.edits.key_tokens) if cfg.keys.text else key_text(facts, cfg.edits.seed, SENTENCES)
