"""Beam search against brute force over all sequences.

Shape letters: B edits, K beams, N rows, V vocabulary, S states of the toy language.
"""

import itertools

import pytest
import torch
from torch import Tensor

from decoder.beam import beam_search

B, K, STATES = 3, 64, 11
LIVE = (3, 17, 40)
END = 60
MAX_TOKENS = 3


class Language:
    """Next-token tables with a memory of the whole sequence: a step that follows the wrong beam goes wrong.

    Four of 64 tokens can be said, so that 64 beams hold all 39 objects of up to 3 tokens.
    """

    def __init__(self, batch: int = B) -> None:
        self.table_BSV = torch.full((batch, STATES, K), -torch.inf)
        said = [*LIVE, END]
        self.table_BSV[:, :, said] = 1.5 * torch.randn(batch, STATES, len(said), generator=torch.Generator().manual_seed(4))
        self.batch, self.first_BV = batch, self.table_BSV[:, 0]
        self.calls = 0

    def start(self, beams: int) -> None:
        self.states, self.rows = [0] * (self.batch * beams), []

    def step(self, tokens_N: Tensor, origin_N: Tensor, edit_N: Tensor) -> Tensor:
        self.calls += 1
        self.rows.append(len(tokens_N))
        self.states = [
            (self.states[origin] * 3 + token + 1) % STATES for origin, token in zip(origin_N.tolist(), tokens_N.tolist(), strict=True)
        ]
        return torch.stack([self.table_BSV[edit, state] for edit, state in zip(edit_N.tolist(), self.states, strict=True)])

    def search(self, beams: int = K, max_tokens: int = MAX_TOKENS, terminator_id: int | None = END, **settings):
        self.start(beams)
        return beam_search(self.first_BV, self.step, beams=beams, max_tokens=max_tokens, terminator_id=terminator_id, **settings)

    def probability(self, b: int, ids: list[int], terminator_id: int | None) -> float:
        state, logprob = 0, 0.0
        for place, token in enumerate(ids):
            logits_V = self.table_BSV[b, state].clone()
            if place == 0 and terminator_id is not None:
                logits_V[terminator_id] = -torch.inf
            logprob += float(logits_V.log_softmax(-1)[token])
            state = (state * 3 + token + 1) % STATES
        if terminator_id is not None:
            logprob += float(self.table_BSV[b, state].log_softmax(-1)[terminator_id])
        return float(torch.tensor(logprob).exp())

    def brute_force(self, b: int, max_tokens: int, terminator_id: int | None) -> list[tuple[list[int], float]]:
        lengths, said = (range(1, max_tokens + 1), LIVE) if terminator_id is not None else ([max_tokens], (*LIVE, END))
        objects = [list(ids) for length in lengths for ids in itertools.product(said, repeat=length)]
        return sorted(((ids, self.probability(b, ids, terminator_id)) for ids in objects), key=lambda found: -found[1])


@pytest.mark.parametrize(("max_tokens", "terminator_id"), [(1, END), (2, END), (3, END), (1, None), (2, None), (3, None)])
def test_equals_brute_force(max_tokens, terminator_id):
    language = Language()
    beams = language.search(max_tokens=max_tokens, terminator_id=terminator_id)
    for b in range(B):
        expected = language.brute_force(b, max_tokens, terminator_id)[:K]
        assert beams.tokens[b][: len(expected)] == [ids for ids, _ in expected]
        found_K = beams.probability_BK[b]
        # Sums of a few float32 logarithms.
        torch.testing.assert_close(found_K[: len(expected)], torch.tensor([p for _, p in expected]), rtol=1e-5, atol=1e-7)
        assert not found_K[len(expected) :].any()


def test_probabilities_of_all_objects_sum_to_what_ends_in_time():
    language = Language()
    total_B = language.search().probability_BK.sum(1)
    assert (total_B < 1).all() and (total_B > language.search(max_tokens=2).probability_BK.sum(1)).all()


def test_one_beam_is_greedy_and_cannot_end_at_once():
    language = Language()
    language.first_BV[:, END] = 50.0
    beams = language.search(beams=1, max_tokens=8)
    for b in range(B):
        state, ids = 0, []
        while len(ids) < 8:
            logits_V = language.table_BSV[b, state].clone()
            logits_V[END] = -torch.inf if not ids else logits_V[END]
            token = int(logits_V.argmax())
            if token == END:
                break
            ids.append(token)
            state = (state * 3 + token + 1) % STATES
        assert beams.tokens[b] == [ids] and len(ids) >= 1


def test_empty_object_is_no_answer():
    language = Language()
    language.first_BV[:, END] = 50.0
    beams = language.search()
    live = beams.probability_BK > 0
    assert all(ids for b in range(B) for ids, found in zip(beams.tokens[b], live[b], strict=True) if found)
    assert beams.first_token_B.tolist() == [END] * B, "the first token is reported as the model ranks it"


def test_first_token_is_not_that_of_the_best_object():
    language = Language(batch=1)
    popular, sure = LIVE[:2]
    language.table_BSV.fill_(-torch.inf)
    language.table_BSV[0, 0, [popular, sure]] = torch.tensor([0.6, 0.4]).log()
    language.table_BSV[0, 1:, [*LIVE, END]] = torch.tensor([0.1, 0.3, 0.3, 0.3]).log()
    language.table_BSV[0, (sure + 1) % STATES, list(LIVE)] = -torch.inf
    beams = language.search()
    assert beams.first_token_B.tolist() == [popular] and beams.tokens[0][0] == [sure]


def test_finished_beams_keep_their_probability_and_stop_the_search():
    language = Language()
    language.table_BSV[:, 1:] = -torch.inf
    language.table_BSV[:, 1:, END] = 0.0
    language.table_BSV[:, 0, END] = -torch.inf
    beams = language.search(beams=3, max_tokens=8)
    assert language.calls == 1, "all beams ended after one token"
    torch.testing.assert_close(beams.probability_BK, language.first_BV.softmax(-1).topk(3).values)


def test_finished_beams_leave_the_search_and_change_nothing():
    language = Language(batch=40)
    # Some objects end sooner than others, some not before they must.
    language.table_BSV[:, 1:, END] += torch.linspace(-4, 9, 40).view(-1, 1)
    whole = language.search(beams=3, max_tokens=8, drop_finished=False)
    assert language.rows == [120] * 8
    dropped = language.search(beams=3, max_tokens=8)
    assert (
        language.rows[0] == 120
        and language.rows == sorted(language.rows, reverse=True)
        and 0 < language.rows[-1] < 60
        and any(rows % 3 for rows in language.rows)
    )
    assert dropped.tokens == whole.tokens and torch.equal(dropped.probability_BK, whole.probability_BK)


def test_logits_of_half_precision_are_summed_in_float32():
    language = Language()
    language.table_BSV = language.table_BSV.bfloat16().float()
    language.first_BV = language.table_BSV[:, 0]
    exact = language.search(beams=4)
    language.table_BSV, language.first_BV = language.table_BSV.bfloat16(), language.first_BV.bfloat16()
    half = language.search(beams=4)
    assert half.tokens == exact.tokens and torch.equal(half.probability_BK.float(), exact.probability_BK)
