"""The decoder: a learnable prompt and one trained layer of the host that make the host say what an edit planted.

Two passes. On the prompt the host runs with the edit and the trained layer in place and fills the key/value cache; object
tokens are then continued on that cache by the host's own layers, still with the edit in place. So the trained layer learns to
switch an edit on and to ask for its object, and the host itself spells the object, which keeps objects readable that training
never showed. `scope="all"` keeps the trained layer in place for both passes: the published one-pass form. Where a host has no
terminator, `learn_end` says where objects end (`ending.py`). Training meets edits where they were made; what is read after `learn_keys` is
each one's value at the decoder's own key (`parts/rekey.py`).

Shape letters: B edits, M prompt vectors, T object tokens (terminator included), K beams, N scored tokens or rows of beams,
D hidden width, V vocabulary.
"""

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from decoder.batch import PADDING
from decoder.beam import Beams, Worthwhile, beam_search
from decoder.dense import WholeEdit, rounded
from decoder.edit import Edits, LayerEdits
from decoder.ending import Ending, ending_examples, fit_ending, inside_words, word_ends
from decoder.host import Host
from decoder.parts.apart import read_apart
from decoder.parts.rekey import OwnKeys
from decoder.shortcuts import branched, last_state_only, scored_only, widen
from decoder.swap import exchanged, swapped, trainable_copy

NEVER = 1e4  # nats that leave a token no chance
CHUNK = 64


