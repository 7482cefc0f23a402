"""Text that a host writes itself, for the keys' second moment and for contexts: seeded, and kept in the cache.

ROME's contexts are such samples. Every row begins with an opening word, as MEMIT's do, and goes on by sampling at temperature 1, on a
key/value cache. A special token (end of text, of a turn) ends it, but for the host's terminator, after which the next text begins.

Shape letters: N rows of a batch, T positions, D hidden width, V vocabulary.
"""

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import DynamicCache

from decoder.host import Host
from decoder.utils.files import alone, short_hash, whole_file
from decoder.utils.progress import progress

SELF = "self"
"""What `keys.text` calls it."""
ROWS, LENGTH = 128, 64  # of a batch: longer texts drift, and every step copies the cache of all before
CONTEXT_TOKENS = ROWS * LENGTH  # of the text that contexts are taken from
LONGEST_CONTEXT = 10  # words of an opening that is no short sentence; ROME cuts its contexts after 5 or 10 tokens
OPENINGS = (
    "The A In It He She They We You I This That There When After Before While If As At On For From With By Because Therefore However "
    "Although Since During One Two Some Many Most All Each Every Another First Today Yesterday Once Here What Why How"
).split()

log = logging.getLogger(__name__)


def sampled_texts(host: Host, tokens: int, seed: int, top_k: int | None, cache: Path | None = None) -> list[str]:
    """Texts of `tokens` tokens in all, as the host reads them; fewer tokens with the same seed give the first of the same texts.

    Args:
        host: is left as it was.
        tokens: budget; the text that passes it is the last.
        seed: of the draws.
        top_k: the likeliest tokens, among which one is drawn; None draws among all.
        cache: folder of the cache. Texts of this host and these settings are read from it, or written to it.

    Raises:
        ValueError: the host writes no text.
    """
    if cache is None:
        return _until(host, tokens, seed, top_k)
    file = cache / "keys" / f"{host.name}-{host.fingerprint}" / f"sampled-{short_hash([tokens, seed, made_with(top_k)])}.json"
    with alone(file):
        if (texts := _read(file)) is None:
            texts = _until(host, tokens, seed, top_k)
            with whole_file(file) as unfinished:
                unfinished.write_text(json.dumps(texts), encoding="utf-8")
    return texts


def made_with(top_k: int | None) -> dict[str, int | None]:
    """What the texts follow from beside host, seed and number."""
    return {"top_k": top_k, "rows": ROWS, "length": LENGTH}


def context_texts(host: Host, texts: Sequence[str]) -> list[str]:
    """What contexts are taken from: the openings of the first `CONTEXT_TOKENS` tokens, long ones cut and ended with a full stop."""
    openings = (re.split(r"(?<=[.!?])\s+", text, maxsplit=1)[0].split() for text in first_of(host, texts, CONTEXT_TOKENS))
    return [" ".join(words[:LONGEST_CONTEXT]).rstrip(",;:") + "." * (len(words) > LONGEST_CONTEXT) for words in openings]


def first_of(host: Host, texts: Sequence[str], tokens: int) -> list[str]:
    """The first texts, up to the one that passes a number of tokens."""
    count, kept = 0, []
    for text in texts:
        if count >= tokens:
            break
        kept.append(text)
        count += len(host.text_ids(text))
    return kept


def _read(file: Path) -> list[str] | None:
    if not file.exists():
        return None
    try:
        texts = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts):
            return texts
        reason = "it is no list of texts"
    except ValueError as error:
        reason = str(error)
    log.warning("%s is damaged (%s): making it again", file, reason)
    return None


def _until(host: Host, tokens: int, seed: int, top_k: int | None) -> list[str]:
    texts: list[str] = []
    count = batch = 0
    with progress(f"text that {host.name} writes, tokens", tokens) as advance:
        while count < tokens:
            generator = torch.Generator().manual_seed(int(hashlib.sha256(f"text {seed} {batch}".encode()).hexdigest()[:15], 16))
            rows = torch.stack(list(_columns(host, generator, top_k, lambda: advance(ROWS))), dim=1).tolist()
            found = [text for row in rows for text in _texts(host, row)]
            if not found:
                raise ValueError(f"keys.text={SELF}: {host.name} writes no text. Give a text of your own")
            texts += found
            batch += 1
            count += sum(len(host.text_ids(text)) for text in found)
    return first_of(host, texts, tokens)


@torch.no_grad()
def _columns(host: Host, generator: torch.Generator, top_k: int | None, advance: Callable[[], None]) -> Iterator[Tensor]:
    """One token (N) of each row of a batch after the other, from the opening word on."""
    ids_NT, cache, never = _starts(host, generator), DynamicCache(), barred(host)
    yield ids_NT[:, -1]
    for _ in range(min(LENGTH, host.longest_input or LENGTH) - ids_NT.shape[1]):
        hidden_ND = host.model.base_model(input_ids=ids_NT.to(host.device), **host.with_cache(cache)).last_hidden_state[:, -1]
        logits_NV = host.head(hidden_ND).float().cpu()
        logits_NV[:, never] = -torch.inf
        # On the CPU, so that a generator's draws are the same for every device.
        best_NV, ids_NV = logits_NV.topk(min(top_k or logits_NV.shape[1], logits_NV.shape[1]), dim=1)
        ids_NT = ids_NV.gather(1, torch.multinomial(best_NV.softmax(1), 1, generator=generator))
        advance()
        yield ids_NT[:, 0]


def _starts(host: Host, generator: torch.Generator) -> Tensor:
    """What rows begin with (N, T): what goes before a text, and an opening word that is one token, or any token."""
    before = host.text_ids("")
    special = set(host.tokenizer.all_special_ids)
    tried = [host.text_ids(word) for word in OPENINGS]
    known = [ids[-1] for ids in tried if ids[:-1] == before and ids[-1] not in special]
    known = known or [id for id in sorted(host.tokenizer.get_vocab().values()) if id not in special]
    if not before and host.terminator_id is not None:
        before = [host.terminator_id]
    elif not before and len(line_break := host.text_ids("\n")) == 1:
        # After the very first token of all, hosts that were not taught to begin write what no text has.
        before = line_break
    drawn = torch.randint(len(known), (ROWS,), generator=generator).tolist()
    return torch.tensor([[*before, known[n]] for n in drawn])


def barred(host: Host) -> list[int]:
    """Tokens that stand for no text: rows of the head that no token has, and places of images."""
    images = {getattr(host.model.config, name, None) for name in ("image_token_id", "image_token_index", "video_token_id")}
    spelt = set(host.tokenizer.get_vocab().values()) - images
    return [id for id in range(len(host.unembedding_VD)) if id not in spelt]


def _texts(host: Host, row: list[int]) -> Iterator[str]:
    """The texts of a row, in a line each."""
    special = set(host.tokenizer.all_special_ids)
    piece: list[int] = []
    for id in [*row, None]:
        if id is not None and (id == host.terminator_id or id not in special):
            piece.append(id)
        if id is None or id in special:
            # A character that was cut in two has no text.
            text = " ".join(host.tokenizer.decode(piece).replace("\ufffd", "").split())
            if text and host.text_ids(text):
                yield text
            piece = []
            if id != host.terminator_id:
                return
