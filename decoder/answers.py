"""What a decoder, or several that vote, answer for one edit, in words.

Shape letters: B edits, K beams, V vocabulary.
"""

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd
import torch

from decoder.batch import PADDING, EditBatch
from decoder.beam import Beams
from decoder.host import Host
from decoder.metrics import first_token_correct
from decoder.scores import exact_match


class Reading(NamedTuple):
    """One edit, read."""

    row: int
    """Row of the edit in its store."""
    predicted: str
    """The most probable whole object; where the edit plants several facts, the planted one if it is among as many answers."""
    probability: float
    """Its probability, however it is spelt (`object_texts`)."""
    first_token: bool
    """Whether the most probable first token is the planted object's; of several facts, whether one of as many answers begins with it."""
    exact_match: bool
    """Whether `predicted` is the planted object (`scores.exact_match`)."""
    answers: dict[str, float] | None = None
    """Where the edit plants several facts, all answers with their probabilities."""


def text_of(host: Host, ids: Sequence[int]) -> str:
    """An object in words; padding and terminator are no part of it."""
    ids = [token for token in ids if token not in (PADDING, host.terminator_id)]
    return host.tokenizer.decode(ids, skip_special_tokens=True).strip()


def planted_texts(host: Host, batch: EditBatch) -> list[str]:
    """The planted objects of a batch in words, as far as the host's tokens can say them."""
    return [text_of(host, ids) for ids in batch.object_ids_BT.tolist()]


def object_texts(host: Host, beams: Beams) -> list[dict[str, float]]:
    """The objects of each edit in words, with their probabilities, in the order of each one's most probable beam.

    Several sequences of tokens may spell one text. Its probability is the sum over the beams that do: what the decoder says of the
    object, less what the search left out. The first text is that of the best beam, which exact match looks at, also where
    another one's spellings have more together. Its probability is the confidence of a reading, in predictions, in the calibration and
    for a suspect alike, so that percentiles compare like with like.
    """
    found: list[dict[str, float]] = []
    for objects, probabilities in zip(beams.tokens, beams.probability_BK.tolist(), strict=True):
        texts: dict[str, float] = {}
        for ids, probability in zip(objects, probabilities, strict=True):
            text = text_of(host, ids)
            texts[text] = texts.get(text, 0.0) + probability
        found.append(texts)
    return found


def vote(host: Host, beams: Sequence[Beams]) -> Beams:
    """What several decoders of one host found in the same edits, as one search: one decoder's own, of several their mean.

    A text's probability (`object_texts`) is the mean over the decoders, 0 where a search did not come upon it, and texts are in that order;
    the probabilities of first tokens are means likewise.
    """
    if len(beams) == 1:
        return beams[0]
    first_BV = torch.stack([one.first_BV.softmax(-1) for one in beams]).mean(0).log()
    tokens = [[ids for objects in of_edit for ids in objects] for of_edit in zip(*(one.tokens for one in beams), strict=True)]
    probability_BK = torch.cat([one.probability_BK for one in beams], dim=1) / len(beams)
    for b, texts in enumerate(object_texts(host, Beams(tokens, probability_BK, first_BV))):
        order = sorted(range(len(tokens[b])), key=lambda k: -texts[text_of(host, tokens[b][k])])
        tokens[b], probability_BK[b] = [tokens[b][k] for k in order], probability_BK[b, order]
    return Beams(tokens, probability_BK, first_BV)


def each_by(beams: Sequence[Beams], decoder_B: Sequence[int]) -> Beams:
    """What several decoders found in the same edits, as one search: of each edit what the decoder of that number found.

    It has as many beams as the narrowest search.
    """
    width = min(one.probability_BK.shape[1] for one in beams)
    picked = [(beams[decoder], b) for b, decoder in enumerate(decoder_B)]
    tokens = [one.tokens[b][:width] for one, b in picked]
    return Beams(
        tokens, torch.stack([one.probability_BK[b, :width] for one, b in picked]), torch.stack([one.first_BV[b] for one, b in picked])
    )


def best_texts(host: Host, beams: Beams) -> list[tuple[str, float]]:
    """The first object of each edit, and its probability."""
    return [next(iter(texts.items())) for texts in object_texts(host, beams)]


def read_batch(host: Host, beams: Beams, batch: EditBatch, facts: int = 1) -> list[Reading]:
    """Compares what was read with what was planted; `facts` is how many facts an edit plants, of which the batch has one a row."""
    first_token, texts_B, planted_B = first_token_correct(beams, batch.object_ids_BT), object_texts(host, beams), planted_texts(host, batch)
    rows, found = batch.row_B.tolist(), []
    for b, (row, texts, first, planted) in enumerate(zip(rows, texts_B, first_token, planted_B, strict=True)):
        answers = list(texts)[:facts]
        predicted = next((text for text in answers if exact_match(text, planted)), answers[0])
        several, is_right = (), exact_match(predicted, planted)
        if facts > 1:
            begun = {ids[0] for ids in beams.tokens[b] if ids and text_of(host, ids) in answers}
            first, several = int(batch.object_ids_BT[b, 0]) in begun, (texts,)
        found.append(Reading(row, predicted, texts[predicted], first, is_right, *several))
    return found


def readings_table(readings: dict[str, list[Reading]], edits: pd.DataFrame) -> pd.DataFrame:
    """One row a reading with the edit's own columns (`edits`, in store order) and its split."""
    parts = [pd.DataFrame(rows, columns=Reading._fields).assign(split=split) for split, rows in readings.items() if rows]
    table = pd.concat(parts, ignore_index=True)
    return table.join(edits, on="row")