class ObjectDecoder(nn.Module):
    """Reads edits of `edited_layers` of a host: an `Edit` where that is one layer, else `LayerEdits`.

    The module tree holds what is learnt and nothing else, in float32: `prompt_MD`, a copy of each trained layer, `prior_V`, and once they
    are learnt `ending` and `own_keys`. The host is kept outside; if an edited layer itself is trained, its W_V stays the host's (paper,
    section 6).

    Args:
        prompt_MD: start of the prompt vectors.
        trained_layers: layers whose copies stand in for the host's on the prompt.
        scope: "prompt" or "all", the positions the trained layers act on.
        arithmetic: "factors" adds the rank-one term to the activations; "dense" multiplies with W' rounded to the host's dtype.
        ending: where objects end, if that was learnt.
        own_keys: at which edits are read, if they were learnt; else where they were made.
        apart: whether `read` tells apart what several facts did to a host (`decoder.parts`).
    """

    def __init__(
        self,
        host: Host,
        *,
        edited_layers: Sequence[int],
        trained_layers: Sequence[int],
        prompt_MD: Tensor,
        train_prompt: bool = True,
        scope: str = "prompt",
        arithmetic: str = "factors",
        ending: Ending | None = None,
        own_keys: OwnKeys | None = None,
        apart: bool = False,
    ) -> None:
        super().__init__()
        for layer in edited_layers:
            host.check_layer(layer, "edits.layer")
        for layer in trained_layers:
            host.check_layer(layer, "decoder.layer")
        object.__setattr__(self, "host", host)
        self.edited_layers, self.scope, self.arithmetic, self.apart = list(edited_layers), scope, arithmetic, apart
        self.prompt_MD = nn.Parameter(prompt_MD.detach().clone().float(), requires_grad=train_prompt)
        self.register_buffer("prior_V", torch.zeros(len(host.unembedding_VD)))
        self.ending, self.own_keys = ending, own_keys
        self.trained = nn.ModuleDict({str(layer): trainable_copy(host, layer, layer in edited_layers) for layer in trained_layers})

    @property
    def trained_layers(self) -> list[int]:
        return [int(layer) for layer in self.trained]

    @property
    def end_id(self) -> int | None:
        """What ends an object: the host's terminator, else the learnt end, whose id is behind the vocabulary's last; None: nothing."""
        return self.host.terminator_id if self.ending is None else len(self.host.unembedding_VD)

    def forward(self, edits: Edits, object_ids_BT: Tensor) -> Tensor:
        """Logits (B, T, V) of each object token given the ones before it; `PADDING` may follow the objects.

        Training needs no more than `scored`.
        """
        batch, tokens = object_ids_BT.shape
        edits = self._prepared(edits)
        first_BV, cache = self._read_prompt(edits, keep=tokens > 1)
        if cache is None:
            return first_BV.unsqueeze(1)
        later_NV = self._later(edits, object_ids_BT, cache)
        return torch.cat([first_BV.unsqueeze(1), later_NV.view(batch, tokens - 1, -1)], dim=1)

    def scored(self, edits: Edits, object_ids_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, V) of the N object tokens that are no padding, and these tokens (N,): first tokens, then the others row by row."""
        edits = self._prepared(edits)
        first_BV, cache = self._read_prompt(edits, keep=object_ids_BT.shape[1] > 1)
        return self._teacher_forced(edits, object_ids_BT, first_BV, cache)

    @torch.no_grad()
    def read(self, edits: Edits, *, beams: int, max_object_tokens: int, worthwhile: Worthwhile | None = None) -> Beams:
        """The most probable whole objects of each edit, best first; those of one that is not `worthwhile` are given up (`beam_search`).

        Those of its parts, if the decoder reads `apart`.
        """

        def read(edits: Edits) -> Beams:
            edits = self._prepared(self.rekeyed(edits))
            return self._search(edits, *self._read_prompt(edits), beams, max_object_tokens, worthwhile)

        return read_apart(self.host, LayerEdits.of(edits, self.edited_layers), read) if self.apart else read(edits)

    @torch.no_grad()
    def read_and_scored(self, edits: Edits, object_ids_BT: Tensor, *, beams: int, max_object_tokens: int) -> tuple[Beams, Tensor, Tensor]:
        """What `read` and `scored` give of edits as they are read, from one pass over the prompt."""
        edits = self._prepared(self.rekeyed(edits))
        first_BV, cache = self._read_prompt(edits)
        logits_NV, ids_N = self._teacher_forced(edits, object_ids_BT, first_BV, branched(cache))
        return self._search(edits, first_BV, cache, beams, max_object_tokens), logits_NV, ids_N

    @torch.no_grad()
    def take_prior(self, share: float) -> None:
        """From now on `read` takes off each first token `share` of the log-probability it has without an edit.

        What it says of the host's own W_V is what training made likely, whatever the edit (contextual calibration, Zhao et al. 2021). It
        becomes part of the decoder.
        """
        self.prior_V.copy_(share * self._without_edit().float().log_softmax(-1))

    @torch.no_grad()
    def learn_start(self, first_ids: Collection[int]) -> None:
        """From now on `read` begins no object with a token that goes on within a word, if none of these does, which begin training objects.

        Where words are written without spaces between them, theirs do, and nothing is barred.
        """
        inside_V = inside_words(self.host)
        if not inside_V[[*first_ids]].any():
            self.prior_V += NEVER * inside_V.to(self.prior_V)

    @torch.no_grad()
    def moved(self, edits: Edits) -> Tensor:
        """How far (B,) each edit moves the state that the prompt ends in from where it is without one."""
        with scored_only(self.host) as states:
            self._without_edit()
            self._read_prompt(self._prepared(self.rekeyed(edits)), keep=False)
        # Between them are those of a self-check, if these edits are the first on their host.
        clean_1D, *_, edited_BD = states
        return (edited_BD.float() - clean_1D.float()).norm(dim=1)

    @torch.no_grad()
    def learn_end(self, edits: Edits, object_ids_BT: Tensor) -> None:
        """From now on objects end as those of these edits do (`ending_examples`); a host with a terminator needs none."""
        if self.host.terminator_id is not None:
            return
        edits, object_ids_BT, numbered_B = ending_examples(edits, object_ids_BT.to(self.host.device))
        planted_BT = object_ids_BT != PADDING
        ended_BT = planted_BT & ~torch.nn.functional.pad(planted_BT[:, 1:], (0, 1))
        states, words, inside_V = [], [], inside_words(self.host)
        for start in range(0, len(edits), CHUNK):
            part, scored_BT = self._prepared(self.rekeyed(edits[start : start + CHUNK])), planted_BT[start : start + CHUNK]
            longest = int(scored_BT.sum(1).max())
            _, cache = self._read_prompt(part)
            widen(cache, len(part))
            ids_BT = object_ids_BT[start : start + CHUNK, :longest].clamp(min=0)
            logits_NV, state_ND = self._continue(part, ids_BT, cache, scored_BT[:, :longest])
            states.append(state_ND)
            words.append(word_ends(logits_NV, inside_V))
        objects = numbered_B.repeat_interleave(planted_BT.sum(1).cpu()).tolist()
        self.ending = fit_ending(torch.cat(states), torch.cat(words), ended_BT[planted_BT], objects, inside_V)

    @torch.no_grad()
    def learn_keys(self, edits: Edits, usual: Mapping[int, Tensor]) -> None:
        """From now on edits of one term are read at keys of the decoder's own, as `OwnKeys.learnt` has them of training edits."""
        self.own_keys = OwnKeys.learnt(LayerEdits.of(edits, self.edited_layers).to(self.host.device), usual)

    def rekeyed(self, edits: Edits) -> LayerEdits:
        """Edits as they are read: where they were made, or at the decoder's own keys."""
        edits = LayerEdits.of(edits, self.edited_layers)
        return edits if self.own_keys is None else self.own_keys.of(edits, self.host)

    def _prepared(self, edits: Edits) -> LayerEdits:
        edits = LayerEdits.of(edits, self.edited_layers).to(self.host.device)
        return rounded(edits, self.host) if self.arithmetic == "dense" else edits

    def _without_edit(self) -> Tensor:
        """Logits (V,) after the prompt on the host's own W_V."""
        prompt_1MD = self.prompt_MD.unsqueeze(0).to(self.host.dtype)
        with self._autocast(), self._trained_in_place():
            return self.host.model(inputs_embeds=prompt_1MD, use_cache=False, logits_to_keep=1).logits[0, -1]

    def _read_prompt(self, edits: LayerEdits, keep: bool = True) -> tuple[Tensor, DynamicCache | None]:
        """First pass: logits (B, V) after the prompt and, if kept, a cache of it: batch 1 up to the edit, B after it."""
        prompt_1MD, cache = self.prompt_MD.unsqueeze(0).to(self.host.dtype), DynamicCache() if keep else None
        with self._autocast(), self._trained_in_place(), swapped(self.host, edits.by_layer), scored_only(self.host):
            with last_state_only(self.host, self.edited_layers[-1]):
                logits_1BV = self.host.model(inputs_embeds=prompt_1MD, **self.host.with_cache(cache), logits_to_keep=1).logits
        assert cache is None or cache.get_seq_length() == len(self.prompt_MD), "the host did not keep the prompt in its cache"
        return logits_1BV[0], cache

    def _teacher_forced(
        self, edits: LayerEdits, object_ids_BT: Tensor, first_BV: Tensor, cache: DynamicCache | None
    ) -> tuple[Tensor, Tensor]:
        """What `scored` gives, after the first pass."""
        planted_BT = object_ids_BT != PADDING
        ids_N = torch.cat([object_ids_BT[:, 0], object_ids_BT[:, 1:][planted_BT[:, 1:]]])
        if len(ids_N) == len(first_BV):
            return first_BV, ids_N
        return torch.cat([first_BV, self._later(edits, object_ids_BT, cache, planted_BT[:, 1:])]), ids_N

    def _later(self, edits: LayerEdits, object_ids_BT: Tensor, cache: DynamicCache, scored_BT: Tensor | None = None) -> Tensor:
        """Logits (N, V) of the tokens after the first that are scored, all by default, row by row; the prompt's cache is used up."""
        widen(cache, len(edits))
        return self._continue(edits, object_ids_BT[:, :-1].clamp(min=0), cache, scored_BT)[0]

    def _search(
        self, edits: LayerEdits, first_BV: Tensor, cache: DynamicCache, beams: int, max_tokens: int, worthwhile: Worthwhile | None = None
    ) -> Beams:
        """What `read` gives, after the first pass; the prompt's cache is used up."""
        first_BV = first_BV.float().log_softmax(-1) - self.prior_V.to(first_BV.device)
        vocabulary, ending = first_BV.shape[1], self.ending
        beams = min(beams, vocabulary)
        if ending is not None:
            first_BV = torch.nn.functional.pad(first_BV, (0, 1), value=-torch.inf)
        widen(cache, len(edits), beams)

        def step(tokens_N: Tensor, origin_N: Tensor, edit_N: Tensor) -> Tensor:
            cache.reorder_cache(origin_N)
            searched = edits.repeat_interleave(beams) if len(edit_N) == beams * len(edits) else edits[edit_N]
            # What a finished beam goes on with counts for nothing; a learnt end is no token that the host could be given.
            ids_N1 = tokens_N.clamp(max=vocabulary - 1).unsqueeze(1)
            logits_NV, state_ND = self._continue(searched, ids_N1, cache)
            return logits_NV if ending is None else ending.with_end(logits_NV, state_ND)

        bounds = {"beams": beams, "max_tokens": max_tokens, "terminator_id": self.end_id, "worthwhile": worthwhile}
        # To drop some whole matrices the others would have to be copied.
        return beam_search(first_BV, step, **bounds, drop_finished=not any(isinstance(own, WholeEdit) for own in edits.by_layer.values()))

    def _continue(self, edits: LayerEdits, ids_BT: Tensor, cache: DynamicCache, scored_BT: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Second pass: logits (N, V) and final states (N, D) behind the object tokens that are scored, all by default; the cache grows."""
        trained = self._trained_in_place() if self.scope == "all" else nullcontext()
        with self._autocast(), trained, swapped(self.host, edits.by_layer), scored_only(self.host, scored_BT) as states:
            logits_NV = self.host.model(input_ids=ids_BT, **self.host.with_cache(cache)).logits[0]
        return logits_NV, states[0]

    def _autocast(self) -> torch.autocast:
        """Lets float32 trained layers meet the activations of a half-precision host."""
        half = self.host.dtype != torch.float32
        return torch.autocast(self.host.device.type, dtype=self.host.dtype if half else None, enabled=half)

    def _trained_in_place(self) -> AbstractContextManager:
        return exchanged(self.host, {int(layer): block for layer, block in self.trained.items()})
